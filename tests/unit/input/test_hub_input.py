"""Data sets of the hub: which files a split has, and that the revision stays."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.load import parse_config
from pipeline.errors import InputError, OutputError
from pipeline.execution.run_input import find_input
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.storage import Storage
from tests.conftest import MakeConfig
from tests.hub import Hub
from tests.outputs import finish

NAME = "org/sums"
CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: main/train-*}
  - split: test
    path: [main/test-*]
- config_name: socratic
  data_files: socratic/*.jsonl
---
# Sums
"""


def parquet(prompt: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": [prompt]}), sink)
    return bytes(sink.getvalue())


FILES = {
    "README.md": CARD,
    "main/train-00000-of-00001.parquet": parquet("train"),
    "main/test-00000-of-00001.parquet": parquet("test"),
    "socratic/train.jsonl": json.dumps({"prompt": "why"}).encode(),
}


def found(folder: Path, path: str = f"hf://datasets/{NAME}", **section: Any) -> Any:
    config = parse_config(
        {
            "input": {"path": path, **section},
            "output": {"path": str(folder / "out")},
            "model": {"path": "qwq-nano"},
        }
    )
    return config, find_input(config)


def prompts(folder: Path, *args: Any, **section: Any) -> list[str]:
    _, result = found(folder, *args, **section)
    return [p for s in result.shards for p in pq.read_table(s.path)["prompt"].to_pylist()]


def test_subset_and_split_choose_the_files_that_the_card_names(tmp_path: Path, hub: Hub) -> None:
    oid = hub.add(NAME, FILES)
    assert prompts(tmp_path, subset="main", split="test") == ["test"]
    shard = tmp_path / "out/__qwq/input/main/test-00000-of-00001.parquet"
    assert shard.read_bytes() == FILES["main/test-00000-of-00001.parquet"]
    assert prompts(tmp_path, subset="main", split="train") == ["train"]
    assert not shard.exists()
    assert prompts(tmp_path, subset="socratic") == ["why"]
    at = f"hf://datasets/{NAME}@{oid}"
    assert prompts(tmp_path, f"{at}/main/train-00000-of-00001.parquet") == ["train"]
    for section, message in (
        ({}, r"has the subsets main, socratic; choose one with input.subset"),
        ({"subset": "main"}, r"has the splits train, test; choose one with input.split"),
        ({"subset": "main", "split": "x"}, r"has no split x, but train, test; choose"),
    ):
        with pytest.raises(InputError, match=message):
            found(tmp_path, **section)
    with pytest.raises(InputError, match=r"does not show that data set .*HF_TOKEN"):
        found(tmp_path, "hf://datasets/org/none")
    with pytest.raises(InputError, match=r"is hf://datasets/ORG/NAME"):
        found(tmp_path, "hf://org/none")
    with pytest.raises(InputError, match=r"are for data sets of the hub"):
        found(tmp_path, str(tmp_path), split="train")


def test_without_a_card_the_names_of_files_tell_the_splits(tmp_path: Path, hub: Hub) -> None:
    hub.add(NAME, {"data/train.parquet": parquet("a"), "data/dev.parquet": parquet("b")})
    assert prompts(tmp_path, split="validation") == ["b"]
    hub.add("org/one", {"contest.jsonl": b'{"prompt": "c"}'})
    assert prompts(tmp_path, "hf://datasets/org/one") == ["c"]


def test_a_run_keeps_the_revision_that_it_began_with(tmp_path: Path, hub: Hub) -> None:
    first = hub.add(NAME, {"a.parquet": parquet("old")})
    config, result = found(tmp_path)
    assert any(first in note for note in result.notes)
    ledger = Ledger(Storage(config.output.path))
    ledger.open_run({"x": 1}, {})
    ledger.record_shards(result.shards, result.schema, result.url)
    second = hub.add(NAME, {"a.parquet": parquet("new"), "b.parquet": parquet("more")})
    assert prompts(tmp_path) == ["old"]
    at = f"hf://datasets/{NAME}@"
    for same in (first, first[:7]):
        assert prompts(tmp_path, at + same) == ["old"]
    for other_revision in (second, "main"):
        with pytest.raises(OutputError, match=rf"{second}, and the run .* set it to {at}{first},"):
            prompts(tmp_path, at + other_revision)
    other = tmp_path / "other"
    assert prompts(other) == ["new", "more"]


def test_commit_is_in_the_record_of_the_output(
    tmp_path: Path, hub: Hub, make_config: MakeConfig
) -> None:
    begun_at = hub.add(NAME, {"a.parquet": parquet("old")})
    path = f"hf://datasets/{NAME}"
    config = make_config(input={"path": path})
    finish(config)
    hub.add(NAME, {"a.parquet": parquet("new")})
    for same in (path, f"{path}@{begun_at}"):
        finish(make_config(input={"path": same}))
    ledger = Ledger(Storage(config.output.path))
    manifest, footer = ledger.manifest(), part_metadata(ledger.store, "a.00000.parquet")
    assert manifest is not None
    for settings in (manifest["settings"], footer["settings"]):
        assert settings["input.path"] == f"{path}@{begun_at}"
    # By what is recorded, another run has the same rows.
    assert prompts(tmp_path / "again", settings["input.path"]) == ["old"]
