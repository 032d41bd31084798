"""Which engines hang: reports and tokens that do not come."""

from collections.abc import Sequence

import pytest

from pipeline.engines import EngineLoad
from pipeline.monitor.coordinator import RunCoordinator
from pipeline.monitor.engine_processes import HungLimits
from pipeline.monitor.figures import Totals
from tests.unit.monitor.conftest import address

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
