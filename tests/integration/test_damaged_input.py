"""A damaged shard fails the rows that can't be read, by name; all others are done."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.console import refuse_all_failed
from pipeline.errors import IncompleteRunError
from pipeline.execution import run as flow
from pipeline.insight.html_report import page
from pipeline.insight.preview import trace_lines
from pipeline.output.layout import SHARDS
from pipeline.output.reader import read_traces
from tests.conftest import MakeConfig

ENGINE: dict[str, Any] = {"simulated": {"tokens_median": 20, "seconds_per_token": 0}}


def damage(path: Path, column: int) -> None:
    """Overwrite bytes in the only row group of a file."""
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(column)
    at = (chunk.dictionary_page_offset or chunk.data_page_offset) + 40
    data[at : at + 20] = bytes(byte ^ 0xFF for byte in data[at : at + 20])
    path.write_bytes(data)


def shards(folder: Path) -> None:
    """Three shards of 30 rows; each row of the last has the prompt of a row of the second."""
    folder.mkdir()
    for number, name in enumerate("abc"):
        ids = range(30 * number, 30 * number + 30)
        prompts = [
            f"What is {id_ % 60} + 1?" if name != "c" else f"What is {id_ - 30} + 1?" for id_ in ids
        ]
        table = pa.table({"id": ids, "prompt": prompts, "note": [f"note {id_}" for id_ in ids]})
        pq.write_table(table, folder / f"{name}.parquet")


@pytest.mark.parametrize("dedupe", [False, True])
@pytest.mark.parametrize("column", ["prompt", "note"])
def test_rows_that_can_not_be_read_fail_alone_and_are_done_when_the_file_is_sound(
    tmp_path: Path, make_config: MakeConfig, dedupe: bool, column: str
) -> None:
    shards(tmp_path / "in")
    shutil.copy(tmp_path / "in/b.parquet", tmp_path / "sound")
    damage(tmp_path / "in/b.parquet", ["id", "prompt", "note"].index(column))
    section = {"path": str(tmp_path / "in"), "dedupe": dedupe}
    config = make_config(
        engine=ENGINE, input=section, output={"path": str(tmp_path / "out"), "rows_per_part": 16}
    )
    summary = flow.run(config)
    assert summary.is_complete
    assert (summary.unreadable, summary.states) == (30, {"failed": 30, "finished": 60})
    with pytest.raises(IncompleteRunError, match="30 traces failed because the input is damaged"):
        refuse_all_failed(summary, config)
    rows = rows_of(config)
    assert [row["id"] for row in rows] == list(range(90))
    failed = [row for row in rows if row["state"] == "failed"]
    assert {row["id"] for row in failed} == set(range(30, 60))
    assert all(f"b.parquet is damaged, column {column}: " in row["error"] for row in failed)
    assert {row["duplicate_of"] for row in rows} == {None}
    assert "is damaged" in "".join(trace_lines(config.output.path, 1, "failed"))

    shutil.copy(tmp_path / "sound", tmp_path / "in/b.parquet")
    record = tmp_path / "out" / SHARDS
    lines = record.read_text().splitlines()
    record.write_text("\n".join(line for line in lines if not line.startswith("b.parquet")))
    after = flow.retry(config, ["failed"])
    assert (after.unreadable, after.states) == (0, {"finished": 90})
    assert [row for row in rows_of(config) if row["attempt"] == 0] == [
        row for row in rows if row["state"] == "finished"
    ]
    assert [row["note"] for row in rows_of(config)] == [f"note {id_}" for id_ in range(90)]


def rows_of(config: RunConfig) -> list[dict[str, Any]]:
    return list(read_traces(config.output.path))


def test_text_that_is_not_utf8_ends_neither_a_run_nor_what_reads_its_output(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()
    raw = pa.array([b"1", b"\xff2", b"3", b"4"], pa.binary())
    text = pa.StringArray.from_buffers(4, *raw.buffers()[1:])
    prompts = ["a?", "b?", "c?", "d?"]
    pq.write_table(pa.table({"prompt": prompts, "ref": text}), tmp_path / "in/a.parquet")
    config = make_config(engine=ENGINE, answer={"format": "boxed", "reference_column": "ref"})
    assert flow.run(config).states == {"finished": 4}
    rows = rows_of(config)
    assert [row["ref"] for row in rows] == ["1", "\ufffd2", "3", "4"]
    assert [row["correct"] is None for row in rows] == [False, True, False, False]
    assert "\ufffd2" in "".join(trace_lines(config.output.path, 4, None))
    assert "\ufffd2" in page(config.output.path)
