"""Rows of damaged files say so; all others are read, in order and with their own numbers."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError, StorageError
from pipeline.input import rows as reading
from pipeline.input.rows import read_bundle, read_rows
from pipeline.input.shards import Input, find_shards
from pipeline.planning import Range, split_parts
from pipeline.schema import ROW_COLUMN, UNREADABLE_COLUMN, with_origin

ROWS, GROUP = 5000, 2000


def write(path: Path, **options: Any) -> None:
    table = pa.table(
        {"id": range(ROWS), "prompt": [f"What is {i}?" for i in range(ROWS)], "note": ["n"] * ROWS}
    )
    options = {"compression": "none", "use_dictionary": False, **options}
    pq.write_table(table, path, row_group_size=GROUP, data_page_size=4096, **options)


def damage(path: Path, group: int, column: int, share: float) -> None:
    """Overwrite some bytes in a column of a row group, at this share of its length."""
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(group).column(column)
    at = chunk.data_page_offset + int(chunk.total_compressed_size * share)
    data[at : at + 8] = b"\xff" * 8
    path.write_bytes(data)


def read(folder: Path, found: Input, start: int, stop: int) -> pa.Table:
    [part] = split_parts(found.shards, ROWS)
    return pa.concat_tables(read_rows(str(folder), Range(part, start, stop), found.schema))


@pytest.mark.parametrize("options", [{"write_page_checksum": True}, {"compression": "zstd"}])
@pytest.mark.parametrize("start", [0, 2500, 4100])
def test_damaged_page_fails_its_rows_and_keeps_their_other_columns(
    tmp_path: Path, options: dict[str, Any], start: int
) -> None:
    path = tmp_path / "a.parquet"
    write(path, **options)
    damage(path, 1, 1, 0.7)
    found = find_shards(str(tmp_path))
    table = read(tmp_path, found, start, ROWS).to_pylist()
    assert [row["id"] for row in table] == list(range(start, ROWS))
    failed = [row for row in table if row[UNREADABLE_COLUMN]]
    assert {GROUP <= row["id"] < 2 * GROUP for row in failed} <= {True}
    assert {row["prompt"] for row in failed} <= {None}
    assert all(row["prompt"] == f"What is {row['id']}?" for row in table if row not in failed)
    if start < 2 * GROUP:
        assert "a.parquet is damaged, column prompt: " in failed[0][UNREADABLE_COLUMN]
    else:
        assert failed == []


def test_rows_before_the_damage_in_a_group_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, write_page_checksum=True)
    damage(path, 1, 1, 0.9)
    table = read(tmp_path, find_shards(str(tmp_path)), GROUP, GROUP + 1024)
    assert table[UNREADABLE_COLUMN].null_count == 1024


def test_all_rows_of_a_sound_file_are_read_with_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    found = find_shards(str(tmp_path))
    [part] = split_parts(found.shards, ROWS)
    picks = tuple((row, (1,)) for row in (3, 1023, 1024, 2000, 4999))
    for pieces, numbers in (
        ([Range(part, 0, ROWS)], list(range(ROWS))),
        ([Range(part, 10, 1500), Range(part, 4000, 4100)], [*range(10, 1500), *range(4000, 4100)]),
        ([Range(part, 0, ROWS, picks)], [row for row, _ in picks]),
    ):
        tables = read_bundle(str(tmp_path), pieces, (0,), with_origin(found.schema))
        table = pa.concat_tables(tables)
        assert table[ROW_COLUMN].to_pylist() == table["id"].to_pylist() == numbers
        assert table[UNREADABLE_COLUMN].null_count == len(numbers)


def test_file_that_ends_early_fails_the_rows_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet")
    found = find_shards(str(tmp_path))
    iter_batches = pq.ParquetFile.iter_batches

    def short(self: Any, size: int, groups: list[int], columns: list[str]) -> Any:
        batches = list(iter_batches(self, size, groups, columns=columns))
        return iter(batches[:-1] if groups[-1] == 2 and "note" in columns else batches)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", short)
    table = read(tmp_path, found, 0, ROWS)
    assert table["id"].to_pylist() == list(range(ROWS))
    [reason] = set(table[UNREADABLE_COLUMN].drop_null().to_pylist())
    assert reason.endswith("column note: it ends early")


def test_file_that_changed_or_vanished_since_the_plan_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path)
    found = find_shards(str(tmp_path))
    write(path, compression="zstd")
    with pytest.raises(InputError, match=r"a\.parquet has changed since the run began"):
        read(tmp_path, found, 0, 9)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.parquet is not there any more"):
        read(tmp_path, found, 0, 9)


def test_storage_that_fails_fails_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet")
    found = find_shards(str(tmp_path))
    reads = iter(range(100))

    def failing(self: Any, size: int = -1) -> Any:
        if next(reads):  # the first is the footer
            raise ConnectionResetError("connection reset")
        return self._inner.read(size)

    class Flaky:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        read = failing

    source = reading._Source
    monkeypatch.setattr(reading, "_Source", lambda file, path: source(Flaky(file), path))
    with pytest.raises(StorageError, match=r"can't read .*a\.parquet: connection reset"):
        read(tmp_path, found, 0, ROWS)
