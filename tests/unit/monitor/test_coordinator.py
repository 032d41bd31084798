"""The coordinator: what it counts, which engines live, which parts are full; and the reporter."""

import asyncio
import inspect
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import pytest
from ray import ObjectRef

from pipeline.engines import EngineLoad
from pipeline.monitor import coordinator as module
from pipeline.monitor import reporter as reporter_module
from pipeline.monitor.coordinator import CoordinatorClient, ReportAnswer, RunCoordinator
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.engine_processes import HungLimits, ProcessAddress, RowKey
from pipeline.monitor.figures import EngineFigures, EnginePool, Totals
from pipeline.monitor.reporter import EngineReporter
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.time_limits import LIVING_SECONDS, SILENT_SECONDS


class NoMetrics:
    """Prometheus needs a cluster."""

    def __init__(self, *_: object) -> None:
        self.sizes = self.done = self.load = lambda *_: None


def address(engine: str = "a", actor: str = "actor") -> ProcessAddress:
    return ProcessAddress(engine, actor, "node", "host", 7, "1")


@pytest.fixture
def coordinator(monkeypatch: pytest.MonkeyPatch) -> RunCoordinator:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    return RunCoordinator({"part": 3}, "out", EnginePool())


def test_finished_trace_resets_the_count_of_engine_starts(coordinator: RunCoordinator) -> None:
    assert [coordinator.engine_starting(address()) for _ in range(3)] == [1, 2, 3]
    coordinator.engine_ready("a")
    assert coordinator.engine_progress("a", Totals(), EngineLoad()) == ReportAnswer(False)
    assert coordinator.engine_starting(address()) == 4
    coordinator.engine_progress("a", Totals(generated=1), EngineLoad())
    assert coordinator.engine_starting(address()) == 1


def test_engine_that_can_not_start_counts_apart_until_an_engine_generates(
    coordinator: RunCoordinator,
) -> None:
    assert coordinator.engine_start_failed("node") is None, (
        "the first start: the config is to blame"
    )
    coordinator.engine_starting(address())
    coordinator.engine_ready("a")
    for failures in (1, 2):
        assert coordinator.engine_starting(address()) == 2
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
    assert coordinator.hold("b", []) == ([], {"b", "c"})
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LIVING_SECONDS + 1)
    coordinator.engine_progress("b", Totals(), EngineLoad(5, 2, 0.5))
    assert coordinator.hold("b", []) == ([], {"b"})
    monkeypatch.setattr(time, "monotonic", lambda: now + SILENT_SECONDS + 1)
    assert coordinator.snapshot().engines == (EngineFigures("b", 5, 2, 0.5, 0.0),)


def test_engines_learn_of_the_end_with_their_report(coordinator: RunCoordinator) -> None:
    coordinator.engine_ready("a")
    coordinator.stop()
    answer = coordinator.engine_progress("a", Totals(spent_tokens=7), EngineLoad())
    assert answer.is_over is True
    assert coordinator.snapshot().totals.spent_tokens == 7


def test_engines_learn_how_the_control_group_of_all_does_if_there_is_a_floor(
    coordinator: RunCoordinator,
) -> None:
    """What earlier runs have counted is part of it."""
    some = Totals(compared_rows=3, compared=5, agreeing=4)
    assert coordinator.engine_progress("a", some, EngineLoad()) == (False, 0, 0, 0)
    assert coordinator.snapshot().control is None
    coordinator.note_control_group(ControlGroup(10, 10, 9, 0.9))
    assert coordinator.engine_progress("b", some, EngineLoad()) == (False, 16, 20, 17)
    assert coordinator.snapshot().control == ControlGroup(16, 20, 17, 0.9)


def test_rows_on_which_an_engine_died_are_suspects(coordinator: RunCoordinator) -> None:
    coordinator.engine_ready("a")
    coordinator.engine_died("a", [("part", 1)])
    suspicions, living = coordinator.hold("b", [("part", 0), ("part", 1)])
    assert suspicions == [Suspicion.NONE, Suspicion.ONE_OF_FEW]
    assert living == set()


def killed(coordinator: RunCoordinator, engine: str, successor: str) -> None:
    """The process of ``engine`` ends without a word, and Ray starts its actor again."""
    coordinator.engine_starting(address(successor))
    coordinator.engine_ready(successor)


ROWS = [("part", row) for row in range(4)]


def test_row_whose_prompt_kills_the_process_is_found_and_no_other(
    coordinator: RunCoordinator,
) -> None:
    """No word comes from such a process: the next one of the same actor tells that it was killed."""
    coordinator.engine_starting(address("a"))
    coordinator.engine_ready("a")
    coordinator.hold("a", ROWS)
    coordinator.rendering("a", ROWS[:2])
    killed(coordinator, "a", "b")
    assert coordinator.hold("b", ROWS)[0] == [Suspicion.ONE_OF_MANY] * 2 + [Suspicion.NONE] * 2
    for successor in "cd":
        coordinator.rendering("b" if successor == "c" else "c", ROWS[1:2])
        killed(coordinator, "b" if successor == "c" else "c", successor)
        [suspicions, _] = coordinator.hold(successor, ROWS)
    assert suspicions == [Suspicion.NONE, Suspicion.POISON, Suspicion.NONE, Suspicion.NONE]


def test_row_on_which_processes_are_killed_is_found_and_one_kill_suspects_nobody(
    coordinator: RunCoordinator,
) -> None:
    coordinator.engine_starting(address("0"))
    found: list[list[Suspicion]] = []
    for number in range(4):
        coordinator.hold(str(number), ROWS)
        coordinator.rendering(str(number), ())
        if found and found[-1] != [Suspicion.NONE] * 4:
            worst = max(found[-1])
            running = [row for row, s in zip(ROWS, found[-1], strict=True) if s == worst]
            coordinator.suspects_running(
                str(number), running if worst == Suspicion.ONE_OF_MANY else ROWS[2:3]
            )
        killed(coordinator, str(number), str(number + 1))
        found.append(coordinator.hold(str(number + 1), ROWS)[0])
    assert found[0] == [Suspicion.NONE] * 4, "a process may be killed for any reason"
    assert found[1] == [Suspicion.ONE_OF_MANY] * 4
    assert found[2] == [Suspicion.ONE_OF_FEW] * 4
    assert found[3] == [Suspicion.NONE, Suspicion.NONE, Suspicion.POISON, Suspicion.NONE]


def test_rows_of_a_process_that_ends_in_order_or_with_its_node_are_not_to_blame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    coordinator = RunCoordinator({}, "out", EnginePool(), node_lives=lambda _: False)
    for number in range(4):
        coordinator.engine_starting(address(str(number)))
        suspicions, _ = coordinator.hold(str(number), ROWS)
        coordinator.rendering(str(number), ROWS[:1])
    assert suspicions == [Suspicion.NONE] * 4, "their node was lost each time"
    coordinator = RunCoordinator({}, "out", EnginePool())
    for number in range(4):
        coordinator.engine_starting(address(str(number)))
        suspicions, _ = coordinator.hold(str(number), ROWS)
        coordinator.rendering(str(number), ROWS[:1])
        coordinator.engine_closed(str(number))
    assert suspicions == [Suspicion.NONE] * 4


def test_killers_among_the_first_rows_do_not_use_up_the_starts_but_an_engine_that_only_dies_does(
    coordinator: RunCoordinator,
) -> None:
    starts = []
    for row in range(4):
        for _ in range(2):
            starts.append(coordinator.engine_starting(address()))
            coordinator.engine_died("a", [("part", row)])
    assert starts == [1, 2, 1, 2, 1, 2, 3, 4]
    coordinator.engine_ready("a")
    coordinator.engine_progress("a", Totals(generated=1), EngineLoad())
    coordinator.engine_starting(address())
    coordinator.engine_died("a", [("part", 9)])
    coordinator.engine_starting(address())
    coordinator.engine_died("a", [("part", 9)])
    assert coordinator.engine_starting(address()) == 1


LIMITS = HungLimits(look=10, beside_others=60, alone=180)


def looks_until_hung(
    coordinator: RunCoordinator, reports: Sequence[tuple[str, Totals, EngineLoad]], most: int = 40
) -> tuple[int, list[str]]:
    """With ``reports`` before each look: after how many looks engines hang, and which."""
    for look in range(1, most + 1):
        for engine, done, load in reports:
            coordinator.engine_progress(engine, done, load)
        if hung := coordinator.hung_engines(LIMITS):
            return look, [address.engine for address in hung]
    return most, []


@pytest.fixture
def two_engines(coordinator: RunCoordinator) -> RunCoordinator:
    for name in "ab":
        coordinator.engine_starting(address(name, actor=name))
        coordinator.engine_ready(name)
        coordinator.hold(name, [("part", ord(name))])
    return coordinator


BUSY = Totals(spent_tokens=64)


def test_engine_that_says_nothing_hangs_sooner_while_another_works(
    two_engines: RunCoordinator,
) -> None:
    assert looks_until_hung(two_engines, [("b", BUSY, EngineLoad(1))]) == (6, ["a"])


def test_engine_that_reports_but_makes_no_token_hangs_too(two_engines: RunCoordinator) -> None:
    stuck = ("a", Totals(), EngineLoad(3, 2, 0.5))
    two_engines.engine_progress(*stuck)
    two_engines.hung_engines(LIMITS)
    assert looks_until_hung(two_engines, [stuck, ("b", BUSY, EngineLoad(1))]) == (6, ["a"])


def test_engine_whose_cache_fills_with_long_prompts_does_not_hang(
    two_engines: RunCoordinator,
) -> None:
    for look in range(40):
        two_engines.engine_progress("a", Totals(), EngineLoad(3, 2, look / 100))
        two_engines.engine_progress("b", BUSY, EngineLoad(1))
        assert not two_engines.hung_engines(LIMITS)


def test_engine_without_rows_that_reports_does_not_hang_and_one_that_is_stopped_does(
    two_engines: RunCoordinator,
) -> None:
    two_engines.engine_progress("a", Totals(), EngineLoad(), [("part", ord("a"))])
    idle, busy = ("a", Totals(), EngineLoad()), ("b", BUSY, EngineLoad(1))
    assert looks_until_hung(two_engines, [idle, busy]) == (40, [])
    assert looks_until_hung(two_engines, [busy]) == (6, ["a"]), "the next rows would go to it"


def test_engines_that_are_silent_together_are_given_more_time_and_killed_one_by_one(
    two_engines: RunCoordinator,
) -> None:
    first = looks_until_hung(two_engines, [])
    assert first == (18, ["a"])
    two_engines.engine_killed("a")
    assert looks_until_hung(two_engines, []) == (18, ["b"])


def test_hung_engine_that_could_not_be_killed_is_named_again(two_engines: RunCoordinator) -> None:
    busy = ("b", BUSY, EngineLoad(1))
    assert looks_until_hung(two_engines, [busy]) == (6, ["a"])
    assert looks_until_hung(two_engines, [busy]) == (6, ["a"])
    two_engines.engine_killed("a")
    assert looks_until_hung(two_engines, [busy]) == (40, [])
    assert two_engines.snapshot().hung == 1


def test_engine_that_starts_does_not_hang(coordinator: RunCoordinator) -> None:
    """A model may take an hour to load."""
    coordinator.engine_starting(address("a", actor="a"))
    coordinator.engine_starting(address("b", actor="b"))
    coordinator.engine_ready("b")
    assert looks_until_hung(coordinator, [("b", BUSY, EngineLoad(1))]) == (40, [])


def test_engine_that_was_silent_for_a_while_counts_again(
    coordinator: RunCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the driver would not wait for it at the end."""
    coordinator.engine_ready("a")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + SILENT_SECONDS + 1)
    assert coordinator.snapshot().engines == ()
    coordinator.engine_progress("a", Totals(), EngineLoad(5))
    assert [engine.running for engine in coordinator.snapshot().engines] == [5]


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

    def engine_progress(
        self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
    ) -> ObjectRef[ReportAnswer]:
        self.spent.append(done.spent_tokens)
        answer: Any = Future[ReportAnswer]()
        answer.set_result(ReportAnswer(len(self.spent) > 1, 1, len(self.spent), 1))
        answer.future = lambda: answer
        reference: ObjectRef[ReportAnswer] = answer
        return reference


def test_preemptions_are_reported_once() -> None:
    reported = list[Totals]()

    class Kept(Reports):
        def engine_progress(
            self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
        ) -> ObjectRef[ReportAnswer]:
            reported.append(done)
            return super().engine_progress(engine, done, load, released)

    loads = iter(
        [EngineLoad(preemptions=2, recomputed_tokens=90)] * 2 + [EngineLoad(preemptions=3)]
    )
    reporter = EngineReporter(Kept(), "a", lambda: next(loads), lambda: None)
    for _ in range(2):
        reporter.send()
    assert [(done.preemptions, done.recomputed_tokens) for done in reported] == [(2, 90), (0, 0)]


def test_engine_reports_on_while_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent engine counts as gone: the driver would end before its traces are saved."""
    monkeypatch.setattr(reporter_module, "REPORT_SECONDS", 0.001)
    reports, stops = Reports(), list[int]()
    control = list[tuple[int, int, int]]()
    reporter = EngineReporter(
        reports, "a", EngineLoad, lambda: stops.append(len(reports.spent)),
        lambda *counts: control.append(counts),
    )  # fmt: skip
    reporter.done.spent_tokens = 7

    async def report() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reporter.keep_reporting(), 0.2)

    asyncio.run(report())
    assert stops == [2]
    assert len(reports.spent) > 3
    assert control[:3] == [(1, 1, 1), (1, 2, 1), (1, 3, 1)]
    assert sum(reports.spent) == 7, "each count is sent once"
