"""What happens while a run runs: engines report to one small actor, the driver reads it.

Reports are sent and not waited for: a lost one costs a figure on the screen, never a row. The
answer to a report tells an engine when the run is to end.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines import Load
from pipeline.figures import EngineFigures, Fleet
from pipeline.journal import Extent
from pipeline.metrics import Metrics
from pipeline.plan import Range
from pipeline.suspects import Suspects, Suspicion

REPORT_SECONDS = 0.5
# Tokens a second are told as they were in the last so many, the latest counting most.
RATE_SECONDS = 10.0
# An engine that has not reported for so long is gone, or its machine is.
SILENT_SECONDS = 10.0
# For the question whose checkpoints can be passed over: to be wrong costs reading them.
LIVING_SECONDS = 3.0


@dataclass
class Totals:
    """Counts since the start of this run (not of earlier ones in the same output).

    ``output_tokens`` are those of traces that have ended, ``spent_tokens`` all that was generated;
    ``think_lengths`` counts traces by `pipeline.figures.length_bin`.
    """

    rows: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    spent_tokens: int = 0
    states: Counter[str] = field(default_factory=Counter)
    think_lengths: Counter[int] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        """Add ``other`` to this."""
        self.rows += other.rows
        self.generated += other.generated
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.spent_tokens += other.spent_tokens
        self.states.update(other.states)
        self.think_lengths.update(other.think_lengths)


class Meter:
    """One engine's counts, sent to the board twice a second."""

    def __init__(self, board: Any, engine: str, stop: Callable[[], None]) -> None:
        self._board, self._engine, self._stop = board, engine, stop
        self.done, self.running = Totals(), 0
        self.load: Callable[[], Load] = Load

    async def keep_reporting(self) -> None:
        """Report until cancelled or told to stop."""
        told_to_stop = False
        while not told_to_stop:
            told_to_stop = await asyncio.wrap_future(self.report().future())
            await asyncio.sleep(REPORT_SECONDS)
        self._stop()

    def report(self) -> Any:
        """Send what was done since the last report; the answer is whether the run is to end."""
        done, self.done = self.done, Totals()
        return self._board.report.remote(self._engine, done, self.running, self.load())

    def close(self) -> None:
        """Send the last figures, and that the engine has shut down; wait until that is heard."""
        self.report()
        ray.get(self._board.closed.remote(self._engine), timeout=5)


@dataclass(frozen=True)
class Snapshot:
    """The board at one moment; ``running``: requests that engines have, waiting ones too."""

    totals: Totals
    running: int
    engines: int
    ready_seconds: float | None
    loads: tuple[EngineFigures, ...] = ()
    fleet: Fleet = field(default_factory=Fleet)


@ray.remote(num_cpus=0)
class Board:
    """Adds up what the engine actors report, and passes on what they have to know.

    ``todo``: by part, how many rows are to do. ``output``: for Prometheus. ``fleet``: the engines
    that are asked for.
    """

    def __init__(self, todo: Mapping[str, int], output: str, fleet: Fleet) -> None:
        self._todo, self._written = dict(todo), dict[str, set[int]]()
        self._metrics, self._fleet = Metrics(output, sum(todo.values()), fleet.replicas), fleet
        self._started = time.monotonic()
        self._totals = Totals()
        self._running: dict[str, int] = {}
        self._loads: dict[str, EngineFigures] = {}
        self._heard: dict[str, float] = {}
        self._ready_seconds: float | None = None
        self._idle_starts = 0
        self._stopping = False
        self._suspects = Suspects()

    def starting(self) -> int:
        """An engine is about to start; returns how many have since a row was last finished."""
        self._idle_starts += 1
        return self._idle_starts

    def opened(self, engine: str) -> None:
        """An engine is ready."""
        self._running[engine] = 0
        self._loads[engine] = EngineFigures(engine)
        self._heard[engine] = time.monotonic()
        if self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started

    def report(self, engine: str, totals: Totals, running: int, load: Load) -> bool:
        """Add what ``engine`` did since its last report; whether the run is to end."""
        self._totals.add(totals)
        self._metrics.done(totals)
        if totals.generated:
            self._idle_starts = 0
        if engine in self._running:
            now = time.monotonic()
            seconds = max(1e-3, now - self._heard[engine])
            before, share = self._loads[engine], 1 - math.exp(-seconds / RATE_SECONDS)
            rate = before.tokens_per_second
            rate += share * (totals.spent_tokens / seconds - rate)
            self._loads[engine] = EngineFigures(
                engine, load.running, load.waiting, load.kv_usage, rate
            )
            self._metrics.load(self._loads[engine])
            self._running[engine], self._heard[engine] = running, now
        return self._stopping

    def closed(self, engine: str) -> None:
        """An engine has shut down, or has saved what it had and does nothing more."""
        self._gone(engine)

    def snapshot(self) -> Snapshot:
        """The sums so far; engines that are silent are not counted."""
        silent = time.monotonic() - SILENT_SECONDS
        for engine in [name for name in self._running if self._heard[name] < silent]:
            self._gone(engine)
        self._metrics.sizes(len(self._running), self._totals.rows)
        return Snapshot(
            self._totals,
            sum(self._running.values()),
            len(self._running),
            self._ready_seconds,
            tuple(self._loads[name] for name in self._running),
            self._fleet,
        )

    def stop(self) -> None:
        """Tell all engines, at their next report, to save what they have."""
        self._stopping = True

    def brief(self, rows: Sequence[Hashable]) -> tuple[list[Suspicion], set[str]]:
        """How far each of ``rows`` is suspected to kill engines; the engines that live."""
        heard = time.monotonic() - LIVING_SECONDS
        living = {name for name in self._running if self._heard[name] > heard}
        return self._suspects.of(rows), living

    def wrote(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        """By part, rows that are durable now; the parts of which all that were to do are.

        So that not every task that has written a block has to list what its part has by now.
        """
        full = []
        for part, numbers in rows.items():
            written = self._written.setdefault(part, set())
            written.update(numbers)
            if len(written) >= self._todo.get(part, 0):
                full.append(part)
                del self._written[part]
                self._todo.pop(part, None)  # a task that is repeated is told the same
        return full

    def died(self, engine: str, rows: Sequence[Hashable]) -> None:
        """An engine has died while ``rows`` ran on it."""
        self._gone(engine)
        self._suspects.blame(rows)

    def _gone(self, engine: str) -> None:
        if self._running.pop(engine, None) is not None:
            self._metrics.load(EngineFigures(engine))


def start_board(todo: Iterable[Range], output: str, fleet: Fleet) -> Any:
    """A new board for these rows, on the driver's node: it lives as long as the run does."""
    rows = Counter[str]()
    for piece in todo:
        rows[str(Extent.of(piece.part))] += piece.rows
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(scheduling_strategy=here).remote(rows, output, fleet)  # type: ignore[attr-defined]
