"""What happens while a run runs: engines report to one small actor, the driver reads it.

Reports are sent and not waited for: a lost one costs a figure on the screen, never a row.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

REPORT_SECONDS = 0.5


@dataclass
class Totals:
    """Counts since the start of this run (not of earlier ones in the same output)."""

    rows: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    states: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        """Add ``other`` to this."""
        self.rows += other.rows
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.states.update(other.states)


class Meter:
    """One engine's counts, sent to the board twice a second."""

    def __init__(self, board: Any, engine: str) -> None:
        self._board, self._engine = board, engine
        self.done, self.running = Totals(), 0

    async def keep_reporting(self) -> None:
        """Report until cancelled."""
        while True:
            self.report()
            await asyncio.sleep(REPORT_SECONDS)

    def report(self) -> None:
        """Send what was done since the last report."""
        done, self.done = self.done, Totals()
        self._board.report.remote(self._engine, done, self.running)

    def close(self) -> None:
        """Send the last figures, and that the engine has shut down; wait until that is heard."""
        self.report()
        ray.get(self._board.closed.remote(self._engine), timeout=5)


@dataclass(frozen=True)
class Snapshot:
    """The board at one moment."""

    totals: Totals
    running: int
    engines: int
    ready_seconds: float | None


@ray.remote(num_cpus=0)
class Board:
    """Adds up what the engine actors report."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._totals = Totals()
        self._running: dict[str, int] = {}
        self._ready_seconds: float | None = None
        self._idle_starts = 0

    def starting(self) -> int:
        """An engine is about to start; returns how many have since a row was last finished."""
        self._idle_starts += 1
        return self._idle_starts

    def opened(self, engine: str) -> None:
        """An engine is ready."""
        self._running[engine] = 0
        if self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started

    def report(self, engine: str, totals: Totals, running: int) -> None:
        """Add what ``engine`` did since its last report."""
        self._totals.add(totals)
        if totals.rows:
            self._idle_starts = 0
        self._running[engine] = running

    def closed(self, engine: str) -> None:
        """An engine has shut down."""
        self._running.pop(engine, None)

    def snapshot(self) -> Snapshot:
        """The sums so far."""
        return Snapshot(
            self._totals, sum(self._running.values()), len(self._running), self._ready_seconds
        )


def start_board() -> Any:
    """A new board, on the driver's node: it lives as long as the run does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
