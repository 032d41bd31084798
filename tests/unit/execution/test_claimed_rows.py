"""When a worker claims more rows: by what its engines have left."""

import math
from itertools import pairwise
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from pipeline.errors import EngineError, HandedOverError, OutputError, QwqBatchError
from pipeline.execution import claimed_rows
from pipeline.execution.claimed_rows import (
    IDLE_SECONDS,
    KEEP_SECONDS,
    WORTH_SECONDS,
    ClaimedRows,
    RowQueue,
)
from pipeline.monitor.figures import EngineFigures, Snapshot, Totals
from pipeline.time_limits import LEASE_RENEW_SECONDS as RENEW_SECONDS

BUSY, IDLE = EngineFigures("e", running=2), EngineFigures("e")
QUEUED = EngineFigures("e", waiting=1)


class Engines:
    """In place of a coordinator, the module ``time``, and an event that nothing sets."""

    def __init__(self, *engines: EngineFigures) -> None:
        self.engines, self.rows, self.now, self.answers = engines, 0, 1000.0, True
        self.tokens, self.is_over = 0, False

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def is_set(self) -> bool:
        return self.is_over

    def snapshot(self) -> Snapshot:
        if not self.answers:
            raise GetTimeoutError
        totals = Totals(rows=self.rows, spent_tokens=self.tokens, generated=self.rows)
        return Snapshot(totals, ready_seconds=0.0, engines=self.engines)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines(BUSY)
    monkeypatch.setattr(claimed_rows, "time", engines)
    return engines


SLOTS = 16


def pace_of(engines: Any) -> claimed_rows._Pace:
    return claimed_rows._Pace(engines, SLOTS)


def test_rows_that_engines_have_done_are_not_left(engines: Engines) -> None:
    pace = pace_of(engines)
    assert pace.left(10) == 10
    engines.rows = 4
    assert pace.left(10) == 6
    engines.rows = 12  # some were done again, as an engine had died
    assert pace.left(10) == 0


def test_nothing_changes_while_the_coordinator_does_not_answer(engines: Engines) -> None:
    pace = pace_of(engines)
    engines.rows = 4
    pace.left(10)
    engines.answers, engines.now = False, 9999.0
    assert pace.left(10) == 6


@pytest.mark.parametrize("load", [(IDLE,), (IDLE, IDLE)])
def test_rows_that_an_engine_has_not_reported_count_once_all_are_idle(
    engines: Engines, load: tuple[EngineFigures, ...]
) -> None:
    pace = pace_of(engines)
    engines.rows, engines.engines = 7, load
    assert pace.left(10) == 3
    engines.now += IDLE_SECONDS
    assert pace.left(10) == 3
    engines.now += 1
    assert pace.left(10) == 0
    engines.engines, engines.rows = (BUSY,), 8
    assert pace.left(20) == 9, "those of the next claim are left"


@pytest.mark.parametrize("load", [(), (BUSY,), (IDLE, BUSY), (QUEUED,)])
def test_engines_that_start_or_work_are_waited_for(
    engines: Engines, load: tuple[EngineFigures, ...]
) -> None:
    pace = pace_of(engines)
    engines.engines = load
    for _ in range(5):
        assert pace.left(10) == 10
        engines.now += IDLE_SECONDS


def test_pace_is_that_since_the_engines_were_ready(engines: Engines) -> None:
    pace = pace_of(engines)
    assert pace.rows_in(5) == 0
    engines.now += 20
    engines.rows = 40
    pace.left(50)
    assert pace.rows_in(5) == 10


def test_speed_of_traces_is_that_while_slots_are_full_and_of_the_last_minute(
    engines: Engines,
) -> None:
    pace = pace_of(engines)

    def run(seconds: int, left: int, running: int, tokens: int) -> None:
        engines.engines = (EngineFigures("a", running=running - 1), EngineFigures("b", running=1))
        for _ in range(seconds):
            engines.now, engines.tokens = engines.now + 1, engines.tokens + tokens
            pace.left(left)

    assert (pace.at_full_slots, pace.trace_seconds, pace.now) == (0.0, 0.0, math.inf)
    run(20, left=1000, running=SLOTS, tokens=0)  # the first tokens come late
    run(39, left=1000, running=SLOTS, tokens=30 * SLOTS)
    assert (pace.at_full_slots, pace.now) == (0.0, math.inf), "too early to tell"
    run(1, left=1000, running=SLOTS, tokens=30 * SLOTS)
    assert (pace.at_full_slots, pace.now) == (20.0, 20.0)
    run(int(WORTH_SECONDS), left=12, running=10, tokens=300)  # fewer than slots
    assert (pace.at_full_slots, pace.now) == (20.0, 30.0)
    run(10, left=12, running=10, tokens=0)
    assert pace.now == 25.0
    run(40, left=12, running=10, tokens=0)
    assert pace.now == 20.0, "not less than with full slots"


def test_duration_of_traces_counts_those_that_run(engines: Engines) -> None:
    pace = pace_of(engines)
    engines.engines = (EngineFigures("a", running=10),)
    for _ in range(18):
        engines.now += 1
        pace.left(10)
    assert pace.trace_seconds == 18.0, "none has ended"
    engines.rows, engines.now = 5, engines.now + 2
    pace.left(10)
    assert pace.trace_seconds == pytest.approx(200 / 15)


class BoardClaims:
    """In place of `Claims`: gives what it is told, and notes when it is asked for it."""

    def __init__(self, engines: Engines, takes: list[Any], slower: int = 0) -> None:
        self.takes, self._engines, self._slower = takes, engines, slower
        self.asked, self.told, self.offers = list[float](), list[int](), list[tuple[int, float]]()
        self.free, self.pace, self.at_once, self.has_room = 0, 30.0, 0, False
        self.is_promised = False

    @property
    def may_get_rows(self) -> bool:
        self._slower -= 1
        return self._slower >= 0

    def take(self) -> Any:
        self.asked.append(self._engines.now)
        self.told.append(self.free)
        return self.takes.pop(0)

    def hand_over(self, rows: int, pace: float) -> bool:
        self.offers.append((rows, pace))
        return self.has_room


def rows_with(claims: Any, engines: Any) -> Any:
    rows: Any = ClaimedRows.__new__(ClaimedRows)
    rows._claims, rows._over, rows._slots, rows._hands_over = claims, engines, SLOTS, True
    return rows


@pytest.mark.parametrize(
    ("takes", "done", "expected"),
    [
        ([["a"]], 0, ["a"]),
        ([None], 0, ()),
        ([[]], 10, ()),  # its engines are done: it waits with none
        ([[], [], ["a"]], 0, ["a"]),  # another worker has left
        ([[], None], 0, ()),
    ],
)
def test_worker_at_work_asks_again_for_what_others_leave(
    engines: Engines, takes: list[Any], done: int, expected: Any
) -> None:
    claims = BoardClaims(engines, takes)
    pace = pace_of(engines)
    engines.rows = done
    assert rows_with(claims, engines)._next(pace, 10) == expected
    assert not takes
    assert all(after - before == RENEW_SECONDS for before, after in pairwise(claims.asked))


def test_engines_without_work_wait_for_what_a_slower_worker_hands_over(engines: Engines) -> None:
    claims, pace = BoardClaims(engines, [[], [], [], ["moved"]], slower=99), pace_of(engines)
    engines.rows = 10
    assert rows_with(claims, engines)._next(pace, 10) == ["moved"]
    assert claims.told == [SLOTS] * 4
    assert not claims.offers, "it has no rows"
    claims = BoardClaims(engines, [[], []], slower=25)
    assert rows_with(claims, engines)._next(pace, 10) == (), "the slower one has ended"
    claims, began = BoardClaims(engines, [[]] * 999, slower=9999), engines.now
    assert rows_with(claims, engines)._next(pace, 10) == (), "it hands nothing over"
    assert engines.now - began == pytest.approx(KEEP_SECONDS, abs=2)
    claims = BoardClaims(engines, [*[[]] * 99, ["moved"]])
    claims.is_promised = True
    assert rows_with(claims, engines)._next(pace, 10) == ["moved"], "however long that takes"


def test_free_slots_are_told_in_eighths(engines: Engines) -> None:
    claims, pace = BoardClaims(engines, [[], ["a"]]), pace_of(engines)
    engines.rows = 5
    rows_with(claims, engines)._next(pace, 16)
    assert claims.told == [4, 4]


def test_last_rows_are_handed_over_if_that_is_worth_it(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims, pace = BoardClaims(engines, []), pace_of(engines)
    rows = rows_with(claims, engines)

    def offered(takes: list[Any], seconds: float) -> list[tuple[int, float]]:
        monkeypatch.setattr(claimed_rows._Pace, "trace_seconds", seconds)
        claims.takes, claims.offers = takes, []
        assert rows._next(pace, 4) == ()
        return claims.offers

    claims.has_room = True
    assert not offered([[], [], None], WORTH_SECONDS - 1)
    claims.has_room = False
    assert [rows for rows, _ in offered([[], [], None], WORTH_SECONDS)] == [4]
    claims.has_room = True
    rows._hands_over = False
    assert not offered([[], [], None], WORTH_SECONDS), "it could not be broken off"
    rows._hands_over, engines.is_over = True, True
    assert not offered([[], [], None], WORTH_SECONDS), "the execution has failed meanwhile"
    engines.is_over, claims.takes = False, [[], []]
    with pytest.raises(HandedOverError, match="the last 4 rows go to faster workers"):
        rows._next(pace, 4)


def test_speed_of_before_is_told_until_the_slots_are_full_again(engines: Engines) -> None:
    claims, pace = BoardClaims(engines, []), pace_of(engines)
    rows_with(claims, engines)._at_once(4, pace)
    assert claims.pace == 30.0


def test_a_task_that_is_repeated_gets_the_same_claim() -> None:
    queue = RowQueue()
    first: Any = ["rows"]
    queue.add(first)
    assert queue.claim(0) is queue.claim(0) is first
    assert queue.claim(1) is None
    queue.end()
    assert queue.claim(0) is first
    assert queue.claim(1) == ()


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OutputError("a folder is gone"), OutputError, "a folder is gone"),
        (AttributeError("no items"), EngineError, "the run ended early: no items"),
    ],
)
def test_whatever_goes_wrong_with_claims_ends_the_run(
    error: Exception, kind: type[QwqBatchError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the read tasks would wait for claims for ever, and the worker count as alive."""

    class Queue:
        class end:  # noqa: N801 (a method of an actor)
            @staticmethod
            def remote() -> bool:
                return True

    class Failing:
        rows_to_come = 0

        def add_rows(self, *_: object) -> None:
            raise error

    failing: Any = Failing()
    rows: Any = ClaimedRows.__new__(ClaimedRows)
    rows.todo, rows._claims, rows._most_claims, rows._queue = [], failing, 1, Queue()
    ended = list[bool]()
    monkeypatch.setattr("ray.get", lambda answer, timeout: ended.append(answer))
    reasons: list[QwqBatchError] = []
    rows._claim(failing, pace_of(failing), 1, reasons.append)
    assert ended == [True], "the read tasks wait no longer"
    assert [type(reason) for reason in reasons] == [kind]
    assert reasons[0].message.startswith(message)
