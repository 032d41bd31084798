"""The last rows of a run go longest first, where something says how long their traces will be.

A long trace that begins last is what a whole cluster waits for. In what order all the others run
matters to nobody, so that they keep the shards' order, in which they make few files.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.planning import PartRef
from pipeline.schema import PART_COLUMN, ROW_COLUMN
from pipeline.storage import Storage

# So many times the slots of all engines: fewer leave a tail, more gain nothing.
LONGEST_FIRST_WAVES = 10
ROWS_A_TABLE = 1024


@dataclass(frozen=True)
class ByColumn:
    """Lengths from a column of the input: an earlier run's tokens, or any guess."""

    column: str

    def lengths(self, rows: pa.Table) -> Any:
        """An array with the expected tokens of each row; NaN where nothing is known."""
        return rows[self.column].cast(pa.float64()).to_numpy()


@dataclass(frozen=True)
class ByTraces:
    """Lengths from the traces that rows have already, of a top-up: what their samples took.

    ``url``: of the output. ``names``: our column: its name in this run.
    """

    url: str
    names: Mapping[str, str]

    def lengths(self, rows: pa.Table) -> Any:
        """An array with the mean tokens of each row's traces."""
        store, known = Storage(self.url), dict[tuple[str, int], float]()
        for key in pc.unique(rows[PART_COLUMN]).to_pylist():
            known.update(self._of_part(store, PartRef.parse(key), key))
        keys = zip(rows[PART_COLUMN].to_pylist(), rows[ROW_COLUMN].to_pylist(), strict=True)
        return np.array([known.get(key, np.nan) for key in keys])

    def _of_part(
        self, store: Storage, ref: PartRef, key: str
    ) -> Iterator[tuple[tuple[str, int], float]]:
        names = [self.names[name] for name in ("sample", "think_tokens", "answer_tokens")]
        with store.open(ref.name) as file:
            samples, think, answer = (
                column.to_numpy() for column in pq.read_table(file, columns=names).select(names)
            )
        row = np.cumsum(samples == 0) - 1
        means = np.bincount(row, think + answer) / np.bincount(row)
        for number, mean in enumerate(means.tolist(), ref.start):
            yield (key, number), mean


Lengths = ByColumn | ByTraces


def check_column(schema: pa.Schema, column: str | None) -> None:
    """Raise `InputError` unless ``column``, where one is named, is one of numbers."""
    if column is None:
        return
    if column not in schema.names:
        raise InputError(
            f"input.length_column is {column}, but the input has only the columns "
            f"{', '.join(schema.names)}"
        )
    kind = schema.field(column).type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InputError(f"input.length_column {column} is of type {kind}; it must be a number")


def longest_first(tables: Iterable[pa.Table], lengths: Lengths) -> Iterator[pa.Table]:
    """All rows of ``tables``, longest first; those of which nothing is known as the mean."""
    rows: Sequence[pa.Table] = list(tables)
    if not rows:
        return
    whole = pa.concat_tables(rows)
    expected = lengths.lengths(whole)
    known = expected[np.isfinite(expected)]
    expected = np.where(np.isfinite(expected), expected, known.mean() if len(known) else 0)
    order = np.argsort(-expected, kind="stable")
    for start in range(0, len(order), ROWS_A_TABLE):
        yield whole.take(order[start : start + ROWS_A_TABLE])
