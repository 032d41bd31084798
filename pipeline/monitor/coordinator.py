"""The coordinator: one small Ray actor to which engines report and which the driver asks.

Reports are sent without waiting: a lost report costs a figure on the screen, never a row. The
answer to a report tells an engine whether the run is to end.
"""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines import EngineLoad
from pipeline.monitor.crash_isolation import Suspects, Suspicion
from pipeline.monitor.figures import EngineFigures, EnginePool, Snapshot, Totals
from pipeline.monitor.prometheus import Metrics
from pipeline.planning import PartRef, Range
from pipeline.time_limits import CALL_SECONDS, LIVING_SECONDS, REPORT_SECONDS, SILENT_SECONDS

# Tokens per second are an average over about this long; the latest count most.
RATE_SECONDS = 10.0
# Long enough for Ray to start the engine elsewhere; then the node's place is free again.
AVOID_SECONDS = 60.0

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


class FailedStarts(NamedTuple):
    """Engines that could not start: since any engine generated a token, and since one was ready."""

    idle: int
    in_a_row: int

    @property
    def doublings(self) -> int:
        """How often the wait before the next try has doubled; less if no engine is at work."""
        return (self.in_a_row if self.idle == 1 else self.idle) - 1


class RunCoordinator:
    """Adds up what the engine actors report, and passes on what they have to know.

    ``rows_to_do``: by part, how many rows are to do. ``output``: labels the Prometheus metrics.
    ``engine_pool``: the engines that the run asks for. ``avoid``: gets the id of a node on which an
    engine could not start; while what it returns is held, for `AVOID_SECONDS`, Ray starts engines
    elsewhere. It returns None if there is no elsewhere.
    """

    def __init__(
        self,
        rows_to_do: Mapping[str, int],
        output: str,
        engine_pool: EnginePool,
        avoid: Callable[[str], Any] = lambda _: None,
    ) -> None:
        self._rows_to_do, self._durable = dict(rows_to_do), dict[str, set[int]]()
        self._metrics = Metrics(output, sum(rows_to_do.values()), engine_pool.replicas)
        self._engine_pool = engine_pool
        self._started = time.monotonic()
        self._totals = Totals()
        self._engines: dict[str, EngineFigures] = {}
        self._last_report: dict[str, float] = {}
        self._ready_seconds: float | None = None
        self._starts_since_row = 0
        self._failed_starts = FailedStarts(0, 0)
        self._avoid, self._avoided = avoid, list[tuple[float, Any]]()
        self._stopping = False
        self._suspects = Suspects()

    def engine_starting(self) -> int:
        """Count an engine start; returns the starts since a trace was last finished."""
        self._starts_since_row += 1
        return self._starts_since_row

    def engine_start_failed(self, node: str) -> FailedStarts | None:
        """Count an engine that could not start on ``node``, and let the next start elsewhere.

        Returns None if no engine has ever been ready, so that the reason is more likely the
        configuration than a bad GPU.
        """
        if self._ready_seconds is None:
            return None
        self._starts_since_row -= 1
        idle, in_a_row = self._failed_starts
        self._failed_starts = FailedStarts(idle + 1, in_a_row + 1)
        try:
            held = self._avoid(node)
        except Exception:  # then Ray decides where
            logger.warning("a node could not be avoided", exc_info=True)
            held = None
        if held is None:
            self._avoided.clear()  # no other node has room, so each gets another chance
        else:
            self._avoided.append((time.monotonic(), held))
        return self._failed_starts

    def was_ready(self) -> bool:
        """Whether any engine has ever been ready."""
        return self._ready_seconds is not None

    def engine_ready(self, engine: str) -> None:
        """``engine`` can take requests."""
        self._failed_starts = FailedStarts(self._failed_starts.idle, 0)
        self._engines[engine] = EngineFigures(engine)
        self._last_report[engine] = time.monotonic()
        if self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started

    def engine_progress(self, engine: str, done: Totals, load: EngineLoad) -> bool:
        """Add what ``engine`` did since its last report; returns whether the run is to end."""
        self._totals.add(done)
        self._metrics.done(done)
        if done.generated:
            self._starts_since_row = 0
        if done.spent_tokens:
            self._failed_starts = FailedStarts(0, self._failed_starts.in_a_row)
        if engine in self._engines:
            now = time.monotonic()
            seconds = max(1e-3, now - self._last_report[engine])
            share = 1 - math.exp(-seconds / RATE_SECONDS)
            rate = self._engines[engine].tokens_per_second
            rate += share * (done.spent_tokens / seconds - rate)
            figures = EngineFigures(engine, load.running, load.waiting, load.kv_usage, rate)
            self._metrics.load(figures)
            self._engines[engine], self._last_report[engine] = figures, now
        return self._stopping

    def engine_closed(self, engine: str) -> None:
        """``engine`` has shut down, or has saved its traces and does nothing more."""
        self._forget(engine)

    def engine_died(self, engine: str, rows: Sequence[Hashable]) -> None:
        """``engine`` has died while ``rows`` ran on it."""
        self._forget(engine)
        self._suspects.blame(rows)

    def snapshot(self) -> Snapshot:
        """The sums so far; silent engines are not counted."""
        until = time.monotonic() - AVOID_SECONDS
        self._avoided = [(since, held) for since, held in self._avoided if since > until]
        oldest = time.monotonic() - SILENT_SECONDS
        for engine in [name for name in self._engines if self._last_report[name] < oldest]:
            self._forget(engine)
        self._metrics.sizes(len(self._engines), self._totals.rows)
        engines = tuple(self._engines.values())
        return Snapshot(self._totals, self._ready_seconds, engines, self._engine_pool)

    def stop(self) -> None:
        """Tell all engines, at their next report, to save their traces and stop."""
        self._stopping = True

    def crash_status(self, rows: Sequence[Hashable]) -> tuple[list[Suspicion], set[str]]:
        """How far each of ``rows`` is suspected of killing engines; the names of living engines."""
        oldest = time.monotonic() - LIVING_SECONDS
        living = {name for name in self._engines if self._last_report[name] > oldest}
        return self._suspects.of(rows), living

    def mark_durable(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        """Record durable rows, by part; return the parts with none left to do.

        Without it, each task that writes a block would have to list the fragments of its part.
        """
        full = []
        for part, numbers in rows.items():
            durable = self._durable.setdefault(part, set())
            durable.update(numbers)
            if len(durable) >= self._rows_to_do.get(part, 0):
                full.append(part)
                del self._durable[part]
                self._rows_to_do.pop(part, None)  # a task that Ray repeats gets the same answer
        return full

    def _forget(self, engine: str) -> None:
        if self._engines.pop(engine, None) is not None:
            self._metrics.load(EngineFigures(engine))


class CoordinatorClient:
    """A `RunCoordinator` as other processes see it: its methods, typed; Ray can pickle it.

    A method waits for the answer unless it says otherwise. With a time limit, it raises
    `ray.exceptions.GetTimeoutError`; when the coordinator is gone, `ray.exceptions.RayActorError`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def was_ready(self) -> bool:
        """See `RunCoordinator.was_ready`."""
        return ray.get(self._send(RunCoordinator.was_ready))

    def engine_start_failed(self, node: str) -> FailedStarts | None:
        """See `RunCoordinator.engine_start_failed`."""
        return ray.get(self._send(RunCoordinator.engine_start_failed, node))

    def engine_starting(self) -> int:
        """See `RunCoordinator.engine_starting`."""
        return ray.get(self._send(RunCoordinator.engine_starting))

    def engine_ready(self, engine: str) -> None:
        """See `RunCoordinator.engine_ready`; does not wait."""
        self._send(RunCoordinator.engine_ready, engine)

    def engine_progress(self, engine: str, done: Totals, load: EngineLoad) -> ObjectRef[bool]:
        """See `RunCoordinator.engine_progress`; returns a reference to the answer."""
        return self._send(RunCoordinator.engine_progress, engine, done, load)

    def engine_closed(self, engine: str) -> None:
        """See `RunCoordinator.engine_closed`; waits `CALL_SECONDS` at most."""
        ray.get(self._send(RunCoordinator.engine_closed, engine), timeout=CALL_SECONDS)

    def engine_died(self, engine: str, rows: Sequence[Hashable]) -> None:
        """See `RunCoordinator.engine_died`."""
        ray.get(self._send(RunCoordinator.engine_died, engine, rows))

    def snapshot(self) -> Snapshot:
        """See `RunCoordinator.snapshot`; waits `CALL_SECONDS` at most."""
        return ray.get(self._send(RunCoordinator.snapshot), timeout=CALL_SECONDS)

    def stop(self, timeout: float) -> None:
        """See `RunCoordinator.stop`; waits ``timeout`` seconds at most."""
        ray.get(self._send(RunCoordinator.stop), timeout=timeout)

    def crash_status(self, rows: Sequence[Hashable]) -> tuple[list[Suspicion], set[str]]:
        """See `RunCoordinator.crash_status`."""
        return ray.get(self._send(RunCoordinator.crash_status, rows))

    def mark_durable(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        """See `RunCoordinator.mark_durable`."""
        return ray.get(self._send(RunCoordinator.mark_durable, rows))

    def _send(
        self,
        method: Callable[Concatenate[RunCoordinator, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> ObjectRef[R]:
        """Call a method of the actor, with its arguments checked by the method's own types."""
        answer: ObjectRef[R] = getattr(self._actor, method.__name__).remote(*args, **kwargs)
        return answer


class EngineReporter:
    """One engine's counts, sent to the coordinator twice a second.

    ``done``: the counts since the last report. ``load`` and ``stop`` are called in the event loop's
    thread.
    """

    def __init__(
        self,
        coordinator: CoordinatorClient,
        engine: str,
        load: Callable[[], EngineLoad],
        stop: Callable[[], None],
    ) -> None:
        self._coordinator, self._engine, self._load, self._stop = coordinator, engine, load, stop
        self.done, self._last_load = Totals(), EngineLoad()

    async def keep_reporting(self) -> None:
        """Report until cancelled; call ``stop`` once when told to.

        Reports go on while the engine saves: a silent engine counts as gone, and the driver would
        not wait for it.
        """
        stopping = False
        while True:
            is_told = await asyncio.wrap_future(self.send().future())
            if is_told and not stopping:
                stopping = True
                self._stop()
            await asyncio.sleep(REPORT_SECONDS)

    def send(self) -> ObjectRef[bool]:
        """Send what was done since the last report; the answer is whether the run is to end."""
        done, self.done = self.done, Totals()
        load, last = self._load(), self._last_load
        done.preemptions = load.preemptions - last.preemptions
        done.recomputed_tokens = load.recomputed_tokens - last.recomputed_tokens
        done.drafted_tokens = load.drafted_tokens - last.drafted_tokens
        done.accepted_tokens = load.accepted_tokens - last.accepted_tokens
        self._last_load = load
        return self._coordinator.engine_progress(self._engine, done, load)

    def close(self) -> None:
        """Send the last counts, and that the engine has shut down; wait until that has arrived."""
        self.send()
        self._coordinator.engine_closed(self._engine)


def start_coordinator(
    todo: Iterable[Range], output: str, engine_pool: EnginePool, avoid: Callable[[str], Any]
) -> CoordinatorClient:
    """A new coordinator for the rows of ``todo``, on the driver's node; see `RunCoordinator`.

    It lives as long as a handle to it does.
    """
    rows = Counter[str]()
    for piece in todo:
        rows[str(PartRef.of(piece.part))] += piece.rows
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(RunCoordinator).options(scheduling_strategy=here)
    return CoordinatorClient(actor.remote(rows, output, engine_pool, avoid))
