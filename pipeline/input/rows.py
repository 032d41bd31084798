"""Read the rows of shards; what a damaged file breaks becomes rows that say so."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, StorageError, first_line
from pipeline.planning import PartRef, Range, Shard
from pipeline.schema import (
    ORIGIN_FIELDS,
    RESERVED_COLUMNS,
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
    shard, position = piece.part.shard, piece.start
    with _opened(Storage(input_url), shard) as source:
        parquet = _parquet(source, shard)
        try:
            for table in _tables(parquet, piece, schema):
                yield table.append_column(UNREADABLE_FIELD, pa.nulls(len(table), pa.string()))
                position += table.num_rows
        except DAMAGE:
            source.refuse_storage_errors()
        if position < piece.stop:
            rest = Range(piece.part, position, piece.stop)
            for table in _tables_of_damaged(parquet, rest, schema):
                source.refuse_storage_errors()
                yield table


def _tables(parquet: pq.ParquetFile, piece: Range, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of ``piece`` as tables of ``schema``; raises one of `DAMAGE`."""
    groups = _row_groups(parquet, piece.start, piece.stop)
    position = groups[0][1] if groups else 0
    for batch in parquet.iter_batches(ROWS_A_BATCH, [group for group, _ in groups], schema.names):
        low, high = max(piece.start - position, 0), min(piece.stop - position, batch.num_rows)
        position += batch.num_rows
        if low < high:
            yield conform(pa.Table.from_batches([batch.slice(low, high - low)]), schema)
        if position >= piece.stop:
            return


def _tables_of_damaged(
    parquet: pq.ParquetFile, piece: Range, schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows of ``piece``, with `UNREADABLE_COLUMN`: each column is read by itself."""
    path = piece.part.shard.path
    for group, first in _row_groups(parquet, piece.start, piece.stop):
        rows = parquet.metadata.row_group(group).num_rows
        present = [field for field in schema if field.name in parquet.schema_arrow.names]
        columns = [_column(parquet, group, field, rows) for field in present]
        for start in range(0, rows, ROWS_A_BATCH):
            stop = min(start + ROWS_A_BATCH, rows)
            read = {f.name: next(column) for f, column in zip(present, columns, strict=True)}
            values = {name: array for name, (array, _) in read.items()}
            problems = [f"column {name}: {why}" for name, (_, why) in read.items() if why]
            error = f"{path} is damaged, {'; '.join(problems)}" if problems else None
            low, high = max(piece.start - first - start, 0), min(piece.stop - first, stop) - start
            if low < high:
                table = conform(pa.table(values), schema)
                errors = pa.array([error] * (stop - start), pa.string())
                yield table.append_column(UNREADABLE_FIELD, errors).slice(low, high - low)


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
    if parquet.metadata.num_rows != shard.rows:
        raise _changed(shard, f"it has {parquet.metadata.num_rows:,} rows, not {shard.rows:,}")
    return parquet


def _changed(shard: Shard, how: str) -> InputError:
    return InputError(
        f"{shard.path} has changed since the run began ({how}); put the old file back, then the "
        "same command continues"
    )
