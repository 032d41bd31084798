"""Copies the traces of a pass to duplicate rows, once the traces of their sources are durable.

One task makes all copies of some parts, and so finishes each part that lacks only copies at once.
It reads each part that holds sources once.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from pipeline.errors import OutputError
from pipeline.execution.cluster import results
from pipeline.execution.context_tiers import divide
from pipeline.execution.prepare import PassContext
from pipeline.execution.sink import compared
from pipeline.execution.task_deaths import ends_of, refuse_endless_deaths
from pipeline.input.rows import read_bundle
from pipeline.output.ledger import Ledger
from pipeline.output.merge import fragment_tables
from pipeline.planning import Part, PartRef, Range
from pipeline.schema import (
    ROW_COLUMN,
    SAMPLES_COLUMN,
    UNREADABLE_COLUMN,
    conform,
    row_numbers,
    with_origin,
)
from pipeline.storage import Storage

TRACES_A_TASK = 8192  # a task holds them in memory: some hundred MB

Place = tuple[Part, int]


class RowIndex:
    """Finds the part and number of a row of ``pieces`` by its index in them."""

    def __init__(self, pieces: Iterable[Range]) -> None:
        self._pieces = list(pieces)
        self._ends = np.cumsum([piece.rows for piece in self._pieces], dtype=np.int64)

    def __getitem__(self, index: int) -> Place:
        at = int(np.searchsorted(self._ends, index, side="right"))
        piece = self._pieces[at]
        nth = index - int(self._ends[at]) + piece.rows
        return piece.part, piece.start + nth if piece.picks is None else piece.picks[nth][0]


@dataclass(frozen=True)
class CopyTask:
    """The copies of one part: the rows of ``pieces``; ``sources``: part and row of each source."""

    pieces: list[Range]
    sources: list[Place]


@dataclass(frozen=True)
class Copies:
    """Which rows of a pass are copies, and their sources.

    ``copied``: a boolean array with a value for each row of ``todo``. ``sources``: an array with
    the index in ``places`` of each copy's source; sources below ``done`` are durable already.
    """

    context: PassContext
    todo: tuple[Range, ...] = ()
    copied: Any = ()
    sources: Any = ()
    places: RowIndex | None = None
    done: int = 0

    def write(self, ready: bool | None = None) -> None:
        """Finish the parts that have copies, when all their other rows are durable; repeatable.

        ``ready``: True for the parts that need no new trace, False for the others, None for all.
        """
        if len(self.sources):
            context = ray.put(self.context)
            for _ in results([_fill.remote(context, tasks) for tasks in self.bundles(ready)]):
                pass

    def bundles(self, ready: bool | None = None) -> Iterator[list[CopyTask]]:
        """The copies by part, in bundles of parts whose traces one task can hold."""
        assert self.places is not None
        bundle: list[CopyTask] = []
        row = copy = traces = 0
        for _, group in groupby(self.todo, key=lambda piece: piece.part.name):
            pieces = list(group)
            before, row = row, row + sum(piece.rows for piece in pieces)
            marks = self.copied[before:row]
            if marks.any():
                first, copy = copy, copy + int(marks.sum())
                is_ready = marks.all() and (self.sources[first:copy] < self.done).all()
                if ready is not None and is_ready != ready:
                    continue
                sources = [self.places[index] for index in self.sources[first:copy].tolist()]
                bundle.append(
                    CopyTask([p for is_copy, p in divide(pieces, marks) if is_copy], sources)
                )
                traces += len(sources) * len(self.context.run_pass.samples)
            if traces >= TRACES_A_TASK:
                yield bundle
                bundle, traces = [], 0
        if bundle:
            yield bundle


def fill(context: PassContext, tasks: Sequence[CopyTask]) -> None:
    """Finish the parts of ``tasks``; raises `OutputError` if a source is not durable."""
    ledger = Ledger(Storage(context.output))
    sources: dict[Part, set[int]] = {}
    for task in tasks:
        for part, row in task.sources:
            sources.setdefault(part, set()).add(row)
    tables, keys = list[pa.Table](), list[tuple[str, int]]()
    for part, rows in sources.items():
        tables.append(traces_of(ledger, context, part, sorted(rows)))
        keys += [(part.name, row) for row in tables[-1][ROW_COLUMN].to_pylist()]
    indices: dict[tuple[str, int], list[int]] = {}
    for index, key in enumerate(keys):
        indices.setdefault(key, []).append(index)
    traces = pa.concat_tables(tables).drop_columns([ROW_COLUMN])
    for task in tasks:
        copies = pa.concat_tables(_copied(context, task, traces, indices))
        ref = PartRef.of(task.pieces[0].part)
        ledger.commit(ref, context.run_pass, context.traces, context.metadata, copies)


def traces_of(ledger: Ledger, context: PassContext, part: Part, rows: Sequence[int]) -> pa.Table:
    """Our columns of ``rows`` (ascending) of a part as this pass made them, with the row numbers.

    They are in the journal until the pass finishes the part, which may happen meanwhile. Raises
    `OutputError` if a row is not durable.
    """
    ref, fields = PartRef.of(part), context.config.trace_fields
    # With offsets of 64 bits: pyarrow can't take from more than 2 GB of text otherwise.
    large = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in fields]
    schema = pa.schema([*large, pa.field(ROW_COLUMN, pa.int64())])
    traces = _from_journal(ledger, ref, context.run_pass.number, rows, schema)
    if len(pc.unique(traces[ROW_COLUMN])) == len(rows):
        return traces
    if not ledger.is_done(ref, context.run_pass.number):
        raise OutputError(f"{part.name} lacks rows that are the sources of copies; run again")
    with ledger.store.open(part.name) as file:
        sample = context.metadata["columns"]["sample"]
        return _from_part(pq.ParquetFile(file), ref, rows, schema, sample)


def _from_journal(
    ledger: Ledger, ref: PartRef, number: int, rows: Sequence[int], schema: pa.Schema
) -> pa.Table:
    """The columns of ``schema`` for the ``rows`` that are in fragments."""
    entries = [
        entry for entry in ledger.fragments(ref, number)
        if entry.rows and bisect_left(rows, entry.rows[0]) < bisect_left(rows, entry.rows[1])
    ]  # fmt: skip
    numbers, tables = pa.array(rows, pa.int64()), [schema.empty_table()]
    try:
        for table in fragment_tables(entries, ledger.store.read_all):
            tables.append(conform(table, schema).filter(pc.is_in(table[ROW_COLUMN], numbers)))
    except FileNotFoundError:  # the part was finished meanwhile, which removes its fragments
        pass
    return pa.concat_tables(tables)


def _from_part(
    parquet: pq.ParquetFile, ref: PartRef, rows: Sequence[int], schema: pa.Schema, sample: str
) -> pa.Table:
    """The columns of ``schema`` for ``rows`` of a finished part; skips row groups without them."""
    numbers = row_numbers(parquet.read([sample])[sample].to_numpy(), ref.start)
    requested, position = np.isin(numbers, rows), 0
    tables = []
    for group in range(parquet.num_row_groups):
        span = slice(position, position + parquet.metadata.row_group(group).num_rows)
        position = span.stop
        if requested[span].any():
            table = parquet.read_row_group(group, schema.names)
            table = table.append_column(ROW_COLUMN, pa.array(numbers[span], pa.int64()))
            tables.append(conform(table, schema).filter(pa.array(requested[span])))
    return pa.concat_tables(tables)


def _copied(
    context: PassContext,
    task: CopyTask,
    traces: pa.Table,
    indices: Mapping[tuple[str, int], Sequence[int]],
) -> Iterator[pa.Table]:
    """The copies of a part; ``indices``: by part name and row, its rows in ``traces``."""
    names, shard = context.metadata["columns"], task.pieces[0].part.shard.name
    numbers = traces[names["sample"]].to_pylist()
    origins = traces[names["duplicate_of"]].to_pylist()
    sources, schema = iter(task.sources), with_origin(context.prompts)
    for table in read_bundle(
        context.config.input.path, task.pieces, context.run_pass.samples, schema
    ):
        copy_rows, trace_rows = list[int](), list[int]()
        duplicate_of = list[str | None]()
        rows, samples = (table[name].to_pylist() for name in (ROW_COLUMN, SAMPLES_COLUMN))
        for i in range(table.num_rows):
            part, row = next(sources)
            this, source = f"{shard}:{rows[i]}", f"{part.shard.name}:{row}"
            for j in indices[part.name, row]:
                if numbers[j] in samples[i]:
                    copy_rows.append(i)
                    trace_rows.append(j)
                    origin = origins[j] or source
                    # The source of a copy may be lost, and get its traces back from the copy.
                    duplicate_of.append(None if origin == this else origin)
        prompts = table.drop_columns([UNREADABLE_COLUMN]).take(copy_rows)
        copied = traces.take(trace_rows)
        columns = dict(zip(prompts.column_names, prompts.columns, strict=True))
        columns |= zip(copied.column_names, copied.columns, strict=True)
        columns[names["duplicate_of"]] = pa.chunked_array([pa.array(duplicate_of, pa.string())])
        yield compared(pa.table(columns), context.config.answer, names, context.reference_kind)


@ray.remote
def _fill(context: PassContext, tasks: list[CopyTask]) -> None:
    refuse_endless_deaths(
        "copies duplicates to", lambda: ends_of(piece for task in tasks for piece in task.pieces)
    )
    fill(context, tasks)
