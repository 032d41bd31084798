"""A pilot: some rows spread over the whole run, done first, and what came of them."""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.findings import known_columns
from pipeline.ledger import Ledger
from pipeline.plan import Part, Range
from pipeline.schema import ROW_COLUMN

if TYPE_CHECKING:
    from pipeline.flow import Job

LOOKED_AT = (
    "sample", "state", "closed_by", "prompt_tokens", "think_tokens", "answer_tokens",
    "wasted_tokens", "error",
)  # fmt: skip


def spread(parts: Sequence[Part], rows: int) -> tuple[Range, ...]:
    """``rows`` rows (all, if there are fewer), one from each of as many equal stretches of the run.

    Drawn at random, but of the same parts always the same.
    """
    ends = list(accumulate(part.rows for part in parts))
    whole = ends[-1] if ends else 0
    rows, rng = min(rows, whole), random.Random(0)
    chosen = []
    for i in range(rows):
        number = rng.randrange(i * whole // rows, (i + 1) * whole // rows)
        part = parts[bisect_right(ends, number)]
        row = part.start + number - (ends[bisect_right(ends, number)] - part.rows)
        chosen.append(Range(part, row, row + 1))
    return tuple(chosen)


def still_to_do(chosen: Iterable[Range], todo: Iterable[Range]) -> tuple[Range, ...]:
    """Those of ``chosen``, single rows, that are in ``todo``."""
    left: dict[str, list[Range]] = {}
    for piece in todo:
        left.setdefault(piece.part.name, []).append(piece)
    return tuple(
        row
        for row in chosen
        if any(piece.start <= row.start < piece.stop for piece in left.get(row.part.name, ()))
    )


def traces_of(job: "Job", chosen: Iterable[Range]) -> Iterator[list[dict[str, Any]]]:
    """The traces of each chosen row that is durable, without their texts; in order."""
    contents = job.ledger.contents()
    done, journal = contents.parts(), contents.journal.get(0, {})
    for part, pieces in groupby(chosen, key=lambda piece: piece.part):
        wanted = {piece.start for piece in pieces}
        if part.name in done:
            tables: Iterable[pa.Table] = [_of_part(job.ledger, part, job.names)]
        else:
            files = [
                entry.file.name
                for entry in journal.get(part.name, ())
                if entry.rows and any(entry.rows[0] <= row < entry.rows[1] for row in wanted)
            ]
            tables = map(_of_fragment(job.names), job.ledger.store.read_all(files))
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
