"""A run of rows with settings of their own, stopped, its engine killed, and resumed."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import LimitReachedError
from pipeline.execution import run as flow
from pipeline.reasoning.row_settings import derive_own_seed
from tests.conftest import MakeConfig

ENGINE = {"simulated": {"tokens_median": 150, "tokens_sigma": 0.8, "seconds_per_token": 0.01}}
FORMS = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"b": {"enum": ["x", "y"]}}, "required": ["b"]},
]
LIMITS = (60, 120, 400)


def own_settings(row: int) -> dict[str, Any] | None:
    """Every fifth row has none; every seventh a schema and a seed."""
    if row % 5 == 0:
        return None
    own: dict[str, Any] = {"temperature": (row % 4) / 4, "max_tokens": LIMITS[row % 3]}
    if row % 7 == 0:
        own |= {"json_schema": FORMS[row % 2], "seed": row, "max_tokens": 5000}
    return own


def test_rows_keep_their_own_settings_over_a_stop_and_a_dead_engine(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    cells = [own_settings(row) for row in range(60)]
    # The last two rows have the prompt of row 1; one of them has its settings too.
    cells += [cells[1], {"temperature": 1.5}]
    prompts = [f"What is {i} + 1?" for i in [*range(60), 1, 1]]
    own = [None if cell is None else json.dumps(cell) for cell in cells]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": prompts, "own": own}), tmp_path / "in/a.parquet")
    by_row = {"input": {"sampling_column": "own", "dedupe": True}, "thinking": {"rescue": False}}

    def config(**more: Any) -> Any:
        output = {"rows_per_part": 16, "checkpoint_seconds": 0.2}
        engine = {"block_rows": 4, **ENGINE}
        return make_config(**{**by_row, "output": output, "engine": engine, **more})

    with pytest.raises(LimitReachedError):
        flow.run(config(limits={"output_tokens": 1500}))
    flag = tmp_path / "die"
    flag.touch()
    dies = {"block_rows": 4, "simulated": {**ENGINE["simulated"], "dies_with": str(flag)}}
    assert flow.run(config(engine=dies)).is_complete
    assert not flag.exists(), "no engine has died, so this shows less"
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert any(row["carried_tokens"] for row in rows), "nothing was resumed"
    for row, cell in zip(rows, cells, strict=True):
        _obeys(row, cell or {})
    assert rows[60]["duplicate_of"] == "a.parquet:1"
    assert rows[61]["duplicate_of"] is None
    assert {row["finish_reason"] for row in rows} == {"stop", "length"}


def _obeys(row: dict[str, Any], own: dict[str, Any]) -> None:
    said = row["sampled_with"]
    assert said["temperature"] == own.get("temperature", 0.6)
    limit = own.get("max_tokens", 32_768)
    assert said["max_tokens"] == limit
    assert row["think_tokens"] + row["answer_tokens"] <= limit
    if row["finish_reason"] == "length":
        assert row["think_tokens"] + row["answer_tokens"] == limit
    if "json_schema" in own:
        assert json.loads(said["json_schema"]) == own["json_schema"]
        assert json.loads(row["parsed"]).keys() == own["json_schema"]["properties"].keys()
        assert row["seed"] == derive_own_seed(own["seed"], 0)
    else:
        assert (said["json_schema"], row["parsed"]) == (None, None)
