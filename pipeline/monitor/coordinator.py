"""What happens while a run runs: engines report to one small actor, the driver reads it.

Reports are sent and not waited for: a lost one costs a figure on the screen, never a row. The
answer to a report tells an engine when the run is to end.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines import EngineLoad
from pipeline.monitor.crash_isolation import Suspects, Suspicion
from pipeline.monitor.figures import EngineFigures, EnginePool, Snapshot, Totals
from pipeline.monitor.prometheus import Metrics
from pipeline.planning import PartRef, Range

REPORT_SECONDS = 0.5
# Tokens a second are told as they were in the last so many, the latest counting most.
RATE_SECONDS = 10.0
# An engine that has not reported for so long is gone, or its machine is.
SILENT_SECONDS = 10.0
# For the question whose checkpoints can be passed over: to be wrong costs reading them.
LIVING_SECONDS = 3.0


class EngineReporter:
    """One engine's counts, sent to the coordinator twice a second."""

    def __init__(self, coordinator: Any, engine: str, stop: Callable[[], None]) -> None:
        self._coordinator, self._engine, self._stop = coordinator, engine, stop
        self.done, self.running = Totals(), 0
        self.load: Callable[[], EngineLoad] = EngineLoad

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
        return self._coordinator.report.remote(self._engine, done, self.running, self.load())

    def close(self) -> None:
        """Send the last figures, and that the engine has shut down; wait until that is heard."""
        self.report()
        ray.get(self._coordinator.closed.remote(self._engine), timeout=5)


@ray.remote(num_cpus=0)
class RunCoordinator:
    """Adds up what the engine actors report, and passes on what they have to know.

    ``todo``: by part, how many rows are to do. ``output``: for Prometheus. ``engine_pool``: the engines
    that are asked for.
    """

    def __init__(self, todo: Mapping[str, int], output: str, engine_pool: EnginePool) -> None:
        self._todo, self._written = dict(todo), dict[str, set[int]]()
        self._metrics, self._engine_pool = (
            Metrics(output, sum(todo.values()), engine_pool.replicas),
            engine_pool,
        )
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

    def report(self, engine: str, totals: Totals, running: int, load: EngineLoad) -> bool:
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
            self._engine_pool,
        )

    def stop(self) -> None:
        """Tell all engines, at their next report, to save what they have."""
        self._stopping = True

    def crash_status(self, rows: Sequence[Hashable]) -> tuple[list[Suspicion], set[str]]:
        """How far each of ``rows`` is suspected to kill engines; the engines that live."""
        heard = time.monotonic() - LIVING_SECONDS
        living = {name for name in self._running if self._heard[name] > heard}
        return self._suspects.of(rows), living

    def mark_durable(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
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

    def engine_died(self, engine: str, rows: Sequence[Hashable]) -> None:
        """An engine has died while ``rows`` ran on it."""
        self._gone(engine)
        self._suspects.blame(rows)

    def _gone(self, engine: str) -> None:
        if self._running.pop(engine, None) is not None:
            self._metrics.load(EngineFigures(engine))


def start_coordinator(todo: Iterable[Range], output: str, engine_pool: EnginePool) -> Any:
    """A new coordinator for these rows, on the driver's node: it lives as long as the run does."""
    rows = Counter[str]()
    for piece in todo:
        rows[str(PartRef.of(piece.part))] += piece.rows
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RunCoordinator.options(scheduling_strategy=here).remote(rows, output, engine_pool)  # type: ignore[attr-defined]
