"""Stages on a real Ray cluster: the rows that are taken, once each, with all that counts rows."""

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from pipeline.insight.status import status
from tests.conftest import MakeConfig, write_shards

FAST = {"tokens_median": 40, "seconds_per_token": 0.0005}


def test_a_second_stage_takes_the_chosen_traces_once_each_and_goes_on_as_its_input_grows(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    rows = write_shards(tmp_path / "in", [40, 20])
    engine = {"replicas": 2, "simulated": FAST}
    first = make_config(output={"rows_per_part": 16}, sampling={"n": 2}, engine=engine)
    flow.run(first)
    traces = pq.read_table(tmp_path / "out").to_pylist()
    assert len(traces) == 2 * rows
    late = [path.rename(tmp_path / path.name) for path in (tmp_path / "out").glob("shard-00001*")]
    second = make_config(
        input={"path": str(tmp_path / "out"), "where": "id % 3 = sample", "dedupe": True},
        output={"path": str(tmp_path / "out2"), "rows_per_part": 8},
        prompt={"template": "Is {answer} right for {prompt}"},
        sampling={"n": 2},
        engine={"simulated": FAST},  # after dedupe there are too few rows for two
    )
    flow.pilot(second, 5)
    assert flow.run(second).is_complete
    for path in late:
        path.rename(tmp_path / "out" / path.name)
    summary = flow.run(second)
    chosen = [trace for trace in traces if trace["id"] % 3 == trace["sample"]]
    assert summary.is_complete
    assert (summary.rows, summary.traces) == (len(chosen), 2 * len(chosen)) == (40, 80)
    assert status(second.output.path).rows == 40
    done = pq.read_table(tmp_path / "out2").to_pylist()
    keys = [(row["id"], row["stage1_sample"], row["stage1_answer"], row["sample"]) for row in done]
    assert keys == [(t["id"], t["sample"], t["answer"], n) for t in chosen for n in range(2)]
    shown = list(preview.plan_lines(prepare(second)))
    assert any("carried with stage1_ before their names" in line for line in shown)
    assert any(" right for What is " in line for line in shown), shown
    retried = flow.retry(second, states=["finished"])
    assert retried.traces == 80
