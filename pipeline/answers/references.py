"""Reference answers: how a column of them is read, which is decided from a sample; no I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

# Characters of a reference in a message.
SHOWN = 60
# The setting of a run that holds the kind of its `Reading`.
REFERENCES = "answer.references"
# What data sets have in place of an answer.
_PLACEHOLDERS = frozenset({"", "nan", "<na>", "n/a", "null", "proof", "notfound", "not found"})


@dataclass(frozen=True)
class Reading:
    """How a column of references is read.

    ``kind``: among the ways of a format that has several, else empty. ``description``: for people,
    such as "letters A to D".
    """

    kind: str
    description: str


@dataclass(frozen=True)
class ReferenceSample:
    """What a sample of a reference column says about all of it.

    ``rows``: in the sample. ``missing``: of these, rows without a reference; ``unreadable``: rows
    with one that can't be read. ``examples``: some cells, each with what it is read as.
    """

    column: str
    reading: Reading
    rows: int
    missing: int
    unreadable: int
    examples: tuple[tuple[object, object], ...]

    @property
    def summary(self) -> str:
        """How the column is read, in one line."""
        counts = f"{self.rows:,} rows sampled: {self.missing:,} without a reference"
        if self.unreadable:
            counts += f", {self.unreadable:,} that can't be read (column correct will be null)"
        return f"column {self.column} is read as {self.reading.description} ({counts})"

    def lines(self) -> Iterator[str]:
        """The examples, a line each: a cell, and what it is read as."""
        for cell, read in self.examples:
            meaning = "no reference, or none that can be read" if read is None else shown([read])
            yield f"{shown([cell])}: {meaning}"


def is_nothing(reference: object) -> bool:
    """Whether a cell is null or NaN."""
    return reference is None or (isinstance(reference, (float, Decimal)) and reference != reference)


def is_missing(reference: object) -> bool:
    """Whether a cell is no reference: null, NaN, blank, or a word that stands for none."""
    if isinstance(reference, str):
        return reference.strip().casefold() in _PLACEHOLDERS
    return is_nothing(reference)


def cells(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; 32-bit floats with their own digits, 0.1 and not 0.10000000149."""
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):
        kind = np.float32 if pa.types.is_float32(column.type) else np.float16
        return [None if x is None else float(str(kind(x))) for x in column.to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # a file may hold text that is no UTF-8, which is no reference
        values = [_text(x) for x in column.cast(pa.large_binary()).to_pylist()]
    return values


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def shown(values: Sequence[object], most: int = 3) -> str:
    """Some values, for a message; of long ones, begin and end."""
    return ", ".join(map(_shown, values[:most]))


def _shown(value: object) -> str:
    if value is None:
        return "null"
    text = repr(value)
    if len(text) <= SHOWN:
        return text
    return f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
