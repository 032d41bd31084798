"""The rows of a pass that a worker has, by a board that all workers of an output share.

The `Board` is a small numbered file, and whoever changes it creates the next number, which only one
of several workers can. It decides nothing but who does what: whether a row is done, the ledger
says. So a lost or damaged board costs rows that are done twice at worst, and never one that is not
done.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain

from pipeline.output.board import Board, Holding, Piece, claimed, count, share, unclaimed
from pipeline.output.layout import CLAIMS, JSON, ranges_of
from pipeline.output.ledger import Ledger
from pipeline.output.passes import plan_pass
from pipeline.output.workers import Worker, expelled
from pipeline.planning import Part, PartRef, Pass, Range, gaps
from pipeline.storage import Storage, map_in_threads

# The last boards are kept, for a worker that is slow to create the next.
BOARDS_KEPT = 64

# A part, and spans of its rows.
_Clip = tuple[Part, list[tuple[int, int]]]


class Claims:
    """The rows of ``run_pass`` that ``worker`` has, and the way to more.

    ``parts``: of the whole run. ``at_once``: how many rows the worker works on at the same time.
    ``pace`` and ``free``: as in `Holding`, told to the others with the next `take`.
    ``rows_to_come``: how many it will probably claim yet, its share of those that nobody has. The
    pass must not be a retry, which is for a driver alone.
    """

    def __init__(
        self, ledger: Ledger, parts: Sequence[Part], run_pass: Pass, worker: Worker, at_once: int
    ) -> None:
        self._ledger, self._parts, self._pass, self._worker = ledger, parts, run_pass, worker
        self.at_once, self.pace, self.free = at_once, 0.0, 0
        self._seen = 0, Board()
        self._parts_of: dict[str, list[Part]] = {}
        for part in parts:
            self._parts_of.setdefault(part.shard.name, []).append(part)
        self._todo = self._plan()
        self._begun: list[Piece] = []
        self._old: list[int] = []  # numbers of boards that nobody needs
        self.rows_to_come = 0

    @property
    def rows_left(self) -> int:
        """The rows of the pass that were to do when all of them were last looked at."""
        return count(self._todo)

    @property
    def is_promised(self) -> bool:
        """Whether another worker is about to hand rows over to this one, by the board last read."""
        return self._seen[1].is_promised(self._worker.name)

    @property
    def may_get_rows(self) -> bool:
        """Whether another worker may hand rows over to this one, by the board last read."""
        return self._seen[1].may_get_rows(self._worker.name)

    def take(self) -> list[Range] | None:
        """Rows to do now; none if others have all that are left, None if no row is left.

        Raises `ExpelledError` if others count this worker as dead.
        """
        me = self._worker.name
        # Before the board is read: the sooner the next one follows, the fewer others are faster.
        workers, rest = self._worker.look(), self._rest(self._begun)
        while True:
            number, stored = self._seen = self._last_board()
            if self._begun and me not in stored.holdings:
                raise expelled()
            if new := self._begin(stored):
                left = count([*chain.from_iterable(unclaimed(stored, self._todo))])
                self.rows_to_come = math.ceil(left * share(stored, me))
                return new
            if self._ledger.is_closed(self._pass):
                return None
            dead = self._dead(stored, workers)
            board = stored.without(dead).holds(me, self._holding(rest))
            wanted = self._with_more(board)
            if wanted is None:
                return None
            if wanted == board and not dead and _is_told(stored.holdings.get(me), board, me):
                return []
            if self._write(number + 1, wanted):
                self._begun, self._seen = rest, (number + 1, wanted)
                for name in dead:
                    self._worker.remove(name)
                if wanted == board:
                    return []

    def again(self) -> None:
        """Nothing runs now: rows that `take` has given and that are not durable are to do again."""
        self._begun, self.free = [], 0

    def hand_over(self, rows: int, pace: float) -> bool:
        """Announce that others get the last ``rows`` of this worker, each done at ``pace`` now.

        They get them by `give_back`, once their traces are saved. False: nobody who is faster has
        room for them, as far as the board says that was last read.
        """
        number, board = self._seen
        gives = board.places(self._worker.name, rows, pace)
        if not gives:
            return False
        held = replace(board.holdings[self._worker.name], gives=gives, free=0)
        return self._write(number + 1, board.holds(self._worker.name, held))

    def give_back(self) -> None:
        """Leave to others what this worker has not done."""
        name = self._worker.name
        while True:
            number, board = self._last_board()
            if name not in board.holdings:
                return
            held = board.holdings[name]  # rows that move to another are named one by one
            rest = _pieces_of(self._undone(held.pieces)) if held.gives else self._rest(held.pieces)
            if self._write(number + 1, board.handed_over(name, rest)):
                return

    def end(self) -> None:
        """The pass has no more rows: remove its boards, unless another worker is still on one.

        And what workers have left that died with nothing to do.
        """
        number, board = self._last_board()
        dead = self._dead(board, self._worker.look())
        for name in dead:
            self._worker.remove(name)
        if board.holdings.keys() <= {*dead}:
            names = [self._file(old) for old in self._numbers() if old <= number]
            self._ledger.store.delete(names)

    def _holding(self, rest: Sequence[Piece]) -> Holding:
        """What the board says of this worker; its free slots only if others ask for them."""
        return Holding(self.at_once, tuple(rest), self.pace, self.free if self.may_get_rows else 0)

    def _begin(self, board: Board) -> list[Range]:
        """What this worker has on ``board`` and has not begun.

        The board may still have pieces of which some rows are durable since.
        """
        held = board.holdings.get(self._worker.name, Holding(0))
        new = _minus(held.pieces, self._begun)
        self._begun += new
        return self._undone(new)

    def _with_more(self, board: Board) -> Board | None:
        """``board`` with more rows for this worker, if there are any; None if no row is left."""
        wanted = claimed(board, self._worker.name, self._todo)
        if wanted != board or any(held.pieces for held in board.holdings.values()):
            return wanted
        self._todo = self._plan()  # nobody has anything: what is left by a look at everything?
        again = Board(holdings=board.holdings)
        return claimed(again, self._worker.name, self._todo) if self._todo else None

    def _dead(self, board: Board, workers: Mapping[str, bool]) -> list[str]:
        """Who is gone, on ``board`` or not; ``workers``: by a look, perhaps older than it."""
        if not board.holdings.keys() <= workers.keys():
            workers = self._worker.look()
        known = {**dict.fromkeys(board.holdings, True), **workers}
        return [name for name, is_dead in known.items() if is_dead and name != self._worker.name]

    def _rest(self, pieces: Sequence[Piece]) -> list[Piece]:
        """``pieces``, each from its first to its last row that is not durable.

        Rows end in any order. A board with all gaps between them would be long.
        """
        undone = _pieces_of(self._undone(pieces))
        rest = list[Piece]()
        for shard, start, stop in pieces:
            rows = [p for p in undone if p[0] == shard and p[1] < stop and start < p[2]]
            if rows:
                rest.append((shard, max(start, rows[0][1]), min(stop, rows[-1][2])))
        return rest

    def _undone(self, pieces: Iterable[Piece]) -> list[Range]:
        """The rows of ``pieces`` that are not durable, by listings made now."""
        clips: dict[str, _Clip] = {}
        for shard, start, stop in sorted(pieces):
            for part in self._parts_of.get(shard, ()):
                if start < part.stop and part.start < stop:
                    _, spans = clips.setdefault(part.name, (part, []))
                    spans.append((max(start, part.start), min(stop, part.stop)))
        found = map_in_threads(self._open_ranges, clips.values())
        undone = [piece for ranges in found for piece in ranges]
        return [] if undone and self._ledger.is_closed(self._pass) else undone

    def _open_ranges(self, clip: _Clip) -> list[Range]:
        part, spans = clip
        ref, number = PartRef.of(part), self._pass.number
        durable = ranges_of(self._ledger.fragments(ref, number))
        # In this order: a part is finished before its fragments are removed.
        if self._ledger.is_done(ref, number):
            return []
        return [Range(part, *gap) for span in spans for gap in gaps(*span, durable)]

    def _plan(self) -> list[Piece]:
        """What is to do of the pass, by a listing of everything made now."""
        todo = plan_pass(self._ledger, self._parts, self._pass).todo
        if todo and self._ledger.is_closed(self._pass):  # by another worker, with all its marks
            return []
        return _pieces_of(sorted(todo, key=lambda piece: (piece.part.shard.name, piece.start)))

    def _last_board(self) -> tuple[int, Board]:
        """The newest board and its number; 0 and an empty one if there is none."""
        while True:
            numbers = self._numbers()
            last = numbers[-1:]
            self._old = [n for n in numbers if n <= last[0] + 1 - BOARDS_KEPT]
            try:
                return (last[0], self._read(last[0])) if last else (0, Board())
            except FileNotFoundError:  # many newer ones were made meanwhile
                continue

    def _read(self, number: int) -> Board:
        return Board.from_json(self._ledger.store.read(self._file(number)))

    def _write(self, number: int, board: Board) -> bool:
        """Create board ``number``, unless another worker did."""
        store = self._ledger.store
        if not store.create(self._file(number), board.to_json()):
            return False
        store.delete([self._file(n) for n in self._old])
        return True

    def _numbers(self) -> list[int]:
        """The numbers of the pass's boards, ascending."""
        prefix = self._file(0).rpartition("/")[2].partition(".")[0] + "."
        names = [info.name.rpartition("/")[2] for info in self._ledger.store.files(CLAIMS)]
        numbers = (n.removeprefix(prefix).removesuffix(JSON) for n in names if n.startswith(prefix))
        return sorted(int(number) for number in numbers if number.isdigit())

    def _file(self, number: int) -> str:
        return f"{CLAIMS}/{self._pass.number:05}.{number:08}{JSON}"


def rows_held(store: Storage) -> Counter[str]:
    """How many rows each worker had not done when it last claimed some; for display only."""
    files = [info.name for info in store.files(CLAIMS)]
    boards = [file for file in files if file.removesuffix(JSON).rpartition(".")[2].isdigit()]
    last = {file.partition(".")[0]: file for file in boards}  # of each pass
    rows = Counter[str]()
    for file in last.values():
        with suppress(FileNotFoundError):  # newer ones were made meanwhile
            for name, held in Board.from_json(store.read(file)).holdings.items():
                rows[name] += count(held.pieces)
    return rows


def _pieces_of(ranges: Iterable[Range]) -> list[Piece]:
    """``ranges`` as pieces; ranges that follow each other in a shard are one."""
    pieces = list[Piece]()
    for shard, start, stop in ((r.part.shard.name, r.start, r.stop) for r in ranges):
        if pieces and (pieces[-1][0], pieces[-1][2]) == (shard, start):
            start = pieces.pop()[1]
        pieces.append((shard, start, stop))
    return pieces


def _is_told(held: Holding | None, board: Board, worker: str) -> bool:
    """Whether others know enough of what ``worker`` has, without a board that says it exactly.

    Near the end all workers look again and again, and only one at a time can write.
    """
    new = board.holdings[worker]
    if held is None or (held.pace, held.free) != (new.pace, new.free):
        return False
    return held == new or count(held.pieces) < 2 * count(new.pieces)


def _minus(pieces: Iterable[Piece], others: Sequence[Piece]) -> list[Piece]:
    """The rows of ``pieces`` that ``others`` do not have."""
    return [
        (shard, low, high)
        for shard, start, stop in pieces
        for low, high in gaps(start, stop, [(s, e) for name, s, e in others if name == shard])
    ]
