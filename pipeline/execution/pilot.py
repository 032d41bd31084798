"""The rows of a pilot: a sample spread over the whole run; no I/O."""

import random
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

from pipeline.planning import Part, Range


def stratified_rows(parts: Sequence[Part], rows: int) -> tuple[Range, ...]:
    """``rows`` random rows (all, if there are fewer), one from each of as many equal strata.

    The same parts always give the same rows.
    """
    ends = list(accumulate(part.rows for part in parts))
    total = ends[-1] if ends else 0
    rows, rng = min(rows, total), random.Random(0)
    chosen = []
    for i in range(rows):
        number = rng.randrange(i * total // rows, (i + 1) * total // rows)
        part = parts[bisect_right(ends, number)]
        row = part.start + number - (ends[bisect_right(ends, number)] - part.rows)
        chosen.append(Range(part, row, row + 1))
    return tuple(chosen)


def still_to_do(chosen: Iterable[Range], todo: Iterable[Range]) -> tuple[Range, ...]:
    """The ranges of ``chosen``, single rows, that are in ``todo``."""
    left: dict[str, list[Range]] = {}
    for piece in todo:
        left.setdefault(piece.part.name, []).append(piece)
    return tuple(
        row
        for row in chosen
        if any(piece.start <= row.start < piece.stop for piece in left.get(row.part.name, ()))
    )
