"""The traces of a pass context to the rows that are copies, when those they come from are durable.

One task makes all copies of some parts, so that each part that lacks only these is finished by it,
at once. It reads each part that holds a source of its copies once.
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

from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.execution.cluster import results
from pipeline.execution.context_tiers import divide
from pipeline.execution.sink import compared
from pipeline.input.shards import read_bundle
from pipeline.output.ledger import Ledger
from pipeline.output.parts import fragment_tables
from pipeline.planning import Part, PartRef, Pass, Range
from pipeline.prompts.columns import PromptColumns
from pipeline.schema import ROW_COLUMN, SAMPLES_COLUMN, conform, trace_fields, with_origin
from pipeline.storage import Storage

TRACES_A_TASK = 8192  # which it holds: some hundred MB

Place = tuple[Part, int]


@dataclass(frozen=True)
class CopyContext:
    """What tasks are told of a pass: how prompts are made, what its output is to be, and where."""

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    run_pass: Pass
    traces: pa.Schema
    metadata: Mapping[str, Any]
    output: str


class RowIndex:
    """The parts and row numbers of all rows of ``pieces``, by the row's index in these."""

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
    """The copies of one part, rows of ``pieces``; ``sources``: the place of each one's source."""

    pieces: list[Range]
    sources: list[Place]


@dataclass(frozen=True)
class Copies:
    """Which rows of a pass are copies, and of which.

    ``copied``: a boolean array that says it of each row of ``todo``; ``sources``: an array with the
    index in ``places`` of each copy's source, which below ``done`` is durable already.
    """

    context: CopyContext
    todo: tuple[Range, ...] = ()
    copied: Any = ()
    sources: Any = ()
    places: RowIndex | None = None
    done: int = 0

    def write(self, ready: bool | None = None) -> None:
        """Finish the parts that have copies; all their other rows are durable. Can be repeated.

        ``ready``: only those of which it is so before anything is generated, or only the others.
        """
        if len(self.sources):
            context = ray.put(self.context)
            for _ in results([_fill.remote(context, tasks) for tasks in self.bundles(ready)]):
                pass

    def bundles(self, ready: bool | None = None) -> Iterator[list[CopyTask]]:
        """The copies by part, as many parts together as one task can hold the traces of."""
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


def fill(context: CopyContext, tasks: Sequence[CopyTask]) -> None:
    """Finish the parts of ``tasks``; raises `OutputError` if a source is not durable."""
    ledger = Ledger(Storage(context.output))
    wanted: dict[Part, set[int]] = {}
    for task in tasks:
        for part, row in task.sources:
            wanted.setdefault(part, set()).add(row)
    found, keys = list[pa.Table](), list[tuple[str, int]]()
    for part, rows in wanted.items():
        found.append(traces_of(ledger, context, part, sorted(rows)))
        keys += [(part.name, row) for row in found[-1][ROW_COLUMN].to_pylist()]
    indices: dict[tuple[str, int], list[int]] = {}
    for index, key in enumerate(keys):
        indices.setdefault(key, []).append(index)
    traces = pa.concat_tables(found).drop_columns([ROW_COLUMN])
    for task in tasks:
        copies = pa.concat_tables(_copied(context, task, traces, indices))
        ref = PartRef.of(task.pieces[0].part)
        ledger.commit(ref, context.run_pass, context.traces, context.metadata, copies)


def traces_of(ledger: Ledger, context: CopyContext, part: Part, rows: Sequence[int]) -> pa.Table:
    """Our columns of ``rows`` (ascending) of a part as this pass made them, with the row numbers.

    They are in the journal until the part is through the pass, which may be just now.
    """
    output, ref = context.config.output, PartRef.of(part)
    fields = trace_fields(output.rename, output.raw_text)
    # With offsets of 64 bits: pyarrow can't take from more than 2 GB of text otherwise.
    large = [f.with_type(pa.large_string()) if f.type == pa.string() else f for f in fields]
    schema = pa.schema([*large, pa.field(ROW_COLUMN, pa.int64())])
    found = _from_journal(ledger, ref, context.run_pass.number, rows, schema)
    if len(pc.unique(found[ROW_COLUMN])) == len(rows):
        return found
    if not ledger.is_done(ref, context.run_pass.number):
        raise OutputError(f"{part.name} lacks rows that others were to be copied from; run again")
    with ledger.store.open(part.name) as file:
        sample = context.metadata["columns"]["sample"]
        return _from_part(pq.ParquetFile(file), ref, rows, schema, sample)


def _from_journal(
    ledger: Ledger, ref: PartRef, number: int, rows: Sequence[int], schema: pa.Schema
) -> pa.Table:
    """The columns of ``schema`` of those of ``rows`` that fragments have."""
    entries = [
        entry for entry in ledger.fragments(ref, number)
        if entry.rows and bisect_left(rows, entry.rows[0]) < bisect_left(rows, entry.rows[1])
    ]  # fmt: skip
    wanted, found = pa.array(rows, pa.int64()), [schema.empty_table()]
    try:
        for table in fragment_tables(entries, ref.start, ledger.store.read_all):
            found.append(conform(table, schema).filter(pc.is_in(table[ROW_COLUMN], wanted)))
    except FileNotFoundError:  # the part has been finished, and they were removed
        pass
    return pa.concat_tables(found)


def _from_part(
    parquet: pq.ParquetFile, ref: PartRef, rows: Sequence[int], schema: pa.Schema, sample: str
) -> pa.Table:
    """The columns of ``schema`` of ``rows`` of a finished part; row groups without are not read."""
    begins = parquet.read([sample])[sample].to_numpy() == 0
    numbers = ref.start - 1 + np.cumsum(begins)
    wanted, position = np.isin(numbers, rows), 0
    found = []
    for group in range(parquet.num_row_groups):
        here = slice(position, position + parquet.metadata.row_group(group).num_rows)
        position = here.stop
        if wanted[here].any():
            table = parquet.read_row_group(group, schema.names)
            table = table.append_column(ROW_COLUMN, pa.array(numbers[here], pa.int64()))
            found.append(conform(table, schema).filter(pa.array(wanted[here])))
    return pa.concat_tables(found)


def _copied(
    context: CopyContext,
    task: CopyTask,
    traces: pa.Table,
    indices: Mapping[tuple[str, int], Sequence[int]],
) -> Iterator[pa.Table]:
    """The copies of a part; ``indices``: which ``traces`` are those of a part's row."""
    names, shard = context.metadata["columns"], task.pieces[0].part.shard.name
    numbers = traces[names["sample"]].to_pylist()
    origins = traces[names["duplicate_of"]].to_pylist()
    sources, schema = iter(task.sources), with_origin(context.prompts)
    for table in read_bundle(
        context.config.input.path, task.pieces, context.run_pass.samples, schema
    ):
        copies, taken, named = list[int](), list[int](), list[str | None]()
        rows, wanted = (table[name].to_pylist() for name in (ROW_COLUMN, SAMPLES_COLUMN))
        for i in range(table.num_rows):
            part, row = next(sources)
            own, source = f"{shard}:{rows[i]}", f"{part.shard.name}:{row}"
            for j in indices[part.name, row]:
                if numbers[j] in wanted[i]:
                    copies.append(i)
                    taken.append(j)
                    origin = origins[j] or source
                    # A part that was lost gets back from a copy what was its own.
                    named.append(None if origin == own else origin)
        theirs, ours = table.take(copies), traces.take(taken)
        both = dict(zip(theirs.column_names, theirs.columns, strict=True))
        both |= zip(ours.column_names, ours.columns, strict=True)
        both[names["duplicate_of"]] = pa.chunked_array([pa.array(named, pa.string())])
        yield compared(pa.table(both), context.config.answer, names)


@ray.remote
def _fill(context: CopyContext, tasks: list[CopyTask]) -> None:
    fill(context, tasks)
