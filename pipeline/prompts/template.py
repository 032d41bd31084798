"""Prompts made of several columns, such as ``Translate {text:document} into {language}.``; no I/O.

A column's name in braces is replaced by the row's value; with a colon and a tag, the value stands
on lines of its own between ``<tag>`` and ``</tag>``, which tells the model where the data ends. A
brace itself is written twice.
"""

import json
import string
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import InvalidPromptError


def fields(template: str) -> Iterator[tuple[str, str | None, str]]:
    """Pieces of ``template``: text, then a column's name (None at the end) and its tag, if any.

    Raises `ValueError` for braces that are no column.
    """
    for text, column, tag, conversion in string.Formatter().parse(template):
        if column == "" or conversion is not None:
            raise ValueError("{} must hold a column's name; a brace itself is written twice, {{")
        yield text, column, tag or ""


def columns_of(template: str) -> list[str]:
    """The columns that ``template`` names, in order, each once."""
    return list(dict.fromkeys(column for _, column, _ in fields(template) if column is not None))


def fill(template: str, row: Mapping[str, Any]) -> str:
    """``template`` with the values of ``row``; null raises `InvalidPromptError`."""
    pieces = []
    for text, column, tag in fields(template):
        pieces.append(text)
        if column is not None:
            value = _text(row[column], column)
            pieces.append(between(tag, value) if tag else value)
    return "".join(pieces)


def between(tag: str, text: str) -> str:
    """``text`` between tags that it does not hold itself: ``<tag-2>`` if it holds ``</tag>``."""
    name, number = tag, 1
    while f"</{name}>" in text:
        number += 1
        name = f"{tag}-{number}"
    return f"<{name}>\n{text}\n</{name}>"


def _text(value: Any, column: str) -> str:
    if value is None:
        raise InvalidPromptError(f"{column} is null")
    if isinstance(value, bytes):
        raise InvalidPromptError(f"{column} is bytes, not text")
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
