"""Merge fragments into one stream of rows in order, and into a finished part.

Everything is a stream of tables, so that a part may exceed the memory.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.layout import JournalEntry
from pipeline.output.parts import Tables, damage_named
from pipeline.planning import PartRef, gaps
from pipeline.schema import (
    ORIGIN_COLUMNS,
    ROW_COLUMN,
    START_COLUMN,
    STOP_COLUMN,
    conform,
    row_numbers,
)

Rows = tuple[int, int]
ReadAll = Callable[[Iterable[str]], Iterable[bytes]]
EMPTY = pa.table({ROW_COLUMN: pa.array([], pa.int64())})


def fragment_tables(entries: Iterable[JournalEntry], read: ReadAll) -> Iterator[pa.Table]:
    """The traces of fragments in row order, with their row numbers; each row once.

    ``read``: returns the bytes of files. Raises `FileNotFoundError` if a fragment has been removed,
    `OutputError` if one is damaged.
    """
    pieces = list(_pieces(entries))
    names = [entry.file.name for entry, _, _ in pieces]
    for data, (entry, low, high) in zip(read(names), pieces, strict=True):
        with damage_named(entry.file.name):
            table = pq.read_table(BytesIO(data), page_checksum_verification=True)
        begin, end = np.searchsorted(table[ROW_COLUMN].to_numpy(), (low, high)).tolist()
        yield table.slice(begin, end - begin)


def _pieces(entries: Iterable[JournalEntry]) -> Iterator[tuple[JournalEntry, int, int]]:
    """Which rows to take from which fragment, in row order.

    Fragments overlap if a writer slept before its write while others did its rows. Of two with the
    same row, the one that was there first counts: its trace may have been read already.
    """
    for overlapping in _clusters(entries):
        taken = list[tuple[int, int]]()
        pieces = list[tuple[int, int, JournalEntry]]()
        for entry, rows in sorted(overlapping, key=lambda each: each[0].file.created):
            pieces += [(low, high, entry) for low, high in gaps(*rows, taken)]
            taken.append(rows)
        for low, high, entry in sorted(pieces, key=lambda piece: piece[0]):
            yield entry, low, high


def _clusters(entries: Iterable[JournalEntry]) -> Iterator[list[tuple[JournalEntry, Rows]]]:
    """The fragments by row, in lists of those that overlap."""
    fragments = [(entry, entry.rows) for entry in entries if entry.rows is not None]
    cluster, end = list[tuple[JournalEntry, Rows]](), 0
    for entry, rows in sorted(fragments, key=lambda each: each[1]):
        if cluster and rows[0] >= end:
            yield cluster
            cluster = []
        cluster.append((entry, rows))
        end = max(end, rows[1])
    if cluster:
        yield cluster


def with_spans(rows: pa.Table) -> tuple[pa.Table, list[tuple[int, int]]]:
    """``rows`` without provenance but the row number; and the rows that each accounts for."""
    spans = list(zip(rows[START_COLUMN].to_pylist(), rows[STOP_COLUMN].to_pylist(), strict=True))
    return rows.drop_columns([name for name in ORIGIN_COLUMNS if name != ROW_COLUMN]), spans


def outside(rows: pa.Table, ranges: Iterable[tuple[int, int]]) -> pa.BooleanArray:
    """Whether each of ``rows`` lies outside all ``ranges``: shape (rows,)."""
    numbers = rows[ROW_COLUMN].to_numpy()
    is_outside = np.ones(len(numbers), bool)
    for start, stop in ranges:
        is_outside &= (numbers < start) | (numbers >= stop)
    return pa.array(is_outside)


def interleaved(tables: Iterable[pa.Table], more: pa.Table) -> Iterator[pa.Table]:
    """``tables`` with the traces of ``more`` between them, in row order.

    Both are sorted by row number, and no row of ``more`` lies within one of ``tables``.
    """
    numbers, index = more[ROW_COLUMN].to_numpy(), 0
    for table in tables:
        if table.num_rows:
            begin, index = index, int(np.searchsorted(numbers, table[ROW_COLUMN][0].as_py()))
            yield more.slice(begin, index - begin)
        yield table
    yield more.slice(index)


class _Cursor:
    """Tables in row order, taken a few rows at a time."""

    def __init__(self, tables: Tables) -> None:
        self._tables, self._next = iter(tables), EMPTY

    def through(self, row: int) -> Iterator[pa.Table]:
        """The traces of the rows up to ``row`` that were not taken before."""
        while self._next is not None:
            numbers = self._next[ROW_COLUMN].to_numpy()
            end = int(np.searchsorted(numbers, row, side="right"))
            yield self._next.slice(0, end)
            if end < len(numbers):
                self._next = self._next.slice(end)
                return
            self._next = next(self._tables, None)


def part_groups(file: IO[bytes], part: PartRef, schema: pa.Schema, sample: str) -> Tables:
    """The traces of a finished part as ``schema``, a row group at a time, with their row numbers.

    ``sample``: the name of the sample column. Tables hold whole rows. Raises `OutputError` if the
    part is damaged.
    """
    with damage_named(part.name):
        parquet = pq.ParquetFile(file, page_checksum_verification=True)
        numbers = row_numbers(parquet.read([sample])[sample].to_numpy(), part.start)
    with_rows = schema.append(pa.field(ROW_COLUMN, pa.int64()))
    held, end = with_rows.empty_table(), 0
    for group in range(parquet.num_row_groups):
        with damage_named(part.name):
            table = parquet.read_row_group(group)
        begin, end = end, end + table.num_rows
        table = table.append_column(ROW_COLUMN, pa.array(numbers[begin:end], pa.int64()))
        held = pa.concat_tables([held, conform(table, with_rows)])
        # The last row of a group may go on in the next one.
        last_begins = np.searchsorted(held[ROW_COLUMN].to_numpy(), numbers[end - 1])
        cut = held.num_rows if end == len(numbers) else int(last_begins)
        yield held.slice(0, cut)
        held = held.slice(cut)


def merged(old: Tables, updates: Tables, sample: str, is_retry: bool) -> Tables:
    """The traces of ``old``, a finished part, with the ``updates`` of a pass, in row order.

    Both: tables of whole rows in row order, with their row numbers. ``sample``: the name of the
    sample column. The traces of a retry replace those with the same row and sample; a top-up only
    adds.
    """
    new = _Cursor(updates)
    for table in old:
        if table.num_rows:
            last = table[ROW_COLUMN][-1].as_py()
            newer = [conform(each, table.schema) for each in new.through(last) if each.num_rows]
            tables = [*newer, table] if is_retry else [table, *newer]
            yield _combined(tables, sample) if newer else table


def _combined(tables: Sequence[pa.Table], sample: str) -> pa.Table:
    """The traces of ``tables`` by row and sample; of two with the same, the first table's."""
    both = pa.concat_tables(tables)
    order = pc.sort_indices(both, [(ROW_COLUMN, "ascending"), (sample, "ascending")])
    keys = list(zip(both[ROW_COLUMN].to_pylist(), both[sample].to_pylist(), strict=True))
    first: dict[tuple[int, int], int] = {}
    for i in order.to_pylist():  # the sort may swap equal keys
        first[keys[i]] = min(i, first.get(keys[i], i))
    return both.take(list(first.values()))
