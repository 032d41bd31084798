"""The same rows give the same traces, in whatever format they come."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution import run as flow
from tests.conftest import MakeConfig
from tests.hub import Hub
from tests.unit.input.test_same_rows import ROWS, write_formats

# What depends on how busy the machine is.
OF_THE_MACHINE = {"wasted_tokens", "carried_tokens"}


def test_the_same_rows_in_any_format_have_the_same_seeds_and_traces(
    tmp_path: Path, make_config: MakeConfig, hub: Hub
) -> None:
    traces = list[pa.Table]()
    for name, section in write_formats(tmp_path, hub).items():
        config = make_config(
            input={**section, "prompt_column": "question"},
            output={"path": str(tmp_path / "out" / name)},
            engine={"simulated": {"tokens_median": 20, "seconds_per_token": 0.0001}},
        )
        assert flow.run(config).is_complete
        traces.append(pq.read_table(tmp_path / "out" / name / "rows.00000.parquet"))
        if name == "hub":
            hub.add("org/rows", {"rows.parquet": b"of another revision"})
            assert flow.run(config).is_complete
    kept = [name for name in traces[0].column_names if name not in OF_THE_MACHINE]
    assert len({*traces[0]["seed"].to_pylist()}) == len(ROWS)
    assert all(each.select(kept) == traces[0].select(kept) for each in traces)
