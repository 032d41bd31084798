"""Prompts made of several columns: ``Translate {text:document} into {language}.``; no I/O.

The row's value replaces a column name in braces. With ``:tag`` after the name, the value is put on
separate lines between ``<tag>`` and ``</tag>``, so that the model sees where the data ends. The tag
``letters`` writes a list as the options of a question: ``A. …``, ``B. …``, each on a line. With
``:tag!`` a blank text fails the row, as null does. Double braces stand for a single one.
"""

import json
import math
import re
import string
from collections.abc import Iterator, Mapping
from decimal import Decimal
from string import ascii_uppercase
from typing import Any

from pipeline.errors import InvalidPromptError

# Python writes larger floats with an exponent.
LARGEST_WHOLE = 10**16
LETTERS = "letters"
TAG = re.compile(r"[^\W\d][\w.-]*!?")


def fields(template: str) -> Iterator[tuple[str, str | None, str]]:
    """The pieces of ``template``: a text, the column that follows it, and the column's tag.

    The column is None if only text follows; the tag is empty if there is none. Raises `ValueError`
    for braces that hold no column name, and for tags that are no names.
    """
    for text, column, tag, conversion in string.Formatter().parse(template):
        if column == "" or conversion is not None:
            raise ValueError("{} must hold a column's name; to write a brace, double it: {{")
        if tag and not TAG.fullmatch(tag):
            raise ValueError(
                f"{{{column}:{tag}}}: after the colon comes the name of a tag, such as document; "
                "numbers are not formatted"
            )
        yield text, column, tag or ""


def columns_of(template: str) -> list[str]:
    """The distinct columns that ``template`` names, in order; raises `ValueError` as `fields`."""
    return list(dict.fromkeys(column for _, column, _ in fields(template) if column is not None))


def with_columns_renamed(template: str, names: Mapping[str, str]) -> str:
    """``template`` with other columns in braces; ``names``: new by old, for those that change."""
    pieces = []
    for text, column, tag in fields(template):
        pieces.append(text.replace("{", "{{").replace("}", "}}"))
        if column is not None:
            name = names.get(column, column)
            pieces.append(f"{{{name}:{tag}}}" if tag else f"{{{name}}}")
    return "".join(pieces)


def fill(template: str, row: Mapping[str, Any]) -> str:
    """``template`` with the values of ``row``; raises `InvalidPromptError` for null, NaN, bytes.

    Also for a blank text between tags, where the template demands one.
    """
    pieces = []
    for text, column, tag in fields(template):
        pieces.append(text)
        if column is not None:
            if tag == LETTERS:
                pieces.append(_options(row[column], column))
                continue
            value = _as_text(row[column], column)
            if tag.endswith("!") and not value.strip():
                raise InvalidPromptError(f"{column} is blank")
            pieces.append(between(tag.removesuffix("!"), value) if tag else value)
    return "".join(pieces)


def _options(value: Any, column: str) -> str:
    """A list as lettered lines; raises `InvalidPromptError` for other values and long lists."""
    if not isinstance(value, list) or not 0 < len(value) <= len(ascii_uppercase):
        raise InvalidPromptError(f"{column} is no list of 1 to 26 options")
    texts = (_as_text(item, f"an option in {column}") for item in value)
    return "\n".join(
        f"{letter}. {text}" for letter, text in zip(ascii_uppercase, texts, strict=False)
    )


def between(tag: str, text: str) -> str:
    """``text`` between tags that it does not contain: ``<tag-2>`` if it contains ``</tag>``."""
    name, number = tag, 1
    while f"</{name}>" in text:
        number += 1
        name = f"{tag}-{number}"
    return f"<{name}>\n{text}\n</{name}>"


def _as_text(value: Any, column: str) -> str:
    """A cell as text: strings as they are, lists and objects as JSON, all else as `str` does.

    Whole floats lose their ``.0``: one null turns a column of whole numbers into floats.
    """
    if value is None:
        raise InvalidPromptError(f"{column} is null")
    if isinstance(value, (list, dict)):
        return json.dumps(_plain(value, f"a value in {column}"), ensure_ascii=False, default=str)
    value = _plain(value, column)
    if value is None:
        raise InvalidPromptError(f"{column} is NaN, which stands for no value")
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _plain(value: Any, what: str) -> Any:
    """``value`` with whole floats as whole numbers and NaN as None, at any depth.

    Raises `InvalidPromptError` for bytes, which are no text.
    """
    if isinstance(value, dict):
        return {key: _plain(item, what) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, what) for item in value]
    if isinstance(value, bytes):
        raise InvalidPromptError(f"{what} is bytes, not text")
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return int(value) if value.is_integer() and abs(value) < LARGEST_WHOLE else value
    return value
