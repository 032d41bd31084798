"""Markdown tables; no I/O."""

from collections.abc import Iterable, Iterator, Sequence

LEFT, RIGHT = "---", "---:"


def table_lines(
    head: Sequence[str], rows: Iterable[Sequence[str]], align: str = LEFT
) -> Iterator[str]:
    """The lines of a table; ``align`` is for all columns but the first, which is text."""
    yield f"| {' | '.join(head)} |"
    yield "|".join(["", LEFT, *[align] * (len(head) - 1), ""])
    for row in rows:
        yield f"| {' | '.join(row)} |"
