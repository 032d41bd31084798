"""Files that are not Parquet, and several workers that begin with them at the same time."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.input.json_rows import JsonFiles
from tests.unit.input.test_converted import ROWS, put, read, text


def test_workers_that_begin_together_keep_the_shards_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        put(tmp_path, f"in/{name}.jsonl", text(ROWS))
    write, first = JsonFiles.write, dict[str, int]()

    def write_late(*arguments: Any) -> None:
        monkeypatch.setattr(JsonFiles, "write", write)
        read(tmp_path)
        first.update(inodes())
        write(*arguments)

    def inodes() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in tmp_path.glob("out/__qwq/input/[!.]*")}

    monkeypatch.setattr(JsonFiles, "write", write_late)
    assert read(tmp_path).num_rows == 2 * len(ROWS)
    assert first
    assert inodes() == first
