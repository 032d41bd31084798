"""Markdown: tables, and text that is to appear in it as it is; no I/O."""

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.printing import printable

LEFT, RIGHT = "---", "---:"
# What begins code, emphasis, links, HTML and entities, or ends a cell. Underscores in words do not.
_ACTING = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


def literal(text: str) -> str:
    """``text`` on one line of Markdown that shows it as it is, its line breaks too."""
    return printable(_ACTING.sub(r"\\\g<0>", text)).replace("\n", "\\n").replace("\t", "\\t")


def table_lines(
    head: Sequence[str], rows: Iterable[Sequence[str]], align: str = LEFT
) -> Iterator[str]:
    """The lines of a table; ``align`` is for all columns but the first, which is text.

    The cells are Markdown: see `literal` for text from elsewhere.
    """
    yield f"| {' | '.join(head)} |"
    yield "|".join(["", LEFT, *[align] * (len(head) - 1), ""])
    for row in rows:
        yield f"| {' | '.join(row)} |"
