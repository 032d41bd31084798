"""The files of parts: row groups, checksums, votes, counts, and what is no part."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError, StorageError
from pipeline.local_disk import FileInfo
from pipeline.output import parts
from pipeline.output.layout import JournalEntry
from pipeline.output.merge import fragment_tables, part_groups
from pipeline.output.parts import PartSummary, known_columns, part_metadata, write_part
from pipeline.planning import PartRef
from pipeline.schema import ORIGIN_COLUMNS, ROW_COLUMN, TRACE_COLUMNS
from pipeline.storage import Storage
from tests.unit.output.blocks import METADATA, SCHEMA, block

BOXED = {**METADATA, "settings": {"answer.format": "boxed"}}
ZSTD = bytes.fromhex("28b52ffd")


def rows(*numbers: int, samples: tuple[int, ...] = (0,)) -> pa.Table:
    """Traces with their row numbers, as fragments hold them."""
    table = block(list(numbers), samples=samples)
    return table.drop_columns([name for name in ORIGIN_COLUMNS if name != ROW_COLUMN])


def written(tables: list[pa.Table], metadata: Any = METADATA) -> tuple[bytes, dict[str, Any]]:
    """The file of a part, and the counts of its traces."""
    sink = BytesIO()
    counts = write_part(sink, tables, SCHEMA, metadata)
    return sink.getvalue(), counts


def groups(data: bytes) -> list[int]:
    file = pq.ParquetFile(BytesIO(data))
    return [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]


def test_small_tables_are_gathered_in_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [rows(number) for number in range(10)]
    monkeypatch.setattr(parts, "GROUP_ROWS", 4)
    data, counts = written(tables)
    assert groups(data) == [4, 4, 2]
    assert pq.read_table(BytesIO(data))["id"].to_pylist() == list(range(10))
    assert (counts["rows"], counts["traces"]) == (10, 10)
    assert groups(written([rows(*range(9)), rows(9)])[0]) == [9, 1]
    monkeypatch.setattr(parts, "GROUP_ROWS", 100)
    monkeypatch.setattr(parts, "GROUP_BYTES", 3 * rows(0).nbytes)
    assert groups(written(tables)[0]) == [3, 3, 3, 1]


def test_tables_of_different_types_make_one_group() -> None:
    """A later shard widens a column."""
    narrow = rows(0).set_column(0, "id", pa.array([0], pa.int32()))
    data, _ = written([narrow, rows(1)])
    assert pq.read_table(BytesIO(data))["id"].to_pylist() == [0, 1]


def test_changed_byte_of_a_part_is_found_by_its_checksum() -> None:
    data, _ = written([rows(*range(1000))])
    part = PartRef("x", 0, 1000)
    [table] = part_groups(BytesIO(data), part, SCHEMA, "sample")
    assert table[ROW_COLUMN].to_pylist() == list(range(1000))
    begin = data.index(ZSTD)  # of the first page
    for at in range(begin + 20, begin + 800, 97):
        file = BytesIO(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(OutputError, match=r"x in the output is damaged"):
            list(part_groups(file, part, SCHEMA, "sample"))


def test_fragment_whose_rows_others_have_is_not_read() -> None:
    read = list[str]()

    def read_all(names: Any) -> list[bytes]:
        read.extend(names)
        sinks = [BytesIO() for _ in read]
        for sink, (start, stop) in zip(sinks, [(0, 4), (2, 6), (6, 9)], strict=True):
            pq.write_table(rows(*range(start, stop)), sink)
        return [sink.getvalue() for sink in sinks]

    spans = [(6, 9), (0, 4), (1, 4), (3, 4), (2, 6)]
    entries = [JournalEntry("p", 0, FileInfo(f"{s}", 1, ""), rows=s) for s in spans]
    found = [table["id"].to_pylist() for table in fragment_tables(entries, read_all)]
    assert read == ["(0, 4)", "(2, 6)", "(6, 9)"]
    assert found == [[0, 1, 2, 3], [4, 5], [6, 7, 8]]


@pytest.mark.parametrize("store_schema", [True, False])
def test_file_of_somebody_else_is_no_part(tmp_path: Path, store_schema: bool) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet", store_schema=store_schema)
    with pytest.raises(OutputError, match=r"x.parquet was not written by qwq-batch; move it out"):
        part_metadata(Storage(str(tmp_path)), "x.parquet")


def test_columns_of_an_older_version_are_null() -> None:
    sink = BytesIO()
    pq.write_table(pa.table({"ending": ["finished"], "sample": [0], "other": [1]}), sink)
    names = {"state": "ending", "sample": "sample", "attempt": "attempt"}
    found = known_columns(pq.ParquetFile(sink), names, ["sample", "attempt", "state"])
    assert found.to_pylist() == [{"state": "finished", "sample": 0, "attempt": None}]


def parsed(table: pa.Table, values: list[str | None]) -> pa.Table:
    return table.set_column(table.column_names.index("parsed"), "parsed", pa.array(values))


def test_samples_of_a_row_vote_if_their_answers_are_parsed() -> None:
    table = parsed(rows(0, 1, samples=(0, 1, 2)), ["1", "1", "2", None, None, None])
    found = pq.read_table(BytesIO(written([table], BOXED)[0]))
    assert found["vote"].to_pylist() == ["1"] * 3 + [None] * 3
    assert found["agreement"].to_pylist()[:3] == pytest.approx([2 / 3] * 3)
    found = pq.read_table(BytesIO(written([table])[0]))
    assert found["vote"].to_pylist() == [None] * 6


def test_part_without_rows_has_no_votes_and_counts_nothing() -> None:
    data, counts = written([rows(0).slice(0, 0)], BOXED)
    assert pq.read_table(BytesIO(data)).num_rows == 0
    assert {key: counts[key] for key in ("rows", "traces", "duplicates", "prompt_tokens")} == {
        "rows": 0, "traces": 0, "duplicates": 0, "prompt_tokens": 0
    }  # fmt: skip


def test_copies_and_unknown_tokens_are_not_counted() -> None:
    summary = PartSummary({name: name for name in TRACE_COLUMNS})
    table = rows(0, 1, samples=(0, 1))
    for name, values in (
        ("duplicate_of", ["x", "x", None, None]), ("prompt_tokens", [7, 7, None, None])
    ):  # fmt: skip
        at = table.column_names.index(name)
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(values, field.type))
    summary.add(table)
    summary.add(table.slice(0, 2))
    assert summary.counts == {
        "rows": 3, "traces": 6, "states": {"finished": 6}, "duplicates": 4,
        "prompt_tokens": 0, "think_tokens": 4, "answer_tokens": 2, "carried_tokens": 0,
    }  # fmt: skip


@pytest.mark.parametrize("samples", [(0,), (0, 1, 2)])
def test_large_tables_are_split_between_rows(
    monkeypatch: pytest.MonkeyPatch, samples: tuple[int, ...]
) -> None:
    table = rows(*range(1, 13), samples=samples)
    for pieces in (1, 2, 3, 4, 12):
        monkeypatch.setattr(parts, "GROUP_BYTES", -(-table.nbytes // pieces))
        found = list(parts._pieces(table))
        assert pa.concat_tables(found).equals(table)
        assert [piece.num_rows for piece in found] == [table.num_rows // pieces] * pieces


def test_storage_that_does_not_answer_is_no_damage() -> None:
    with pytest.raises(StorageError, match=r"can't read x in the output: .*reset by peer"):
        with parts.damage_named("x"):
            raise ConnectionResetError(104, "reset by peer")
    with pytest.raises(OutputError, match=r"x in the output is damaged \(bad page\); remove that"):
        with parts.damage_named("x"):
            raise OSError("bad page")
