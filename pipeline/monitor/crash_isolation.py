"""Which row kills engines; no I/O.

When an engine dies, every row that ran on it may be why. These suspects run a few at a time, the
engine to themselves, so that another death names fewer; then each runs alone. A row on which an
engine dies while it runs alone is to blame, and comes out failed.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager
from enum import IntEnum

SUSPECTS_AT_ONCE = 16
# Of each suspicion, how many rows may run at once.
MAX_RUNNING = (math.inf, SUSPECTS_AT_ONCE, 1, 1)


class Suspicion(IntEnum):
    """How far a row is suspected; the value orders it."""

    NONE = 0
    ONE_OF_MANY = 1
    ONE_OF_FEW = 2
    POISON = 3


class Suspects:
    """What engine deaths say of rows, over all engines of a run."""

    def __init__(self) -> None:
        self._found: dict[Hashable, Suspicion] = {}

    def of(self, rows: Iterable[Hashable]) -> list[Suspicion]:
        """The suspicion of each of ``rows``."""
        return [self._found.get(row, Suspicion.NONE) for row in rows]

    def blame(self, rows: Sequence[Hashable]) -> None:
        """An engine has died while ``rows`` ran on it."""
        again = [row for row in rows if row in self._found]
        if again:  # one of these it was, so that others of the earlier death are cleared
            worst = max(self._found[row] for row in again)
            again = [row for row in again if self._found[row] == worst]
            level = Suspicion(min(worst + 1, Suspicion.POISON))
            cleared = [row for row, found in self._found.items() if found <= worst]
            for row in cleared:
                del self._found[row]
            self._found.update(dict.fromkeys(again, level))
            if len(again) > 1:
                self._found.update(dict.fromkeys(again, Suspicion.ONE_OF_FEW))
        else:
            alone = len(rows) == 1
            level = Suspicion.ONE_OF_FEW if alone else Suspicion.ONE_OF_MANY
            self._found.update(dict.fromkeys(rows, level))


class CrashIsolationGate:
    """Who may run on an engine at the same time: those beyond suspicion, a few suspects, or one.

    Suspects go first: until they are through, the others that have not begun wait.
    """

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._running, self._waiting = [0] * len(Suspicion), [0] * len(Suspicion)

    @asynccontextmanager
    async def turn(self, suspicion: Suspicion) -> AsyncIterator[None]:
        """Run the body when it is this row's turn."""
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
