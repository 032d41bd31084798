"""Which worker has which rows of a pass, as one value; no I/O.

Rows are handed out in the order of the shards, up to a place that the board remembers. What a dead
worker had, or one that ended early had left, goes first. Claims are small when few rows are left,
so that all workers end at about the same time.

A slow worker would still hold the last rows then. So it hands these over to faster ones that have
free slots: it says to whom, lets its engines save the traces, and only then gives the rows away.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# A worker claims so many times what it works on at once: at most, and at least, near the end.
MOST_WAVES, LEAST_WAVES = 4.0, 0.25
# Rows move to a worker whose traces are so many times as fast. It has to read their tokens again.
FASTER = 1.2

# Rows ``start`` to ``stop`` (exclusive) of a shard: its name, start, stop.
Piece = tuple[str, int, int]
BEGIN = ("", 0)


@dataclass(frozen=True)
class Holding:
    """What a worker has: the rows that it works on ``at_once``, and the ``pieces`` it has to do.

    ``pace``: tokens a second of each trace while all its slots are full; 0 if not known. ``free``:
    how many more rows it could begin now. ``gives``: how many rows it is about to hand over, by the
    worker that gets them.
    """

    at_once: int
    pieces: tuple[Piece, ...] = ()
    pace: float = 0.0
    free: int = 0
    gives: Mapping[str, int] = field(default_factory=dict)

    def with_more(self, pieces: Sequence[Piece]) -> "Holding":
        """The holding with ``pieces`` more, which take free slots."""
        free = max(0, self.free - count(pieces))
        return replace(self, pieces=(*self.pieces, *pieces), free=free)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> "Holding":
        """The inverse of `Board.to_json`; raises what a damaged file leads to."""
        return cls(
            int(held["at_once"]),
            _pieces(held["pieces"]),
            float(held.get("pace", 0.0)),
            int(held.get("free", 0)),
            {str(name): int(rows) for name, rows in held.get("gives", {}).items()},
        )


@dataclass(frozen=True)
class Board:
    """Who has what.

    ``place``: a shard and a row in it; all rows before it have been handed out. ``returned``: of
    those, the rows that are free again. ``holdings``: by worker.
    """

    place: tuple[str, int] = BEGIN
    returned: tuple[Piece, ...] = ()
    holdings: Mapping[str, Holding] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """As the file has it."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "Board":
        """The inverse of `to_json`; a damaged file is an empty board."""
        try:
            values = json.loads(data)
            holdings = {name: Holding.from_json(h) for name, h in values["holdings"].items()}
            shard, row = values["place"]
            return cls((str(shard), int(row)), _pieces(values["returned"]), holdings)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
            return cls()

    def holds(self, worker: str, holding: Holding) -> "Board":
        """The board on which ``worker`` has ``holding``."""
        return replace(self, holdings={**self.holdings, worker: holding})

    def without(self, workers: Sequence[str]) -> "Board":
        """The board on which ``workers`` have nothing, and what they had is free."""
        freed = tuple(
            piece
            for name, held in self.holdings.items()
            if name in workers
            for piece in held.pieces
        )
        left = {name: held for name, held in self.holdings.items() if name not in workers}
        return replace(self, returned=(*self.returned, *freed), holdings=left)

    def faster(self, worker: str, pace: float) -> list[str]:
        """The workers that do traces of ``worker`` faster than at ``pace``, the fastest first."""
        at_work = {n: held for n, held in self.holdings.items() if n != worker and not held.gives}
        names = [name for name, held in at_work.items() if 0 < FASTER * pace <= held.pace]
        return sorted(names, key=lambda name: -at_work[name].pace)

    def is_promised(self, worker: str) -> bool:
        """Whether another worker has announced that it hands rows over to ``worker``."""
        return any(worker in held.gives for held in self.holdings.values())

    def may_get_rows(self, worker: str) -> bool:
        """Whether another worker may hand rows over to ``worker``: it is slower, or may be."""
        mine = self.holdings[worker].pace if worker in self.holdings else 0.0
        others = [held for name, held in self.holdings.items() if name != worker and held.pieces]
        return mine > 0 and any(FASTER * held.pace <= mine for held in others)

    def places(self, worker: str, rows: int, pace: float) -> dict[str, int]:
        """Who of those that are `faster` begins how many of ``rows``; nobody if not all fit.

        What others are about to hand over to them has its place already. Who is to get rows itself
        gives none.
        """
        if self.is_promised(worker):
            return {}
        gives = dict[str, int]()
        for name in self.faster(worker, pace):
            taken = sum(held.gives.get(name, 0) for held in self.holdings.values())
            gives[name] = max(0, min(rows, self.holdings[name].free - taken))
            rows -= gives[name]
        return {} if rows else {name: given for name, given in gives.items() if given}

    def handed_over(self, worker: str, pieces: Sequence[Piece]) -> "Board":
        """The board without ``worker``: its ``pieces`` are with those that it gives them to.

        They are free if it gives none, or if nobody is left of those. There may be more of them
        than were announced: rows that have ended, but are not durable, need no free slot.
        """
        left = {name: held for name, held in self.holdings.items() if name != worker}
        gives = {name: rows for name, rows in self.holdings[worker].gives.items() if name in left}
        pieces = list(pieces)
        for i, (name, rows) in enumerate(gives.items(), 1):
            given, pieces = split(pieces, rows if i < len(gives) else count(pieces))
            left[name] = left[name].with_more(given)
        return replace(self, returned=(*self.returned, *pieces), holdings=left)


def _pieces(values: Sequence[Sequence[Any]]) -> tuple[Piece, ...]:
    return tuple((str(shard), int(start), int(stop)) for shard, start, stop in values)


def share(board: Board, worker: str) -> float:
    """The share of all that is done, 0 to 1, that ``worker`` does: by slots and their speed."""
    known = [held.pace for held in board.holdings.values() if held.pace]
    mean = sum(known) / len(known) if known else 1.0
    done = {name: held.at_once * (held.pace or mean) for name, held in board.holdings.items()}
    return done[worker] / sum(done.values())


def fair_rows(left: int, board: Board, worker: str) -> int:
    """How many of ``left`` rows ``worker`` takes: half of its share."""
    mine, fair = board.holdings[worker].at_once, left * share(board, worker) / 2
    return max(1, math.ceil(min(max(fair, LEAST_WAVES * mine), MOST_WAVES * mine)))


def unclaimed(board: Board, todo: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """The rows of ``todo``, in order, that nobody has: those returned, and those never claimed.

    Of returned rows, only those of the shards in ``todo``.
    """
    shards = {shard for shard, _, _ in todo}
    free = [piece for piece in board.returned if piece[0] in shards]
    later = [(s, max(start, _row(s, board)), stop) for s, start, stop in todo]
    return free, [p for p in later if p[0] >= board.place[0] and p[1] < p[2]]


def claimed(board: Board, worker: str, todo: Sequence[Piece]) -> Board:
    """The board after ``worker`` has taken rows that are `unclaimed`."""
    free, later = unclaimed(board, todo)
    rows = fair_rows(count(free) + count(later), board, worker)
    again, left_free = split(free, rows)
    first, _ = split(later, rows - count(again))
    unknown = [piece for piece in board.returned if piece not in free]
    place = (first[-1][0], first[-1][2]) if first else board.place
    board = replace(board, place=place, returned=(*unknown, *left_free))
    return board.holds(worker, board.holdings[worker].with_more([*again, *first]))


def _row(shard: str, board: Board) -> int:
    """The first row of ``shard`` that has not been handed out, if ``shard`` is at the place."""
    return board.place[1] if shard == board.place[0] else 0


def count(pieces: Sequence[Piece]) -> int:
    """How many rows ``pieces`` have."""
    return sum(stop - start for _, start, stop in pieces)


def split(pieces: Sequence[Piece], rows: int) -> tuple[list[Piece], list[Piece]]:
    """The first ``rows`` rows of ``pieces``, and the others."""
    taken = list[Piece]()
    for i, (shard, start, stop) in enumerate(pieces):
        if rows < stop - start:
            first, rest = (shard, start, start + rows), (shard, start + rows, stop)
            return [*taken, first] if rows else taken, [rest, *pieces[i + 1 :]]
        taken.append((shard, start, stop))
        rows -= stop - start
    return taken, []
