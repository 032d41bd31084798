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
    """The values of a column, as `as_written`; of text that is not UTF-8, None.

    Of a conversation, the text of its final assistant turn; None if it ends with another's.
    """
    if _is_conversation(column.type):
        return [_final_answer(value) for value in column.to_pylist()]
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:  # a file may hold text that is no UTF-8, which is no reference
        return [_text(x) for x in column.cast(pa.large_binary()).to_pylist()]
    return [as_written(x, column.type) for x in values] if _is_narrow(column.type) else values


def _is_conversation(type_: Any) -> bool:
    if not (pa.types.is_list(type_) or pa.types.is_large_list(type_)):
        return False
    item = type_.value_type
    names = {field.name for field in item.fields} if pa.types.is_struct(item) else set()
    return {"role", "content"} <= names or {"from", "value"} <= names


def _final_answer(turns: Sequence[dict[str, Any]] | None) -> Any:
    last = turns[-1] if turns else {}
    is_answer = "assistant" in (last.get("role"), last.get("from")) or last.get("from") == "gpt"
    return (last.get("content") or last.get("value")) if is_answer else None


def as_written(value: Any, type_: Any) -> Any:
    """``value``, Python's for a cell of ``type_``: short floats, at any depth, with their digits.

    A float of 32 bits that was written as 0.1 is 0.10000000149 in Python's 64.
    """
    if value is None or not _is_narrow(type_):
        return value
    if pa.types.is_floating(type_):
        return float(str((np.float32 if pa.types.is_float32(type_) else np.float16)(value)))
    if pa.types.is_dictionary(type_):
        return as_written(value, type_.value_type)
    if pa.types.is_struct(type_):
        return {field.name: as_written(value[field.name], field.type) for field in type_}
    if pa.types.is_map(type_):
        return [
            (as_written(key, type_.key_type), as_written(item, type_.item_type))
            for key, item in value
        ]
    return [as_written(item, type_.value_type) for item in value]


def _is_narrow(type_: Any) -> bool:
    """Whether ``type_`` is a float of 32 or 16 bits, or has one in it."""
    if pa.types.is_dictionary(type_):
        return _is_narrow(type_.value_type)
    if pa.types.is_nested(type_):
        return any(_is_narrow(type_.field(i).type) for i in range(type_.num_fields))
    return bool(pa.types.is_float32(type_) or pa.types.is_float16(type_))


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
