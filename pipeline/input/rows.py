"""Read the rows of shards; what a damaged file breaks becomes rows that say so.

Here the rows that a run takes of a file (`RowSelection`), and the names under which it carries the
columns of an earlier run, become those of the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError, first_line
from pipeline.input.earlier_run import EarlierRun
from pipeline.input.hive import folder_columns
from pipeline.input.source_rows import SourceRows
from pipeline.planning import PartRef, Range, Shard
from pipeline.schema import (
    ORIGIN_FIELDS,
    RESERVED_COLUMNS,
    SOURCE_ROW,
    UNREADABLE_FIELD,
    cast,
    conform,
)
from pipeline.storage import Storage

# The rows of one read task. Small enough to start soon; large enough that big row groups are not
# fetched again for every few rows.
ROWS_A_READ_TASK = 32_768
ROWS_A_BATCH = 1024
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError)  # what Arrow raises for broken files


def read_rows(input_url: str, piece: Range, schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of one range, chosen or not, as tables of ``schema`` and `UNREADABLE_COLUMN`.

    Missing columns are null. Where the file is damaged, the columns that can't be read are null
    too and `UNREADABLE_COLUMN` says why. Raises `InputError` if the file is not the planned one,
    `StorageError` if the storage fails.
    """
    shard = piece.part.shard
    if shard.selection is None:
        yield from _read_file_rows(input_url, shard, (piece.start, piece.stop), schema)
        return
    numbers = shard.selection.numbers[piece.start : piece.stop]
    if not len(numbers):
        return
    position = int(numbers[0])
    for table in _read_file_rows(input_url, shard, (position, int(numbers[-1]) + 1), schema):
        stop = position + table.num_rows
        low, high = np.searchsorted(numbers, (position, stop))
        if low < high:
            yield table.take(numbers[low:high] - position)
        position = stop


def _read_file_rows(
    input_url: str, shard: Shard, rows: tuple[int, int], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Rows start to stop (exclusive), counted in the file, as `read_rows` yields them."""
    position, stop = rows
    with _opened(Storage(input_url), shard) as source:
        file = _ShardFile(_parquet(source, shard), shard, schema)
        try:
            for table in file.tables(position, stop):
                yield table.append_column(UNREADABLE_FIELD, pa.nulls(len(table), pa.string()))
                position += table.num_rows
        except DAMAGE:
            source.refuse_storage_errors()
        if position < stop:
            for table in file.tables_of_damaged(position, stop):
                source.refuse_storage_errors()
                yield table


def file_columns(parquet: pq.ParquetFile, columns: Iterable[str]) -> dict[str, str]:
    """Those of ``columns``, as a run carries them, that a file has; each with its name there."""
    present = parquet.schema_arrow.names
    run = EarlierRun.of(parquet.metadata)
    carried = {} if run is None else {new: name for name, new in run.carried(present).items()}
    names = {column: carried.get(column, column) for column in columns}
    return {column: name for column, name in names.items() if name in present}


class _ShardFile:
    """An open shard; rows are counted in the file, and tables have the columns of ``schema``."""

    def __init__(self, parquet: pq.ParquetFile, shard: Shard, schema: pa.Schema) -> None:
        self._parquet, self._shard, self._schema = parquet, shard, schema
        self._names = file_columns(parquet, schema.names)
        self._of_folders = folder_columns(shard.name, set(schema.names) - set(self._names))

    def tables(self, start: int, stop: int) -> Iterator[pa.Table]:
        """The rows ``start`` to ``stop``; raises one of `DAMAGE`."""
        sources = self._source_rows()
        groups = _row_groups(self._parquet, start, stop)
        position = groups[0][1] if groups else 0
        columns = list(self._names.values())
        for batch in self._parquet.iter_batches(ROWS_A_BATCH, [g for g, _ in groups], columns):
            low, high = max(start - position, 0), min(stop - position, batch.num_rows)
            if low < high:
                table = pa.Table.from_batches([batch.slice(low, high - low)])
                yield self._as_carried(table, position + low, sources)
            position += batch.num_rows
            if position >= stop:
                return

    def tables_of_damaged(self, start: int, stop: int) -> Iterator[pa.Table]:
        """The same with `UNREADABLE_COLUMN`; each column is read by itself."""
        try:
            sources = self._source_rows()
        except DAMAGE:
            sources = None
        present = {self._names[f.name]: f.type for f in self._schema if f.name in self._names}
        for group, first in _row_groups(self._parquet, start, stop):
            rows = self._parquet.metadata.row_group(group).num_rows
            columns = [
                _column(self._parquet, group, pa.field(name, type_), rows)
                for name, type_ in present.items()
            ]
            for begin in range(0, rows, ROWS_A_BATCH):
                end = min(begin + ROWS_A_BATCH, rows)
                read = {n: next(column) for n, column in zip(present, columns, strict=True)}
                values = pa.table({name: array for name, (array, _) in read.items()})
                problems = [f"column {name}: {why}" for name, (_, why) in read.items() if why]
                path = self._shard.path
                error = f"{path} is damaged, {'; '.join(problems)}" if problems else None
                low, high = max(start - first - begin, 0), min(stop - first, end) - begin
                if low < high:
                    table = self._as_carried(values, first + begin, sources)
                    errors = pa.array([error] * (end - begin), pa.string())
                    yield table.append_column(UNREADABLE_FIELD, errors).slice(low, high - low)

    def _source_rows(self) -> SourceRows | None:
        """What makes the column `SOURCE_ROW`, if that is wanted; raises one of `DAMAGE`."""
        if SOURCE_ROW not in self._schema.names:
            return None
        if not _is_text(self._schema.field(SOURCE_ROW).type):
            return None  # a column of the user's, as any other
        return SourceRows(self._parquet, self._shard.name)

    def _as_carried(self, table: pa.Table, start: int, sources: SourceRows | None) -> pa.Table:
        """``table``, the rows of the file from ``start`` on, with the columns of the schema."""
        columns = {column: table[name] for column, name in self._names.items()}
        for name, value in self._of_folders.items():
            columns[name] = pa.array([value] * table.num_rows, pa.string())
        if sources is not None:
            columns[SOURCE_ROW] = sources.column(table, start)
        if not columns:  # a table without columns has no rows
            return pa.table([pa.nulls(table.num_rows, f.type) for f in self._schema], self._schema)
        return conform(pa.table(columns), self._schema)


def _is_text(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _column(
    parquet: pq.ParquetFile, group: int, field: pa.Field, rows: int
) -> Iterator[tuple[pa.Array, str | None]]:
    """One column of a row group, `ROWS_A_BATCH` rows at a time; nulls and why from damage on."""
    position, reason = 0, "it ends early"
    try:
        for batch in parquet.iter_batches(ROWS_A_BATCH, [group], [field.name]):
            expected = min(ROWS_A_BATCH, rows - position)
            if batch.num_rows != expected:
                break
            array = cast(batch[field.name], field.type)
            yield array, None
            position += expected
    except DAMAGE as error:
        reason = first_line(error)
    while position < rows:
        expected = min(ROWS_A_BATCH, rows - position)
        yield pa.nulls(expected, field.type), reason
        position += expected


def read_bundle(
    input_url: str, bundle: Sequence[Range], samples: tuple[int, ...], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows to do of ``bundle``, as tables of ``schema`` with the provenance columns.

    ``bundle``: ranges, those of one part side by side. ``samples``: those of each row, for ranges
    without picks. ``schema``: as `pipeline.schema.with_origin` makes it. Raises as `read_rows`.
    """
    prompts = pa.schema([field for field in schema if field.name not in RESERVED_COLUMNS])
    # All ranges of a part in one read: every read decodes its first row group from the start.
    for part, group in groupby(bundle, key=lambda piece: piece.part):
        pieces = list(group)
        part_text, row = str(PartRef.of(part)), pieces[0].start
        requested = {
            number: values
            for piece in pieces
            for number, values in _requested(piece, samples).items()
        }
        for table in read_rows(input_url, Range(part, row, pieces[-1].stop), prompts):
            numbers = [n for n in range(row, row + table.num_rows) if n in requested]
            if numbers:
                chosen = table.take([number - row for number in numbers])
                origins = zip(*((part_text, n, *requested[n]) for n in numbers), strict=True)
                columns = [pa.array(c, f.type) for c, f in zip(origins, ORIGIN_FIELDS, strict=True)]
                *values, unreadable = chosen.columns
                yield pa.table([*values, *columns, unreadable], schema=schema)
            row += table.num_rows


def _requested(
    piece: Range, samples: tuple[int, ...]
) -> dict[int, tuple[tuple[int, ...], int, int]]:
    """By row to do: its samples, and the start and stop of the rows that it accounts for."""
    if piece.picks is None:
        return {row: (samples, row, row + 1) for row in range(piece.start, piece.stop)}
    borders = [piece.start, *(row for row, _ in piece.picks[1:]), piece.stop]
    return {
        row: (chosen, borders[i], borders[i + 1]) for i, (row, chosen) in enumerate(piece.picks)
    }


def _row_groups(parquet: pq.ParquetFile, start: int, stop: int) -> list[tuple[int, int]]:
    """The row groups with rows ``start`` to ``stop``, each with the number of its first row."""
    groups, position = list[tuple[int, int]](), 0
    for i in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(i).num_rows
        if position < stop and position + rows > start:
            groups.append((i, position))
        position += rows
    return groups


class _Source:
    """A file of the storage as Arrow reads it; remembers if the storage failed, not the file."""

    def __init__(self, file: Any, path: str) -> None:
        self._file, self._path = file, path
        self._error: Exception | None = None

    def read(self, size: int = -1) -> Any:
        """The next bytes."""
        try:
            return self._file.read(size)
        except Exception as error:
            self._error = error
            raise

    def refuse_storage_errors(self) -> None:
        """Raise `StorageError` if a read has failed."""
        if self._error is not None:
            raise StorageError(f"can't read {self._path}: {first_line(self._error)}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def _opened(store: Storage, shard: Shard) -> Iterator[_Source]:
    """The file of a shard; raises `InputError` if it is not the one that was planned."""
    try:
        file = store.fs.open(shard.path, "rb")
    except FileNotFoundError:
        raise InputError(
            f"{shard.path} is not there any more; put it back, or start the run again without it"
        ) from None
    except OSError as error:
        raise StorageError(f"can't read {shard.path}: {first_line(error)}") from None
    with file:
        source = _Source(file, shard.path)
        size = file.seek(0, 2)
        if size != shard.size:
            raise _changed(shard, f"it has {size:,} bytes, not {shard.size:,}")
        file.seek(0)
        yield source


def _parquet(source: _Source, shard: Shard) -> pq.ParquetFile:
    try:
        parquet = pq.ParquetFile(source, page_checksum_verification=True)
    except DAMAGE as error:
        source.refuse_storage_errors()
        raise _changed(shard, first_line(error)) from None
    rows = parquet.metadata.num_rows
    if rows != shard.file_rows:
        raise _changed(shard, f"it has {rows:,} rows, not {shard.file_rows:,}")
    return parquet


def _changed(shard: Shard, how: str) -> InputError:
    return InputError(
        f"{shard.path} has changed since the run began ({how}); put the old file back, then the "
        "same command continues"
    )
