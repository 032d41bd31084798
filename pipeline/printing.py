"""Text on its way to a terminal, where nothing of it may act; writes to stdout and stderr.

Prompts, columns, names of files and labels, and what models write are anybody's. Escape sequences
in them could rewrite the screen, and bidirectional controls reorder it.
"""

import json
import logging
import sys
import unicodedata
from typing import Any, TextIO

# Control and format characters, halves of surrogate pairs, line and paragraph separators.
ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
# Zero-width joiners only shape letters and emoji.
HARMLESS = frozenset("\n\t\u200c\u200d")


class _Escapes(dict[int, str]):
    """What is printed for a character, by code point."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character) in ACTING and character not in HARMLESS:
            character = character.encode("unicode_escape").decode()
        self[code] = character
        return character


class _JsonEscapes(_Escapes):
    """The same as JSON writes it."""

    def __missing__(self, code: int) -> str:
        if super().__missing__(code) != chr(code):
            self[code] = json.dumps(chr(code))[1:-1]
        return self[code]


_ESCAPES, _JSON_ESCAPES = _Escapes(), _JsonEscapes()


class PrintableFormatter(logging.Formatter):
    """Log messages as `printable` text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of ``record``, with its traceback."""
        return printable(super().format(record))


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal would obey."""
    return text.translate(_ESCAPES)


def json_text(value: Any) -> str:
    """``value`` as one line of JSON that is `printable` as it is."""
    return json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES)


def print_text(text: object, file: TextIO | None = None) -> None:
    """Print ``text`` as `printable`, and a line break. ``file``: stdout by default."""
    print(printable(str(text)), file=file or sys.stdout, flush=True)


def print_error(text: object) -> None:
    """Print ``text`` to stderr, see `print_text`."""
    print_text(text, sys.stderr)
