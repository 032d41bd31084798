"""The coordinator: what it counts, which engines live, which rows kill, which parts are full."""

import inspect
import time
import weakref
from types import SimpleNamespace
from typing import ClassVar

import pytest

from pipeline.engines import EngineLoad
from pipeline.monitor import coordinator as module
from pipeline.monitor import engine_processes as processes_module
from pipeline.monitor.coordinator import CoordinatorClient, ReportAnswer, RunCoordinator
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.figures import EngineFigures, EnginePool, Totals
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.time_limits import LIVING_SECONDS, SILENT_SECONDS
from tests.unit.monitor.conftest import NoMetrics, address


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
    assert coordinator.engine_progress("a", some, EngineLoad()) == ReportAnswer(False)
    assert coordinator.snapshot().control is None
    coordinator.note_control_group(ControlGroup(10, 10, 9, 0.9))
    assert coordinator.engine_progress("b", some, EngineLoad()) == ReportAnswer(False, 16, 20, 17)
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


def test_engine_learns_that_its_node_ends_and_its_next_start_does_not_count(
    coordinator: RunCoordinator,
) -> None:
    """Where spot nodes come and go for hours before a trace ends, starts are no sign of a fault."""
    for start in range(1, 4):
        name = f"a{start}"
        assert coordinator.engine_starting(address(name, "a", "ends")) == 1
        coordinator.engine_ready(name)
        coordinator.note_nodes({"stays", "ends"}, ())
        assert not coordinator.engine_progress(name, Totals(), EngineLoad()).node_ends
        coordinator.note_nodes({"stays", "ends"}, {"ends"})
        assert coordinator.engine_progress(name, Totals(), EngineLoad()).node_ends
        coordinator.engine_closed(name)
        coordinator.engine_closed(name)
    coordinator.engine_starting(address("b", "b", "stays"))
    assert not coordinator.engine_progress("b", Totals(), EngineLoad()).node_ends
    coordinator.engine_closed("b")
    assert coordinator.engine_starting(address("c", "b", "stays")) == 2


def test_start_after_a_lost_node_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    coordinator = RunCoordinator({}, "out", EnginePool(), node_lives=lambda node: node == "stays")
    assert coordinator.engine_starting(address("a", "1", "goes")) == 1
    assert coordinator.engine_starting(address("b", "1", "stays")) == 1
    assert coordinator.engine_starting(address("c", "1", "stays")) == 2, "a death of its own"


def test_time_of_engines_counts_while_they_have_their_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr(processes_module, "time", clock)
    monkeypatch.setattr(module, "Metrics", NoMetrics)
    coordinator = RunCoordinator({}, "out", EnginePool())

    def counted() -> float:
        return coordinator.snapshot().totals.engine_seconds

    now += 5
    assert counted() == 0, "no engine is there yet"
    for name in "ab":
        coordinator.engine_starting(address(name, name, f"node {name}"))
    now += 10
    assert counted() == 20, "engines that load their model have their GPUs"
    coordinator.note_nodes({"node a", "node b"}, ())
    now += 1
    coordinator.note_nodes({"node a"}, ())
    now += 10
    assert counted() == 32, "of a lost node nothing counts any more"
    coordinator.engine_closed("a")
    now += 10
    assert counted() == 32


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


def test_rows_to_do_are_those_claimed_and_those_that_a_worker_expects(
    coordinator: RunCoordinator,
) -> None:
    begun = coordinator.snapshot().rows_to_do
    coordinator.add_rows({}, 90)
    assert coordinator.snapshot().rows_to_do == begun + 90
    coordinator.add_rows({"p.parquet 0 50": 30}, 20)
    assert coordinator.snapshot().rows_to_do == begun + 50
    coordinator.add_rows({}, 0)
    assert coordinator.snapshot().rows_to_do == begun + 30
