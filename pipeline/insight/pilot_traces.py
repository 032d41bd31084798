"""The traces of a pilot's rows, read from parts and fragments."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.prepare import PreparedRun
from pipeline.output.ledger import Ledger
from pipeline.output.parts import known_columns
from pipeline.planning import Part, Range
from pipeline.schema import ROW_COLUMN, row_numbers

# All that an estimate needs; texts stay on disk.
COLUMNS = (
    "sample", "state", "closed_by", "prompt_tokens", "think_tokens", "answer_tokens",
    "wasted_tokens", "asked_tokens", "error", "control", "probe_tokens", "early_tokens",
)  # fmt: skip


def traces_of(prepared: PreparedRun, chosen: Iterable[Range]) -> Iterator[list[dict[str, Any]]]:
    """The traces of each durable row in ``chosen``, in order of rows, as values of `COLUMNS`.

    ``chosen``: ranges of one row each, in order.
    """
    listing = prepared.ledger.listing()
    finished, journal = listing.finished_parts(), listing.journal.get(0, {})
    for part, ranges in groupby(chosen, key=lambda one: one.part):
        wanted = {one.start for one in ranges}
        if part.name in finished:
            tables: Iterable[pa.Table] = [_read_part(prepared.ledger, part, prepared.names)]
        else:
            files = [
                entry.file.name
                for entry in journal.get(part.name, ())
                if entry.rows and any(entry.rows[0] <= row < entry.rows[1] for row in wanted)
            ]
            tables = map(_fragment_reader(prepared.names), prepared.ledger.store.read_all(files))
        by_row: dict[int, list[dict[str, Any]]] = {}
        for table in tables:
            for trace in table.to_pylist():
                if trace[ROW_COLUMN] in wanted:
                    by_row.setdefault(trace[ROW_COLUMN], []).append(trace)
        yield from (by_row[row] for row in sorted(by_row))


def _read_part(ledger: Ledger, part: Part, names: Mapping[str, str]) -> pa.Table:
    with ledger.store.open(part.name) as file:
        table = known_columns(pq.ParquetFile(file), names, COLUMNS)
    rows = row_numbers(table["sample"].to_numpy(), part.start)
    return table.append_column(ROW_COLUMN, pa.array(rows))


def _fragment_reader(names: Mapping[str, str]) -> Callable[[bytes], pa.Table]:
    def read(data: bytes) -> pa.Table:
        file = pq.ParquetFile(BytesIO(data))
        rows = file.read([ROW_COLUMN])[ROW_COLUMN]
        return known_columns(file, names, COLUMNS).append_column(ROW_COLUMN, rows)

    return read
