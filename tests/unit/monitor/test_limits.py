"""Where a run ends though rows are left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, LimitReachedError
from pipeline.monitor import limits
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import EngineFigures, Snapshot, Totals
from pipeline.monitor.limits import Limits, cost_minutes
from pipeline.time_limits import LIMIT_NOTICE_SECONDS


class FakeCoordinator(CoordinatorClient):
    """Engines that have spent some tokens."""

    def __init__(self, tokens: int) -> None:
        self.asked, self._tokens = 0, tokens

    def snapshot(self) -> Snapshot:
        self.asked += 1
        return Snapshot(Totals(spent_tokens=self._tokens))


def _config(
    engine: dict[str, Any] | None = None, price: float | None = 2.5, **given: Any
) -> RunConfig:
    return parse_config(
        {
            "input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "qwq-nano"},
            "limits": given, "engine": engine or {}, "prices": {"gpu_hour": price},
        }
    )  # fmt: skip


def _reason(ready: Limits) -> str:
    told: list[Exception] = []
    heard = threading.Event()

    def end(reason: Exception) -> None:
        told.append(reason)
        heard.set()

    with ready.enforced(end):
        assert heard.wait(60)
    [reason] = told
    assert isinstance(reason, LimitReachedError)
    return str(reason)


@pytest.mark.parametrize(
    ("given", "seconds", "why"),
    [
        ({"minutes": 0.001}, None, "limits.minutes is reached"),
        ({"minutes": 60}, 0, "the scheduler's time limit is reached"),
        ({"cost": 0.0001, "minutes": 600}, 3600, "limits.cost is reached"),
    ],
)
def test_the_nearest_limit_ends_the_run(
    given: dict[str, Any], seconds: float | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.01)
    assert _reason(Limits(_config(**given), seconds)).startswith(f"{why}; finished rows are kept")


def test_no_limit_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.01)
    told: list[Exception] = []
    with Limits(_config()).enforced(told.append):
        threading.Event().wait(0.1)
    assert told == []


def test_engines_are_told_a_minute_before(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, now = Limits(_config(minutes=10)), 0.0
    monkeypatch.setattr(Limits, "seconds", property(lambda _: now))
    for now, reached in ((539, None), (541, "limits.minutes")):  # noqa: B007 (the property reads it)
        assert ready._reached() == reached


def test_tokens_of_all_lanes_and_passes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.01)
    seen = []

    @contextmanager
    def observer(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
        seen.append((rows, tier))
        yield

    ready = Limits(_config(output_tokens=1000))
    tracking = ready.tracking(observer)
    for rows, tier, tokens in ((3, "native", 600), (2, "yarn", 500)):
        with tracking(FakeCoordinator(tokens), rows, tier):
            pass
    assert seen == [(3, "native"), (2, "yarn")]
    assert ready.totals.spent_tokens == 1100
    assert _reason(ready).startswith("limits.output_tokens is reached")


def test_cost_is_that_of_all_gpus() -> None:
    engine = {"replicas": 2, "tensor_parallel": 2, "pipeline_parallel": 2}
    assert cost_minutes(_config(engine, cost=40)) == pytest.approx(120)
    assert cost_minutes(_config(engine)) is None
    with pytest.raises(ConfigError, match=r"limits\.cost needs prices\.gpu_hour"):
        _config(price=None, cost=3)


def test_cost_of_a_range_is_that_of_the_engines_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two GPUs an engine, 2.5 an hour for each: ten engine-hours cost 50."""
    config = _config({"replicas": [1, 8], "tensor_parallel": 2}, cost=50)
    assert cost_minutes(config) is None

    class Engines(CoordinatorClient):
        def __init__(self, hours: float) -> None:
            self._hours = hours

        def snapshot(self) -> Snapshot:
            three = tuple(EngineFigures(name) for name in "abc")
            return Snapshot(Totals(engine_seconds=3600 * self._hours), engines=three)

    now = 0.0
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
    ready = Limits(config)
    now = 1e6  # time alone costs nothing
    notice = 3 * LIMIT_NOTICE_SECONDS / 3600  # a minute of three engines
    for hours, cost, reached in (
        (6, 30, None),
        (3.9 - notice, None, None),
        (0.2, None, "limits.cost"),
    ):
        with ready.tracking(_plain)(Engines(hours), 1, ""):
            pass
        assert ready._reached() == reached
        assert cost is None or ready.cost == pytest.approx(cost)
    plain = Limits(_config({"replicas": 2}, minutes=6000))
    now += 3600
    assert plain.cost == pytest.approx(5), "a fixed number is paid for from start to end"


def test_no_coordinator_is_asked_once_its_engines_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With Ray gone, asking would start another."""
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.001)

    @contextmanager
    def observer(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
        yield

    ready, coordinator = Limits(_config()), FakeCoordinator(7)
    with ready.enforced(lambda _: None):
        with ready.tracking(observer)(coordinator, 1, ""):
            threading.Event().wait(0.05)
        assert coordinator.asked
        coordinator.asked = 0
        threading.Event().wait(0.05)
    assert not coordinator.asked
    assert ready.totals.spent_tokens == 7


@pytest.mark.parametrize(
    ("given", "seconds", "not_yet", "end", "name"),
    [
        ({"minutes": 10}, None, 539.9, 540, "limits.minutes"),
        ({}, 120, 59.9, 60, "the scheduler's time limit"),
        ({}, 30, 14.9, 15, "the scheduler's time limit"),  # a short limit: half of it
        ({"minutes": 11, "cost": 2.5 / 6}, 720, 539.9, 540.1, "limits.cost"),  # 10 minutes of a GPU
    ],
)
def test_time_limit_ends_the_run_a_minute_before_and_not_earlier(
    given: dict[str, Any],
    seconds: float | None,
    not_yet: float,
    end: float,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 5000.0
    monkeypatch.setattr(limits, "time", SimpleNamespace(monotonic=lambda: now))
    ready = Limits(_config(**given), seconds)
    assert (ready.seconds, ready._reached()) == (0, None)
    now = 5000 + not_yet
    assert ready._reached() is None
    now = 5000 + end
    assert ready._reached() == name
    assert ready.seconds == pytest.approx(end)


@contextmanager
def _plain(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
    yield


class GrowingCoordinator(FakeCoordinator):
    """Engines that have spent 100 tokens more each time; the first question fails."""

    def snapshot(self) -> Snapshot:
        self._tokens += 100
        if self._tokens == 100:
            raise RuntimeError("the node is gone")
        return super().snapshot()


def test_tokens_end_the_run_while_engines_work_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.001)
    ready, coordinator = Limits(_config(output_tokens=1000)), GrowingCoordinator(0)
    told, spent = threading.Event(), list[int]()

    def end(reason: Exception) -> None:
        spent.append(ready.totals.spent_tokens)
        told.set()

    with ready.enforced(end), ready.tracking(_plain)(coordinator, 1, ""):
        assert told.wait(60)
    assert spent == [1000]


def test_tokens_below_the_limit_end_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = Limits(_config(output_tokens=1000))
    for tokens, reached in ((999, None), (1, "limits.output_tokens")):
        with ready.tracking(_plain)(FakeCoordinator(tokens), 1, ""):
            pass
        assert ready._reached() == reached


def test_nothing_is_asked_or_told_without_engines_and_after_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "POLL_SECONDS", 0.001)
    caplog.set_level("DEBUG")
    asked = threading.Event()

    class Slow(FakeCoordinator):
        def snapshot(self) -> Snapshot:
            asked.set()
            threading.Event().wait(0.3)
            return super().snapshot()

    ready = Limits(_config())
    with ready.enforced(lambda _: None):
        threading.Event().wait(0.05)
        with ready.tracking(_plain)(Slow(1), 1, ""):
            assert asked.wait(60)
    assert not [thread for thread in threading.enumerate() if thread.name == "limits"]
    assert "no figures" not in caplog.text
