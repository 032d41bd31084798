"""Order the last rows of a run longest first, if the lengths of their traces can be estimated.

A long trace that starts last keeps the whole cluster waiting. The order of all other rows does not
matter. They keep the order of the shards, which makes few files.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.planning import PartRef
from pipeline.schema import PART_COLUMN, ROW_COLUMN, row_numbers
from pipeline.storage import Storage

# The number of rows to order, in units of the slots of all engines. Fewer leave a tail; more gain
# nothing.
LONGEST_FIRST_WAVES = 10
ROWS_A_TABLE = 1024


@dataclass(frozen=True)
class ByColumn:
    """Lengths from an input column: the tokens of an earlier run, or any estimate."""

    column: str

    def lengths(self, rows: pa.Table) -> Any:
        """The expected tokens of each row: float array of shape (rows,), NaN if unknown."""
        return rows[self.column].cast(pa.float64(), safe=False).to_numpy()  # an order, no values


@dataclass(frozen=True)
class ByTraces:
    """Lengths from the traces that the rows of a top-up already have.

    ``url``: of the output. ``names``: the run's column name by our name.
    """

    url: str
    names: Mapping[str, str]

    def lengths(self, rows: pa.Table) -> Any:
        """The mean tokens of each row's traces: float array of shape (rows,), NaN if unknown."""
        store, means = Storage(self.url), dict[tuple[str, int], float]()
        for part in pc.unique(rows[PART_COLUMN]).to_pylist():
            means.update(self._means(store, part))
        keys = zip(rows[PART_COLUMN].to_pylist(), rows[ROW_COLUMN].to_pylist(), strict=True)
        return np.array([means.get(key, np.nan) for key in keys])

    def _means(self, store: Storage, key: str) -> Iterator[tuple[tuple[str, int], float]]:
        """The mean tokens of each row of the part ``key``, by part and row number."""
        part = PartRef.parse(key)
        names = [self.names[name] for name in ("sample", "think_tokens", "answer_tokens")]
        with store.open(part.name) as file:
            samples, think, answer = (
                column.to_numpy() for column in pq.read_table(file, columns=names).select(names)
            )
        index = row_numbers(samples, 0)
        means = np.bincount(index, think + answer) / np.bincount(index)
        for row, mean in enumerate(means.tolist(), part.start):
            yield (key, row), mean


Lengths = ByColumn | ByTraces


def check_column(schema: pa.Schema, column: str | None) -> None:
    """Raise `InputError` unless ``column`` is None or a column of numbers."""
    if column is None:
        return
    if column not in schema.names:
        raise InputError(
            f"input.length_column is {column}, but the input has only the columns "
            f"{', '.join(schema.names)}"
        )
    type_ = schema.field(column).type
    if not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        raise InputError(f"input.length_column {column} is of type {type_}; it must be a number")


def longest_first(tables: Iterable[pa.Table], lengths: Lengths) -> Iterator[pa.Table]:
    """All rows of ``tables``, longest first, in tables of `ROWS_A_TABLE` rows.

    Rows of unknown length are placed as if they had the mean length.
    """
    tables = list(tables)
    if not tables:
        return
    rows = pa.concat_tables(tables)
    expected = lengths.lengths(rows)
    known = expected[np.isfinite(expected)]
    expected = np.where(np.isfinite(expected), expected, known.mean() if len(known) else 0)
    order = np.argsort(-expected, kind="stable")
    for start in range(0, len(order), ROWS_A_TABLE):
        yield rows.take(order[start : start + ROWS_A_TABLE])
