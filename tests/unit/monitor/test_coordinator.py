"""The coordinator: what it counts, which engines live, which parts are full; and the reporter."""

import asyncio
import inspect
import time
import weakref
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest
from ray import ObjectRef

from pipeline.engines import EngineLoad
from pipeline.monitor import coordinator as module
from pipeline.monitor.coordinator import CoordinatorClient, EngineReporter, RunCoordinator
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.figures import EngineFigures, EnginePool, Totals
from pipeline.time_limits import LIVING_SECONDS, SILENT_SECONDS


class NoMetrics:
    """Prometheus needs a cluster."""

    def __init__(self, *_: object) -> None:
        self.sizes = self.done = self.load = lambda *_: None


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> RunCoordinator:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    return RunCoordinator({"part": 3}, "out", EnginePool())


def test_finished_trace_resets_the_count_of_engine_starts(coordinator: RunCoordinator) -> None:
    assert [coordinator.engine_starting() for _ in range(3)] == [1, 2, 3]
    coordinator.engine_ready("a")
    assert coordinator.engine_progress("a", Totals(), EngineLoad()) is False
    assert coordinator.engine_starting() == 4
    coordinator.engine_progress("a", Totals(generated=1), EngineLoad())
    assert coordinator.engine_starting() == 1


def test_engine_that_can_not_start_counts_apart_until_an_engine_generates(
    coordinator: RunCoordinator,
) -> None:
    assert coordinator.engine_start_failed("node") is None, (
        "the first start: the config is to blame"
    )
    coordinator.engine_starting()
    coordinator.engine_ready("a")
    for failures in (1, 2):
        assert coordinator.engine_starting() == 2
        assert coordinator.engine_start_failed("node") == (failures, failures)
    coordinator.engine_progress("a", Totals(), EngineLoad())
    assert coordinator.engine_start_failed("node") == (3, 3)
    coordinator.engine_progress("a", Totals(spent_tokens=64), EngineLoad())
    failed = coordinator.engine_start_failed("node")
    assert failed == (1, 4)
    assert failed.doublings == 3, "waits grow while others work"
    coordinator.engine_ready("b")
    failed = coordinator.engine_start_failed("node")
    assert failed == (2, 1)
    assert failed.doublings == 1


class Occupant:
    """What keeps a place; knows whether it is held."""

    held: ClassVar[list["weakref.ref[Occupant]"]] = []

    def __init__(self) -> None:
        self.held.append(weakref.ref(self))


def test_nodes_are_avoided_for_a_while_or_until_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    monkeypatch.setattr(Occupant, "held", [])
    elsewhere = True
    coordinator = RunCoordinator(
        {"part": 3}, "out", EnginePool(), lambda _: Occupant() if elsewhere else None
    )

    def held() -> int:
        return sum(handle() is not None for handle in Occupant.held)

    coordinator.engine_ready("a")
    for node in "112":
        coordinator.engine_start_failed(node)
    assert held() == 3, "two engines of a node that both fail need two places"
    elsewhere = False
    coordinator.engine_start_failed("3")
    assert held() == 0
    elsewhere = True
    coordinator.engine_start_failed("1")
    coordinator.snapshot()
    assert held() == 1
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + module.AVOID_SECONDS + 1)
    coordinator.snapshot()
    assert held() == 0, "a place that is never given back is lost to the run"


def test_node_that_can_not_be_avoided_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Metrics", NoMetrics)

    def broken(_: str) -> None:
        raise RuntimeError("Ray's own server is busy")

    coordinator = RunCoordinator({"part": 3}, "out", EnginePool(), broken)
    coordinator.engine_ready("a")
    assert coordinator.engine_start_failed("1") == (1, 1)


def test_silent_and_closed_engines_are_not_counted(
    coordinator: RunCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        coordinator.engine_ready(name)
    coordinator.engine_closed("a")
    assert [engine.name for engine in coordinator.snapshot().engines] == ["b", "c"]
    assert coordinator.crash_status([]) == ([], {"b", "c"})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LIVING_SECONDS + 1)
    coordinator.engine_progress("b", Totals(), EngineLoad(5, 2, 0.5))
    assert coordinator.crash_status([]) == ([], {"b"})
    monkeypatch.setattr(time, "monotonic", lambda: now + SILENT_SECONDS + 1)
    assert coordinator.snapshot().engines == (EngineFigures("b", 5, 2, 0.5, 0.0),)


def test_engines_learn_of_the_end_with_their_report(coordinator: RunCoordinator) -> None:
    coordinator.engine_ready("a")
    coordinator.stop()
    assert coordinator.engine_progress("a", Totals(spent_tokens=7), EngineLoad()) is True
    assert coordinator.snapshot().totals.spent_tokens == 7


def test_rows_on_which_an_engine_died_are_suspects(coordinator: RunCoordinator) -> None:
    coordinator.engine_ready("a")
    coordinator.engine_died("a", [("part", 1)])
    suspicions, living = coordinator.crash_status([("part", 0), ("part", 1)])
    assert suspicions == [Suspicion.NONE, Suspicion.ONE_OF_FEW]
    assert living == set()


def test_part_is_full_once_its_rows_are_durable_and_stays_so(coordinator: RunCoordinator) -> None:
    assert coordinator.mark_durable({"part": [0, 1]}) == []
    assert coordinator.mark_durable({"part": [1]}) == []
    assert coordinator.mark_durable({"part": [2]}) == ["part"]
    assert coordinator.mark_durable({"part": [2]}) == ["part"]


def test_client_has_each_method_of_the_coordinator_with_its_arguments() -> None:
    def methods(of: type) -> dict[str, list[str]]:
        public = {name: f for name, f in vars(of).items() if not name.startswith("_")}
        # Ray adds an argument by keyword to the methods of a class that has become an actor.
        return {
            name: [p.name for p in inspect.signature(f).parameters.values() if p.kind != p.KEYWORD_ONLY]
            for name, f in public.items()
        }  # fmt: skip

    ours, theirs = methods(CoordinatorClient), methods(RunCoordinator)
    assert ours.keys() == theirs.keys()
    assert all(ours[name][: len(theirs[name])] == theirs[name] for name in theirs)


class Reports(CoordinatorClient):
    """Answers the reports of one engine; the run ends with the second."""

    def __init__(self) -> None:
        self.spent: list[int] = []

    def engine_progress(self, engine: str, done: Totals, load: EngineLoad) -> ObjectRef[bool]:
        self.spent.append(done.spent_tokens)
        answer: Any = Future[bool]()
        answer.set_result(len(self.spent) > 1)
        answer.future = lambda: answer
        reference: ObjectRef[bool] = answer
        return reference


def test_preemptions_are_reported_once() -> None:
    reported = list[Totals]()

    class Kept(Reports):
        def engine_progress(self, engine: str, done: Totals, load: EngineLoad) -> ObjectRef[bool]:
            reported.append(done)
            return super().engine_progress(engine, done, load)

    loads = iter(
        [EngineLoad(preemptions=2, recomputed_tokens=90)] * 2 + [EngineLoad(preemptions=3)]
    )
    reporter = EngineReporter(Kept(), "a", lambda: next(loads), lambda: None)
    for _ in range(2):
        reporter.send()
    assert [(done.preemptions, done.recomputed_tokens) for done in reported] == [(2, 90), (0, 0)]


def test_engine_reports_on_while_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent engine counts as gone: the driver would end before its traces are saved."""
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.001)
    reports, stops = Reports(), list[int]()
    reporter = EngineReporter(reports, "a", EngineLoad, lambda: stops.append(len(reports.spent)))
    reporter.done.spent_tokens = 7

    async def report() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reporter.keep_reporting(), 0.2)

    asyncio.run(report())
    assert stops == [2]
    assert len(reports.spent) > 3
    assert sum(reports.spent) == 7, "each count is sent once"
