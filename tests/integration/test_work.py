"""One worker alone, on a real Ray cluster with the simulated engine; several are in tests/faults."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, LeaseHeldError, OutputError, QwqBatchError
from pipeline.execution import run as flow
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.work import work
from pipeline.monitor.history import all_figures, latest_figures
from pipeline.output import lease, workers
from pipeline.output.layout import CLAIMS, WORKERS
from pipeline.storage import Storage
from tests.conftest import MakeConfig, write_shards

FAST = {"tokens_median": 40, "seconds_per_token": 0.0005}


def traces(folder: Path) -> list[dict[str, Any]]:
    """All traces of an output, in order."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def refuse(reason: QwqBatchError) -> None:
    raise AssertionError(reason)


def test_worker_makes_the_rows_of_a_run(tmp_path: Path, make_config: MakeConfig) -> None:
    """In the run itself and in a top-up; then a run finds nothing left."""
    write_shards(tmp_path / "in", [70, 0, 90])
    sections: dict[str, Any] = {
        "output": {"path": str(tmp_path / "alone"), "rows_per_part": 32},
        "engine": {"replicas": 2, "simulated": FAST},
    }
    sections["sampling"] = {"n": 2}
    flow.run(make_config(**sections))
    sections["output"] = {"rows_per_part": 32}
    config = make_config(**sections)
    assert work(make_config(**{**sections, "sampling": {"n": 1}})).is_complete
    assert work(config).traces == 320
    made, expected = traces(tmp_path / "out"), traces(tmp_path / "alone")
    assert [row["seed"] for row in made] == [row["seed"] for row in expected]
    assert made == expected
    store = Storage(config.output.path)
    assert store.files(WORKERS) == store.files(CLAIMS) == []
    last = [figures[-1] for figures in all_figures(store)]
    assert [(each.rows, each.rows_to_do) for each in last] == [(160, 160)] * 2
    assert list(latest_figures(store).values()) == last, "each worker's own, the last to begin last"
    assert flow.run(config).is_complete


def test_worker_continues_what_a_run_has_left(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [60, 60])
    config = make_config(output={"rows_per_part": 25}, engine={"replicas": 2, "simulated": FAST})
    flow.pilot(config, 20)
    assert work(config).is_complete
    assert [row["id"] for row in traces(tmp_path / "out")] == list(range(120))


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"input": {"dedupe": True}}, "input.dedupe is not possible with several workers: equal"),
        ({"engine": {"context": "auto"}}, "engine.context: auto is not possible with several"),
        ({"limits": {"output_tokens": 5}}, "limits.output_tokens .* own tokens only; limit each"),
        (
            {"limits": {"cost": 5}, "prices": {"gpu_hour": 2}},
            "limits.cost .* own cost only; .* or use qwq-batch run",
        ),
    ],
)
def test_settings_that_need_one_driver_are_refused(
    tmp_path: Path, make_config: MakeConfig, sections: dict[str, Any], reason: str
) -> None:
    write_shards(tmp_path / "in", [3])
    with pytest.raises(ConfigError, match=reason):
        work(make_config(**sections))
    assert not (tmp_path / "out").exists()


def test_workers_may_differ_in_their_engines_but_not_in_what_makes_the_rows(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [40])
    config = make_config(engine={"simulated": FAST})
    flow.pilot(config, 10)
    with pytest.raises(OutputError, match=r"sampling.temperature: there 0.6, now 0.9"):
        work(make_config(sampling={"temperature": 0.9}, engine={"simulated": FAST}))
    other = {"replicas": 2, "vllm": {"max_num_seqs": 8}, "block_rows": 4}
    assert work(make_config(engine={**other, "simulated": FAST})).is_complete


def test_worker_prepares_again_when_another_has_begun_the_run_meanwhile(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had seen a shard with fewer columns only, so its schema would lack one."""
    write_shards(tmp_path / "in", [3])
    config = make_config(engine={"simulated": FAST})
    prepared = list[int]()

    def prepare_slowly(config: RunConfig) -> PreparedRun:
        first = prepare(config)
        prepared.append(len(first.shards))
        if len(prepared) == 1:
            table = pa.table({"id": [3], "prompt": ["What is 3 + 1?"], "more": ["x"]})
            pq.write_table(table, tmp_path / "in" / "shard-00001.parquet")
            prepare(config).open_output()
        return first

    monkeypatch.setattr("pipeline.execution.work.prepare", prepare_slowly)
    assert work(config).traces == 4
    assert prepared == [1, 2]
    assert pq.read_table(tmp_path / "out")["more"].to_pylist() == [None, None, None, "x"]


def test_driver_and_workers_refuse_each_other(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "RENEW_SECONDS", 0.2)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.2)
    write_shards(tmp_path / "in", [3])
    config = make_config(engine={"simulated": FAST})
    store = Storage(config.output.path)
    with lease.hold(store, refuse), pytest.raises(LeaseHeldError, match="at work on"):
        work(config)
    with workers.joined(store, refuse):
        with pytest.raises(LeaseHeldError, match="shared by workers"):
            flow.run(config)
    assert flow.run(config).is_complete
