"""What would mix two runs in one output is refused, in words that say what changed."""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, OutputError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from tests.conftest import PROMPTS, MakeConfig, write_shards
from tests.outputs import finish

ENGINE: dict[str, Any] = {"simulated": {"tokens_median": 20, "seconds_per_token": 0}}
CHANGES: list[tuple[str, str, Any]] = [
    ("input", "prompt_column", "id"), ("output", "rows_per_part", 7), ("output", "raw_text", True),
    ("output", "rename", {"answer": "reply"}), ("model", "path", "qwq-nano-preview"),
    ("model", "preset", "qwq-32b-preview"), ("model", "revision", "abc"), ("model", "lora", "x"),
    ("model", "format", {"close": "</t>"}),
    ("prompt", "system", "be brief"), ("prompt", "suffix", "math"), ("sampling", "temperature", 0.7),
    ("sampling", "top_p", 0.9), ("sampling", "top_k", 30), ("sampling", "min_p", 0.1),
    ("sampling", "presence_penalty", 0.5), ("sampling", "repetition_penalty", 1.1),
    ("sampling", "max_tokens", 99), ("sampling", "seed", 1), ("engine", "kind", "vllm"),
    ("engine", "context", "auto"), ("engine", "vllm", {"quantization": "fp8"}),
]  # fmt: skip


def test_each_setting_that_changes_rows_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    before = finish(make_config(engine=ENGINE))
    for section, key, value in CHANGES:
        changed: Any = {"engine": dict(ENGINE)}
        changed.setdefault(section, {})[key] = value
        name = f"{section}.{key}"
        if isinstance(value, dict) and key != "rename":
            name += f".{next(iter(value))}"
        with pytest.raises(OutputError, match=rf"{name}: there .*, now "):
            prepare(make_config(**changed))
    write_shards(tmp_path / "other", [3])
    with pytest.raises(OutputError, match=r"input.path: there .*/in', now .*/other'(?s:.*)moved"):
        prepare(make_config(engine=ENGINE, input={"path": str(tmp_path / "other")}))
    assert flow.run(make_config(engine=ENGINE)) == before


def test_settings_that_change_no_row_are_not_refused(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [2])
    before = finish(make_config(engine=ENGINE))
    same = make_config(
        engine={**ENGINE, "replicas": 2, "block_rows": 3, "vllm": {"max_num_seqs": 7}},
        output={"checkpoint_seconds": 5},
    )
    assert flow.run(same) == before


def test_input_that_was_copied_continues_wherever_it_is_now(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [4, 4])
    config = make_config(engine=ENGINE)
    assert finish(config).traces == 8
    for path in (tmp_path / "in").iterdir():
        os.utime(path, (1, 1))
    assert "2 shards have other times or tags" in "".join(prepare(config).notes)
    shutil.copytree(tmp_path / "in", tmp_path / "new")
    write_shards(tmp_path / "new", [4, 4, 4])
    moved = make_config(engine=ENGINE, input={"path": str(tmp_path / "new")})
    assert prepare(moved).plan.rows_todo == 4
    assert finish(moved).traces == 12
    assert prepare(moved).notes == ()
    shutil.copytree(tmp_path / "new", tmp_path / "fewer")
    (tmp_path / "fewer/shard-00001.parquet").unlink()
    with pytest.raises(OutputError, match=r"input.path: there (?s:.*)accepted if all shards"):
        prepare(make_config(engine=ENGINE, input={"path": str(tmp_path / "fewer")}))


def test_later_shard_that_would_widen_the_output_is_refused(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(engine=ENGINE)
    write_shards(tmp_path / "in", [4])
    assert finish(config).traces == 4
    for column, refusal in {
        "topic": r"later\.parquet has a column topic, which the output does not have",
        "id": r"column id is double in later\.parquet, and int64 in the output",
    }.items():
        rows = [{"prompt": "x", "id": 1.5 if column == "id" else 1, column: 1.5}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/later.parquet")
        with pytest.raises(InputError, match=refusal):
            prepare(config)
    fits: list[dict[str, Any]] = [{"prompt": "x", "id": 5.0, "topic": None}]
    pq.write_table(pa.Table.from_pylist(fits), tmp_path / "in/later.parquet")
    assert finish(config).traces == 5
    files = sorted((tmp_path / "out").glob("*.parquet"))
    assert len({pq.read_schema(path).remove_metadata() for path in files}) == 1


def test_changed_shard_is_refused_and_an_added_or_removed_one_is_not(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = make_config(engine=ENGINE)
    write_shards(tmp_path / "in", [4, 4])
    assert finish(config).traces == 8
    write_shards(tmp_path / "more", [4, 4, 4])
    (tmp_path / "more/shard-00002.parquet").rename(tmp_path / "in/shard-00002.parquet")
    assert prepare(config).plan.rows_todo == 4
    assert finish(config).traces == 12
    (tmp_path / "in/shard-00000.parquet").unlink()
    assert flow.run(config).traces == 8
    rows = [{"id": i, "prompt": "other"} for i in range(5)]
    pq.write_table(pa.Table.from_pylist(rows, PROMPTS), tmp_path / "in/shard-00001.parquet")
    with pytest.raises(OutputError, match=r"shard-00001.parquet: rows 4, now 5, size "):
        flow.run(config)
    assert not (tmp_path / "out/shard-00001.00001.parquet").exists()
