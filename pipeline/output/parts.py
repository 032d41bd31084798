"""Fragments to the Parquet file of a part, whose footer says what made it."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.answers.formats import answer_format
from pipeline.errors import OutputError
from pipeline.output.layout import JournalEntry
from pipeline.schema import ROW_COLUMN, TRACE_FIELDS, conform
from pipeline.storage import Storage

METADATA_KEY = b"qwq-batch"
TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens", "carried_tokens")
# A row group of a part: large enough to read well, small enough to hold in memory.
GROUP_ROWS, GROUP_BYTES = 1024, 64 * 2**20

ReadAll = Callable[[Iterable[str]], Iterable[bytes]]


def fragment_tables(
    entries: Iterable[JournalEntry], start: int, read: ReadAll
) -> Iterator[pa.Table]:
    """The rows of fragments in order, each once whatever overlaps; with their row numbers."""
    firsts, names = [start], []
    for entry in sorted(entries, key=lambda entry: entry.rows or (0, 0)):
        assert entry.rows is not None
        if entry.rows[1] > firsts[-1]:
            names.append(entry.file.name)
            firsts.append(entry.rows[1])
    for data, first in zip(read(names), firsts, strict=False):  # the last is where rows end
        table = pq.read_table(BytesIO(data))
        yield table.filter(pc.greater_equal(table[ROW_COLUMN], first))


def interleaved(tables: Iterable[pa.Table], more: pa.Table) -> Iterator[pa.Table]:
    """``tables``, and between them the rows of ``more``, which they lack; all in order of rows."""
    numbers, at = more[ROW_COLUMN].to_numpy(), 0
    for table in tables:
        if table.num_rows:
            before, at = at, int(np.searchsorted(numbers, table[ROW_COLUMN][0].as_py()))
            yield more.slice(before, at - before)
        yield table
    yield more.slice(at)


def with_updates(old: pa.Table, updates: pa.Table, start: int, sample: str) -> pa.Table:
    """``old`` (a part whose first row is number ``start``) with newer and additional traces.

    ``sample``: the name of that column. A row and sample in both is the newer's.
    """
    first = pc.equal(old[sample], 0).to_pylist()
    row, numbers = start - 1, []
    for begins in first:
        row += begins
        numbers.append(row)
    old = old.append_column(ROW_COLUMN, pa.array(numbers, pa.int64()))
    both = pa.concat_tables([conform(updates, old.schema), old])
    order = pc.sort_indices(both, [(ROW_COLUMN, "ascending"), (sample, "ascending")])
    keys = list(zip(both[ROW_COLUMN].to_pylist(), both[sample].to_pylist(), strict=True))
    # Of equal keys the lower index, so the newer, counts whatever order the sort gave them.
    newest: dict[tuple[int, int], int] = {}
    for i in order.to_pylist():
        newest[keys[i]] = min(i, newest.get(keys[i], i))
    return both.take(list(newest.values()))


def write_part(
    tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, Any]
) -> tuple[bytes, dict[str, Any]]:
    """The Parquet file of ``tables`` with counts in its footer; and these counts."""
    sink, summary_counts = BytesIO(), PartSummary(metadata["columns"])
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for group in _groups(tables):
            table = conform(_with_votes(group, metadata), schema)
            writer.write_table(table)
            summary_counts.add(table)
        writer.add_key_value_metadata(
            {METADATA_KEY.decode(): json.dumps({**metadata, "summary": summary_counts.summary})}
        )
    return sink.getvalue(), summary_counts.summary


def part_metadata(store: Storage, name: str) -> dict[str, Any]:
    """What a finished part says of its making: columns, settings, versions, passes, summary."""
    with store.open(name) as file:
        found = pq.read_metadata(file).metadata or {}
    if METADATA_KEY not in found:
        raise OutputError(f"{store.path(name)} was not written by qwq-batch")
    data: dict[str, Any] = json.loads(found[METADATA_KEY])
    return data


class PartSummary:
    """Counts of a part for reports. ``names``: our column: its name in this run.

    Of a trace that was copied from a duplicate, the tokens are counted there.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.summary: dict[str, Any] = {
            "rows": 0,
            "traces": 0,
            "states": {},
            "duplicates": 0,
            **dict.fromkeys(TOKEN_COLUMNS, 0),
        }

    def add(self, table: pa.Table) -> None:
        """Count the traces of ``table``."""
        states = self.summary["states"]
        self.summary["traces"] += table.num_rows
        self.summary["rows"] += pc.sum(pc.equal(table[self._names["sample"]], 0)).as_py() or 0
        for entry in table[self._names["state"]].value_counts().to_pylist():
            states[entry["values"]] = states.get(entry["values"], 0) + entry["counts"]
        generated = pc.is_null(table[self._names["duplicate_of"]])
        self.summary["duplicates"] += table.num_rows - pc.sum(generated).as_py()
        for key in TOKEN_COLUMNS:
            self.summary[key] += pc.sum(table[self._names[key]].filter(generated)).as_py() or 0


def _with_votes(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    """``table`` with what the samples of each row agree on; whole rows, with their numbers."""
    names, kind = metadata["columns"], metadata["settings"].get("answer.format", "text")
    answers = answer_format(kind)
    if not answers.is_parsed or not table.num_rows:
        return table
    rows, parsed = table[ROW_COLUMN].to_pylist(), table[names["parsed"]].to_pylist()
    by_row: dict[int, list[str | None]] = {}
    for row, value in zip(rows, parsed, strict=True):
        by_row.setdefault(row, []).append(value)
    votes = {row: answers.vote(values) for row, values in by_row.items()}
    columns = zip(*(votes[row] for row in rows), strict=True)
    for name, values in zip(("vote", "agreement"), columns, strict=True):
        at = table.column_names.index(names[name])
        field = table.schema.field(at)
        table = table.set_column(at, field, pa.array(values, field.type))
    return table


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Gather small tables into larger ones."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.concat_tables(held, promote_options="permissive")
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held, promote_options="permissive")


def known_columns(
    file: pq.ParquetFile, names: Mapping[str, str], wanted: Sequence[str]
) -> pa.Table:
    """The columns ``wanted`` of a part by our names; null where it is of a version without one."""
    there = [key for key in wanted if names.get(key) in file.schema_arrow.names]
    table = file.read([names[key] for key in there]).select([names[key] for key in there])
    fields = [field for field in TRACE_FIELDS if field.name in wanted]
    return conform(table.rename_columns(there), pa.schema(fields))
