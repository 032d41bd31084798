"""When a worker claims more rows: by what its engines have left."""

from itertools import pairwise
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from pipeline.errors import EngineError, OutputError, QwqBatchError
from pipeline.execution import claimed_rows
from pipeline.execution.claimed_rows import IDLE_SECONDS, ClaimedRows, RowQueue
from pipeline.monitor.figures import EngineFigures, Snapshot, Totals
from pipeline.time_limits import LEASE_RENEW_SECONDS as RENEW_SECONDS

BUSY, IDLE = EngineFigures("e", running=2), EngineFigures("e")
QUEUED = EngineFigures("e", waiting=1)


class Engines:
    """In place of a coordinator, the module ``time``, and an event that nothing sets."""

    def __init__(self, *engines: EngineFigures) -> None:
        self.engines, self.rows, self.now, self.answers = engines, 0, 1000.0, True

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def snapshot(self) -> Snapshot:
        if not self.answers:
            raise GetTimeoutError
        return Snapshot(Totals(rows=self.rows), ready_seconds=0.0, engines=self.engines)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines(BUSY)
    monkeypatch.setattr(claimed_rows, "time", engines)
    return engines


def pace_of(engines: Any) -> claimed_rows._Pace:
    return claimed_rows._Pace(engines)


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


@pytest.mark.parametrize(
    ("takes", "done_after", "expected"),
    [
        ([["a"]], 99, ["a"]),
        ([None], 99, ()),
        ([[]], 0, ()),  # its engines are done: it waits with none
        ([[], [], ["a"]], 99, ["a"]),  # another worker has left
        ([[], None], 99, ()),
    ],
)
def test_worker_at_work_asks_again_for_what_others_leave(
    engines: Engines, takes: list[Any], done_after: float, expected: Any
) -> None:
    asked = list[float]()

    class Claims:
        def take(self) -> Any:
            asked.append(engines.now)
            return takes.pop(0)

    rows: Any = ClaimedRows.__new__(ClaimedRows)
    rows._claims, rows._over = Claims(), engines
    pace = pace_of(engines)
    engines.rows = 10 if done_after == 0 else 0
    assert rows._next(pace, 10) == expected
    assert not takes
    assert all(after - before == RENEW_SECONDS for before, after in pairwise(asked))


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
    error: Exception, kind: type[QwqBatchError], message: str
) -> None:
    """Otherwise the read tasks would wait for claims for ever, and the worker count as alive."""

    class Failing:
        rows_to_come = 0

        def add_rows(self, *_: object) -> None:
            raise error

    failing: Any = Failing()
    rows: Any = ClaimedRows.__new__(ClaimedRows)
    rows.todo, rows._claims, rows._most_claims = [], failing, 1
    reasons: list[QwqBatchError] = []
    rows._claim(failing, 1, reasons.append)
    assert [type(reason) for reason in reasons] == [kind]
    assert reasons[0].message.startswith(message)
