"""What came of a pilot's rows."""

from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.prepare import PreparedRun
from pipeline.output.ledger import Ledger
from pipeline.output.parts import known_columns
from pipeline.planning import Part, Range
from pipeline.schema import ROW_COLUMN

LOOKED_AT = (
    "sample", "state", "closed_by", "prompt_tokens", "think_tokens", "answer_tokens",
    "wasted_tokens", "error",
)  # fmt: skip


def traces_of(prepared: PreparedRun, chosen: Iterable[Range]) -> Iterator[list[dict[str, Any]]]:
    """The traces of each chosen row that is durable, without their texts; in order."""
    listing = prepared.ledger.listing()
    done, journal = listing.finished_parts(), listing.journal.get(0, {})
    for part, pieces in groupby(chosen, key=lambda piece: piece.part):
        wanted = {piece.start for piece in pieces}
        if part.name in done:
            tables: Iterable[pa.Table] = [_of_part(prepared.ledger, part, prepared.names)]
        else:
            files = [
                entry.file.name
                for entry in journal.get(part.name, ())
                if entry.rows and any(entry.rows[0] <= row < entry.rows[1] for row in wanted)
            ]
            tables = map(_of_fragment(prepared.names), prepared.ledger.store.read_all(files))
        found: dict[int, list[dict[str, Any]]] = {}
        for table in tables:
            for trace in table.to_pylist():
                if trace[ROW_COLUMN] in wanted:
                    found.setdefault(trace[ROW_COLUMN], []).append(trace)
        yield from (found[row] for row in sorted(found))


def _of_part(ledger: Ledger, part: Part, names: Mapping[str, str]) -> pa.Table:
    with ledger.store.open(part.name) as file:
        table = known_columns(pq.ParquetFile(file), names, LOOKED_AT)
    row = np.cumsum(table["sample"].to_numpy() == 0) - 1 + part.start
    return table.append_column(ROW_COLUMN, pa.array(row))


def _of_fragment(names: Mapping[str, str]) -> Any:
    def read(data: bytes) -> pa.Table:
        file = pq.ParquetFile(BytesIO(data))
        rows = file.read([ROW_COLUMN])[ROW_COLUMN]
        return known_columns(file, names, LOOKED_AT).append_column(ROW_COLUMN, rows)

    return read
