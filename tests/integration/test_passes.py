"""Top-ups and retries: what is asked for changes, nothing else does."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.execution import run as flow
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.planning import Pass
from pipeline.storage import Storage
from tests.conftest import PROMPTS, MakeConfig, write_shards
from tests.outputs import finish

# A third of the traces is longer than the limit.
ENGINE = {"simulated": {"tokens_median": 80, "tokens_sigma": 0.5, "seconds_per_token": 0.0002}}
CUT = {"max_tokens": 100}
ENDS: dict[str, Any] = {"thinking": {"rescue": False}}


def traces(config: RunConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(config.output.path).to_pylist()
    return rows


def test_top_up_is_the_same_as_all_samples_from_the_start(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [40, 0, 25])
    parts = {"rows_per_part": 16}
    flow.run(make_config(engine=ENGINE, sampling={"n": 2}, output=parts))
    more = make_config(engine=ENGINE, sampling={"n": 5}, output=parts)
    write_shards(tmp_path / "in", [40, 0, 25, 7])  # a new shard too
    summary = flow.run(more)
    assert summary.is_complete
    whole = make_config(
        engine=ENGINE, sampling={"n": 5}, output={**parts, "path": str(tmp_path / "whole")}
    )
    assert flow.run(whole) == summary
    assert traces(more) == traces(whole)
    assert flow.run(more) == summary
    assert (
        part_metadata(Storage(more.output.path), "shard-00000.00001.parquet")["settings"][
            "sampling.n"
        ]
        == 5
    )
    with pytest.raises(OutputError, match=r"has 5 samples of each row.*set sampling.n=5"):
        flow.run(make_config(engine=ENGINE, sampling={"n": 2}, output=parts))
    write_shards(tmp_path / "in", [40, 0, 25, 7, 3])
    assert flow.run(more).traces == 5 * 75
    assert {name for name in _bookkeeping(more) if "passes" in name} == {
        "__qwq/passes/00001.yaml", "__qwq/passes/00001.closed"
    }  # fmt: skip


def _bookkeeping(config: RunConfig) -> list[str]:
    return [i.name for i in Storage(config.output.path).files() if i.name.startswith("__qwq")]


def test_retry_does_again_what_ended_so_and_leaves_the_rest(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [60])
    prompts = pq.read_table(tmp_path / "in/shard-00000.parquet").to_pylist()
    prompts[3]["prompt"] = None
    import pyarrow as pa

    pq.write_table(pa.Table.from_pylist(prompts, PROMPTS), tmp_path / "in/shard-00000.parquet")
    parts = {"rows_per_part": 16}
    first = make_config(engine=ENGINE, sampling={**CUT, "n": 2}, output=parts, **ENDS)
    flow.run(first)
    before = traces(first)
    longer = make_config(engine=ENGINE, sampling={"max_tokens": 4000, "n": 2}, output=parts, **ENDS)
    summary = flow.retry(longer, ["truncated", "failed"])
    after = traces(longer)
    assert summary.is_complete
    assert [(r["id"], r["sample"]) for r in after] == [(r["id"], r["sample"]) for r in before]
    redone = [old["state"] != "finished" for old in before]
    assert 10 < sum(redone) < 100
    for old, new, again in zip(before, after, redone, strict=True):
        assert new["attempt"] == int(again)
        assert (new == old) != again
        assert new["state"] == ("failed" if new["id"] == 3 else "finished")
    footer = part_metadata(Storage(longer.output.path), "shard-00000.00000.parquet")
    assert footer["settings"]["sampling.max_tokens"] == 100
    assert footer["passes"] == [
        {
            "number": 1,
            "states": ["failed", "truncated"],
            "foreign": None,
            "changed": {"sampling.max_tokens": 4000},
        }
    ]
    assert flow.run(first) == summary  # the run itself is as it was
    assert flow.retry(longer, ["truncated"]) == summary  # nothing in that state is left
    assert traces(longer) == after


def test_traces_that_mix_languages_are_done_again(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [60])
    config = make_config(engine={"simulated": {**ENGINE["simulated"], "mixes": 0.3}})
    finish(config, lambda row, _: {"think_foreign": 0.2 if row % 3 == 0 else 0.02})
    before = traces(config)
    flow.retry(config, foreign=0.05)
    mixed = [row["think_foreign"] > 0.05 for row in before]
    assert sum(mixed) == 20
    assert [row["attempt"] == 1 for row in traces(config)] == mixed
    assert [row == old for row, old in zip(traces(config), before, strict=True)] == [
        not again for again in mixed
    ]
    redone = [row["think_foreign"] > 0.05 for row in traces(config) if row["attempt"] == 1]
    assert 0 < sum(redone) < len(redone)
    with pytest.raises(OutputError, match=r"say which traces: --state STATE,… or --foreign SHARE"):
        flow.retry(config)


def test_retry_under_way_goes_on_and_another_is_refused(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [30])
    first = make_config(engine=ENGINE, sampling=CUT, **ENDS)
    finish(first, lambda row, _: {"state": "truncated" if row % 3 == 0 else "finished"})
    ledger = Ledger(Storage(first.output.path))
    ledger.open_pass(Pass(1, 0, 1, ("truncated",), (("sampling.max_tokens", 4000),)))
    with pytest.raises(OutputError, match=r"CONFIG --state truncated --set sampling.max_tokens=40"):
        flow.retry(first, ["truncated"])
    longer = make_config(engine=ENGINE, sampling={"max_tokens": 4000}, **ENDS)
    assert flow.retry(longer, ["truncated"]).states == {"finished": 30}
    assert [row["attempt"] for row in traces(longer)] == [1, 0, 0] * 10
    assert ledger.listing().closed == {1}


@pytest.mark.parametrize(
    ("sections", "states", "message"),
    [
        ({}, ["cut"], r"--state cut: states are finished, truncated"),
        ({"prompt": {"suffix": "math"}}, ["truncated"], r"prompt.suffix: there None"),
        (
            {"output": {"path": "{}/none"}},
            ["truncated"],
            r"holds no run; there is nothing to retry",
        ),
    ],
)
def test_retry_that_can_not_be_is_refused_in_words(
    tmp_path: Path, make_config: MakeConfig, sections: Any, states: list[str], message: str
) -> None:
    write_shards(tmp_path / "in", [3])
    finish(make_config(engine=ENGINE))
    for section in sections.values():
        for key, value in section.items():
            section[key] = value.format(tmp_path)
    with pytest.raises(OutputError, match=message):
        flow.retry(make_config(engine=ENGINE, **sections), states)
