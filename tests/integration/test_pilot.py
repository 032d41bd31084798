"""Pilots are part of the run; what status, estimate and report tell of real runs."""

from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.execution import run as flow
from pipeline.execution.pilot import stratified_rows
from pipeline.execution.prepare import prepare
from pipeline.insight.estimate import Estimate, estimate
from pipeline.insight.html_report import page
from pipeline.insight.pilot_traces import traces_of
from pipeline.insight.status import status
from pipeline.insight.trace_statistics import count
from pipeline.monitor.history import all_figures
from pipeline.output.ledger import Ledger
from pipeline.storage import Storage
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

ROWS = [30, 0, 45, 25]


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        ds.dataset(config.output.path, exclude_invalid_files=True).to_table().to_pylist()
    )
    return found


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> RunConfig:
    write_shards(tmp_path / "in", ROWS)
    return make_config(
        output={"rows_per_part": 20},
        sampling={"n": 2},
        engine={
            "simulated": {"varies": True, "log": str(tmp_path / "log.jsonl")},
            "vllm": {"max_num_seqs": 8},
        },
    )


def generated(tmp_path: Path) -> int:
    return len((tmp_path / "log.jsonl").read_text().splitlines())


def test_pilot_is_part_of_the_run_and_done_once(config: RunConfig, tmp_path: Path) -> None:
    """What status, estimate and report tell of the run, after the pilot and at its end."""
    prepared = flow.pilot(config, 40)
    store = prepared.ledger.store
    chosen = stratified_rows(prepared.parts, 40)
    sample = list(traces_of(prepared, chosen))
    assert [len(row) for row in sample] == [2] * 40
    assert prepared.plan.rows_todo == 60
    early = status(config.output.path)
    assert (early.rows, early.rows_durable, early.parts_done) == (100, 40, 1)  # an empty shard's
    assert not early.is_running
    before = generated(tmp_path)
    flow.pilot(config, 40)
    assert generated(tmp_path) == before
    projected = estimate(
        config, sample, all_figures(store), prepared.plan.rows, prepared.plan.rows_todo
    )
    kept = [[trace["think_tokens"] for trace in row] for row in sample]
    summary = flow.run(config)
    assert summary.is_complete
    # Each of the engine's traces differs from all others: those of the pilot are still there.
    again = list(traces_of(prepare(config), chosen))
    assert [[trace["think_tokens"] for trace in row] for row in again] == kept
    assert len(rows_of(config)) == 200
    _holds_the_truth(projected, store)
    _status_and_report_tell_of_all(config.output.path)
    # Of a run that is over, a pilot takes what is there.
    before = generated(tmp_path)
    done = flow.pilot(config, 50)
    assert len(list(traces_of(done, stratified_rows(done.parts, 50)))) == 50
    assert generated(tmp_path) == before


def _holds_the_truth(projected: Estimate, store: Storage) -> None:
    tokens = count(store, sorted(Ledger(store).listing().finished_parts())).tokens
    spent = tokens["think_tokens"] + tokens["answer_tokens"] + tokens["wasted_tokens"]
    # Twice the range: one draw of twenty would miss it, and this must not fail one day of twenty.
    mid, low, high = vars(projected.whole.output_tokens).values()
    assert mid - 2 * (mid - low) < spent < mid + 2 * (high - mid)


def _status_and_report_tell_of_all(output: str) -> None:
    late = status(output)
    assert (late.rows_durable, late.parts_done, late.parts) == (100, 8, 8)
    assert sum(late.summary.states.values()) == 200
    runs = list(all_figures(Storage(output)))
    assert [run[-1].rows for run in runs] == [40, 60]
    assert sum(runs[-1][-1].think_lengths.values()) == 120
    assert runs[-1][-1].engine_pool.slots == 8
    assert max(f.running for run in runs for f in run) <= 8
    text = page(output)
    assert "<b>100</b><span>rows durable, of 100" in text
    assert "Over time" in text


def test_pilot_of_more_samples_than_there_are_is_refused(config: RunConfig) -> None:
    finish(config)
    more = config.sampling.model_copy(update={"n": 5})
    with pytest.raises(OutputError, match="has 2 samples of each row"):
        flow.pilot(config.model_copy(update={"sampling": more}), 5)


def test_pilot_of_all_rows_finishes_the_run(config: RunConfig) -> None:
    job = flow.pilot(config, 1000)
    assert job.plan.rows_todo == 0
    assert len(rows_of(config)) == 200


def test_pilot_with_duplicates(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [40], prompt="the same")
    config = make_config(input={"dedupe": True}, output={"rows_per_part": 10})
    flow.pilot(config, 4)
    assert flow.run(config).is_complete
    assert len(rows_of(config)) == 40
