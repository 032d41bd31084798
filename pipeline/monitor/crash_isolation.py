"""Finds the row that kills engines; no I/O.

When an engine dies, each row that ran on it is a suspect. Suspects run a few at a time on an engine
without other rows, so another death leaves fewer suspects; then each runs alone. A row that runs
alone when the engine dies is to blame and fails.

When the actor's process ends without a word, the rows whose prompts it was making are suspects;
then each suspect's prompt is made alone. If it was making none, the reason is more likely none of
its rows: these become suspects only if they are held by a second process that ends so.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum

SUSPECTS_AT_ONCE = 16
# How many rows of each suspicion may run at once.
MAX_RUNNING = (math.inf, SUSPECTS_AT_ONCE, 1, 1, 1)


class Suspicion(IntEnum):
    """How far a row is suspected of killing engines; a higher value is a stronger suspicion.

    ``POISON`` does not run, but what was generated of it before is kept. ``UNTOUCHABLE``: reading
    that kills the process as well.
    """

    NONE = 0
    ONE_OF_MANY = 1
    ONE_OF_FEW = 2
    POISON = 3
    UNTOUCHABLE = 4


class Suspects:
    """The suspicions against rows, from the deaths of all engines of a run."""

    def __init__(self) -> None:
        self._suspicions: dict[Hashable, Suspicion] = {}
        self._witnesses = set[Hashable]()  # rows held by processes that ended without a word

    def of(self, rows: Iterable[Hashable]) -> list[Suspicion]:
        """The suspicion of each of ``rows``."""
        return [self._suspicions.get(row, Suspicion.NONE) for row in rows]

    def note_held(self, rows: Iterable[Hashable]) -> None:
        """Note ``rows``, held by a process that ended without a word; suspect those noted before.

        Rows that are suspects already have run alone since, and stay what they are.
        """
        held = set(rows)
        again = held & self._witnesses - self._suspicions.keys()
        self._suspicions.update(dict.fromkeys(again, Suspicion.ONE_OF_MANY))
        self._witnesses |= held

    def blame(self, rows: Sequence[Hashable]) -> bool:
        """Suspect ``rows``, on which an engine has just died.

        Returns whether one of them was found to be poison.
        """
        rows = [row for row in rows if self._suspicions.get(row) != Suspicion.UNTOUCHABLE]
        again = [row for row in rows if row in self._suspicions]
        if again:  # one of these is to blame, which clears the others of the earlier death
            worst = max(self._suspicions[row] for row in again)
            again = [row for row in again if self._suspicions[row] == worst]
            level = Suspicion(worst + 1)
            if level <= Suspicion.POISON:
                cleared = [row for row, other in self._suspicions.items() if other <= worst]
                for row in cleared:
                    del self._suspicions[row]
                if len(again) > 1:
                    level = Suspicion.ONE_OF_FEW
            self._suspicions.update(dict.fromkeys(again, level))
        else:
            alone = len(rows) == 1
            level = Suspicion.ONE_OF_FEW if alone else Suspicion.ONE_OF_MANY
            self._suspicions.update(dict.fromkeys(rows, level))
        return level >= Suspicion.POISON


def rendered_together(suspicions: Sequence[Suspicion]) -> Iterator[list[int]]:
    """Which rows of a block, by their indices, may have their prompts made in one go."""
    rows = [i for i, suspicion in enumerate(suspicions) if suspicion == Suspicion.NONE]
    if rows:
        yield rows
    yield from ([i] for i, suspicion in enumerate(suspicions) if suspicion != Suspicion.NONE)


class CrashIsolationGate:
    """Decides which rows may run on an engine together: all unsuspected ones, or a few suspects.

    Suspects go first; meanwhile rows that have not started wait.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._running, self._waiting = [0] * len(Suspicion), [0] * len(Suspicion)

    @asynccontextmanager
    async def turn(self, suspicion: Suspicion) -> AsyncIterator[None]:
        """Wait until a row of this suspicion may run, then run the body."""
        if self._may_run(suspicion):
            self._running[suspicion] += 1
        else:
            self._waiting[suspicion] += 1
            async with self._changed:
                try:
                    await self._changed.wait_for(lambda: self._may_run(suspicion))
                finally:
                    self._waiting[suspicion] -= 1
                    self._changed.notify_all()
                self._running[suspicion] += 1
        try:
            yield
        finally:
            self._running[suspicion] -= 1
            if any(self._waiting):
                async with self._changed:
                    self._changed.notify_all()

    def _may_run(self, suspicion: Suspicion) -> bool:
        alike = self._running[suspicion]
        others, ahead = sum(self._running) - alike, any(self._waiting[suspicion + 1 :])
        return alike < MAX_RUNNING[suspicion] and not others and not ahead
