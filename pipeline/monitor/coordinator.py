"""The coordinator: one small Ray actor to which engines report and which the driver asks.

Reports are sent without waiting: a lost report costs a figure on the screen, never a row. The
answer to a report tells an engine whether the run is to end, and how the control group does.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.engines import EngineLoad
from pipeline.monitor.crash_isolation import Suspects, Suspicion
from pipeline.monitor.engine_processes import (
    EngineProcess,
    EngineProcesses,
    FailedStarts,
    HungLimits,
    ProcessAddress,
    RowKey,
)
from pipeline.monitor.figures import EngineFigures, EnginePool, Snapshot, Totals
from pipeline.monitor.prometheus import Metrics
from pipeline.monitor.unfinished import UnfinishedRows
from pipeline.planning import PartRef, Range
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.time_limits import CALL_SECONDS, LIVING_SECONDS, SILENT_SECONDS

# Tokens per second are an average over about this long; the latest count most.
RATE_SECONDS = 10.0
# Long enough for Ray to start the engine elsewhere; then the node's place is free again.
AVOID_SECONDS = 60.0
# So many rows may be found to kill engines, before an engine must have generated a trace. An engine
# that always dies would make every row look so.
POISON_IN_A_ROW = 2

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


class ReportAnswer(NamedTuple):
    """What an engine learns with its report.

    ``is_over``: whether the run is to end. ``compared`` and ``agreeing``: the control group's
    traces whose early answer was compared with the full one, and those that agree, of all engines;
    ``rows``: how many rows they are of. ``node_ends``: whether the engine's node is about to end.
    """

    is_over: bool
    rows: int = 0
    compared: int = 0
    agreeing: int = 0
    node_ends: bool = False


class RunCoordinator:
    """Adds up what the engine actors report, and passes on what they have to know.

    ``rows_to_do``: by part, how many rows are to do. ``output``: labels the Prometheus metrics.
    ``engine_pool``: the engines that the run asks for. ``avoid``: gets the id of a node on which an
    engine could not start; while what it returns is held, for `AVOID_SECONDS`, Ray starts engines
    elsewhere. It returns None if there is no elsewhere. ``node_lives``: whether the node with an id
    is still there; rows are not to blame for what is lost with one.
    """

    def __init__(
        self,
        rows_to_do: Mapping[str, int],
        output: str,
        engine_pool: EnginePool,
        avoid: Callable[[str], Any] = lambda _: None,
        node_lives: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._unfinished = UnfinishedRows(rows_to_do)
        self._metrics = Metrics(output, engine_pool.least)
        self._engine_pool = engine_pool
        self._started = time.monotonic()
        self._totals = Totals()
        self._engines: dict[str, EngineFigures] = {}
        self._last_report: dict[str, float] = {}
        self._ready_seconds: float | None = None
        self._starts_since_row = self._poison_since_row = 0
        self._failed_starts = FailedStarts(0, 0)
        self._avoid, self._avoided = avoid, list[tuple[float, Any]]()
        self._stopping, self._suspects = False, Suspects()
        self._processes = EngineProcesses(node_lives)
        self._hung = 0
        self._control: ControlGroup | None = None

    def note_control_group(self, before: ControlGroup) -> None:
        """There is a floor of the agreement; ``before``: with the counts of earlier runs."""
        self._control = before

    def engine_starting(self, address: ProcessAddress) -> int:
        """Count an engine start; returns the starts since a trace was last finished.

        If the process before it in the same actor has not said that it ends, it was killed.
        """
        killed = self._processes.start(address)
        if killed is not None:
            self._forget(killed.address.engine)
            if self._processes.is_lost(killed):
                self._excuse_start()
            else:
                self._suspect_rows_of(killed)
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
        self._processes[engine].is_ready = True
        if self._ready_seconds is None:
            self._ready_seconds = time.monotonic() - self._started

    def engine_progress(
        self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
    ) -> ReportAnswer:
        """Add what ``engine`` did since its last report; returns what it has to know.

        ``released``: rows that it no longer holds.
        """
        self._totals.add(done)
        self._metrics.done(done)
        if done.generated:
            self._starts_since_row = self._poison_since_row = 0
        if done.spent_tokens:
            self._failed_starts = FailedStarts(0, self._failed_starts.in_a_row)
        self._processes.release(engine, released)
        moves = False
        if engine in self._engines:
            now = time.monotonic()
            seconds = max(1e-3, now - self._last_report[engine])
            share = 1 - math.exp(-seconds / RATE_SECONDS)
            last = self._engines[engine]
            rate = last.tokens_per_second
            rate += share * (done.spent_tokens / seconds - rate)
            figures = EngineFigures(engine, load.running, load.waiting, load.kv_usage, rate)
            # Long prompts bring no token for a while, but fill the cache.
            moves = figures != replace(last, tokens_per_second=rate)
            self._metrics.load(figures)
            self._engines[engine], self._last_report[engine] = figures, now
        has_tokens = done.spent_tokens > 0
        self._processes.report(engine, moves or has_tokens or done.rows > 0, has_tokens)
        group, ends = self._control_group() or ControlGroup(), self._processes.node_ends(engine)
        return ReportAnswer(self._stopping, group.rows, group.compared, group.agreeing, ends)

    def engine_closed(self, engine: str) -> None:
        """``engine`` has shut down, or has saved its traces and does nothing more."""
        if self._processes.node_ends(engine):
            self._excuse_start()
        self._forget(engine)

    def engine_died(self, engine: str, rows: Sequence[RowKey]) -> None:
        """``engine`` has died while ``rows`` ran on it."""
        self._forget(engine)
        self._blame(rows)

    def hung_engines(self, limits: HungLimits) -> list[ProcessAddress]:
        """Look at the engines; the processes of those that have hung since the last look."""
        return [process.address for process in self._processes.look(limits)]

    def engine_killed(self, engine: str) -> None:
        """``engine`` had hung, and its process was killed."""
        self._processes[engine].is_killed = True
        self._hung += 1

    def note_nodes(self, living: Collection[str], ending: Collection[str]) -> None:
        """The nodes that are there, and those that end soon: engines there learn it, and leave."""
        self._processes.note_nodes(living, ending)

    def snapshot(self) -> Snapshot:
        """The sums so far; silent engines are not counted."""
        self._totals.engine_seconds = self._processes.count_seconds()
        until = time.monotonic() - AVOID_SECONDS
        self._avoided = [(since, held) for since, held in self._avoided if since > until]
        oldest = time.monotonic() - SILENT_SECONDS
        engines = tuple(f for name, f in self._engines.items() if self._last_report[name] >= oldest)
        for silent in self._engines.keys() - {engine.name for engine in engines}:
            self._metrics.load(EngineFigures(silent))
        self._metrics.sizes(len(engines), self._unfinished.rows, self._totals.rows)
        return Snapshot(
            self._totals, self._unfinished.rows, self._ready_seconds, engines, self._engine_pool,
            self._hung, self._control_group(),
        )  # fmt: skip

    def stop(self) -> None:
        """Tell all engines, at their next report, to save their traces and stop."""
        self._stopping = True

    def hold(self, engine: str, rows: Sequence[RowKey]) -> tuple[list[Suspicion], set[str]]:
        """``engine`` takes ``rows``, until it reports that it releases them.

        Returns how far each is suspected of killing engines, and the names of living engines.
        """
        self._processes[engine].held.update(rows)
        oldest = time.monotonic() - LIVING_SECONDS
        living = {name for name in self._engines if self._last_report[name] > oldest}
        return self._suspects.of(rows), living

    def rendering(self, engine: str, rows: Sequence[RowKey]) -> None:
        """``engine`` makes the prompts of ``rows`` now, and of no others."""
        self._processes[engine].rendering = rows

    def suspects_running(self, engine: str, rows: Sequence[RowKey]) -> None:
        """Of the suspects, ``engine`` runs ``rows`` now, and nothing else."""
        self._processes[engine].suspects = rows

    def add_rows(self, rows: Mapping[str, int], to_come: int) -> None:
        """See `UnfinishedRows.add`."""
        self._unfinished.add(rows, to_come)

    def mark_durable(self, rows: Mapping[str, Sequence[int]]) -> list[str]:
        """See `UnfinishedRows.mark_durable`."""
        return self._unfinished.mark_durable(rows)

    def _control_group(self) -> ControlGroup | None:
        of = self._totals
        return self._control and self._control.plus(of.compared_rows, of.compared, of.agreeing)

    def _suspect_rows_of(self, killed: EngineProcess) -> None:
        """Suspect the rows of a process that ended without a word."""
        if rows := killed.rendering or killed.suspects:
            self._blame(rows)
        else:
            self._suspects.note_held(killed.held)

    def _blame(self, rows: Sequence[RowKey]) -> None:
        """Suspect ``rows``; if that finds the poison, the next start counts as the first again."""
        if self._suspects.blame(rows) and self._poison_since_row < POISON_IN_A_ROW:
            self._poison_since_row += 1
            self._starts_since_row = 0

    def _excuse_start(self) -> None:
        """The next start of an engine is no sign of a fault: its node has gone."""
        self._starts_since_row = max(0, self._starts_since_row - 1)

    def _forget(self, engine: str) -> None:
        self._processes.end(engine)
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

    def note_control_group(self, before: ControlGroup) -> None:
        """See `RunCoordinator.note_control_group`."""
        ray.get(self._send(RunCoordinator.note_control_group, before))

    def engine_start_failed(self, node: str) -> FailedStarts | None:
        """See `RunCoordinator.engine_start_failed`."""
        return ray.get(self._send(RunCoordinator.engine_start_failed, node))

    def engine_starting(self, address: ProcessAddress) -> int:
        """See `RunCoordinator.engine_starting`."""
        return ray.get(self._send(RunCoordinator.engine_starting, address))

    def engine_ready(self, engine: str) -> None:
        """See `RunCoordinator.engine_ready`; does not wait."""
        self._send(RunCoordinator.engine_ready, engine)

    def engine_progress(
        self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
    ) -> ObjectRef[ReportAnswer]:
        """See `RunCoordinator.engine_progress`; returns a reference to the answer."""
        return self._send(RunCoordinator.engine_progress, engine, done, load, released)

    def engine_closed(self, engine: str) -> None:
        """See `RunCoordinator.engine_closed`; waits `CALL_SECONDS` at most."""
        ray.get(self._send(RunCoordinator.engine_closed, engine), timeout=CALL_SECONDS)

    def engine_died(self, engine: str, rows: Sequence[RowKey]) -> None:
        """See `RunCoordinator.engine_died`."""
        ray.get(self._send(RunCoordinator.engine_died, engine, rows))

    def hung_engines(self, limits: HungLimits) -> list[ProcessAddress]:
        """See `RunCoordinator.hung_engines`; waits `CALL_SECONDS` at most."""
        return ray.get(self._send(RunCoordinator.hung_engines, limits), timeout=CALL_SECONDS)

    def engine_killed(self, engine: str) -> None:
        """See `RunCoordinator.engine_killed`; does not wait."""
        self._send(RunCoordinator.engine_killed, engine)

    def note_nodes(self, living: Collection[str], ending: Collection[str]) -> None:
        """See `RunCoordinator.note_nodes`; waits `CALL_SECONDS` at most."""
        ray.get(self._send(RunCoordinator.note_nodes, living, ending), timeout=CALL_SECONDS)

    def snapshot(self) -> Snapshot:
        """See `RunCoordinator.snapshot`; waits `CALL_SECONDS` at most."""
        return ray.get(self._send(RunCoordinator.snapshot), timeout=CALL_SECONDS)

    def stop(self, timeout: float) -> None:
        """See `RunCoordinator.stop`; waits ``timeout`` seconds at most."""
        ray.get(self._send(RunCoordinator.stop), timeout=timeout)

    def hold(self, engine: str, rows: Sequence[RowKey]) -> tuple[list[Suspicion], set[str]]:
        """See `RunCoordinator.hold`."""
        return ray.get(self._send(RunCoordinator.hold, engine, rows))

    def rendering(self, engine: str, rows: Sequence[RowKey]) -> None:
        """See `RunCoordinator.rendering`; waits only if there are rows."""
        noted = self._send(RunCoordinator.rendering, engine, rows)
        if rows:
            ray.get(noted)

    def suspects_running(self, engine: str, rows: Sequence[RowKey]) -> ObjectRef[None]:
        """See `RunCoordinator.suspects_running`; returns a reference to the answer."""
        return self._send(RunCoordinator.suspects_running, engine, rows)

    def add_rows(self, rows: Mapping[str, int], to_come: int) -> None:
        """See `RunCoordinator.add_rows`."""
        ray.get(self._send(RunCoordinator.add_rows, rows, to_come))

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


def rows_by_part(ranges: Iterable[Range]) -> Counter[str]:
    """How many rows ``ranges`` have of each part, by the text of its `PartRef`."""
    rows = Counter[str]()
    for piece in ranges:
        rows[str(PartRef.of(piece.part))] += piece.rows
    return rows


def start_coordinator(
    todo: Iterable[Range],
    output: str,
    engine_pool: EnginePool,
    avoid: Callable[[str], Any],
    node_lives: Callable[[str], bool],
) -> CoordinatorClient:
    """A new coordinator for the rows of ``todo``, on the driver's node; see `RunCoordinator`.

    It lives as long as a handle to it does.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(num_cpus=0)(RunCoordinator).options(scheduling_strategy=here)
    return CoordinatorClient(
        actor.remote(rows_by_part(todo), output, engine_pool, avoid, node_lives)
    )
