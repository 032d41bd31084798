"""How a driver ends early: the reason is told, whatever else fails because of it."""

import os
import signal
import threading
import time

import pytest
from ray.exceptions import GetTimeoutError

from pipeline.errors import LeaseHeldError, StoppedError
from pipeline.execution.shutdown import SIGNALS, Shutdown
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import Snapshot, Totals


@pytest.mark.parametrize("kind", SIGNALS)
def test_signal_while_no_engine_runs_ends_at_once(kind: signal.Signals) -> None:
    before = [signal.getsignal(kind) for kind in SIGNALS]
    with pytest.raises(
        StoppedError, match=f"ended by {kind.name}; finished rows are kept"
    ) as caught:
        with Shutdown().listening():
            os.kill(os.getpid(), kind)
            time.sleep(60)
    assert caught.value.signal == kind
    assert [signal.getsignal(kind) for kind in SIGNALS] == before


def test_reason_is_told_rather_than_what_follows_from_it() -> None:
    with pytest.raises(LeaseHeldError, match="taken over"):
        with Shutdown().listening() as shutdown:
            shutdown.request(LeaseHeldError("taken over"))
            raise RuntimeError("Ray is gone")


def test_reason_that_comes_while_nothing_can_be_broken_off_is_told_at_the_end() -> None:
    with pytest.raises(LeaseHeldError):
        with Shutdown().listening() as shutdown:
            thread = threading.Thread(target=shutdown.request, args=[LeaseHeldError("taken over")])
            thread.start()
            thread.join()
            with pytest.raises(LeaseHeldError):
                shutdown.check()


def test_reason_that_was_there_before_the_engines_lets_none_run() -> None:
    with pytest.raises(LeaseHeldError):
        with Shutdown().listening() as shutdown:
            shutdown.request(LeaseHeldError("taken over"))
            with shutdown.engines_of(CoordinatorClient(None)):
                pytest.fail("engines ran")


class SlowCoordinator(CoordinatorClient):
    """Answers one question too late, then tells that all engines have saved."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked = 0

    def stop(self, timeout: float) -> None:
        pass

    def snapshot(self) -> Snapshot:
        self.asked += 1
        if self.asked == 1:
            raise GetTimeoutError("busy")
        return Snapshot(Totals(), None, ())


def test_driver_waits_for_engines_that_save_though_one_answer_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    coordinator = SlowCoordinator()
    with pytest.raises(LeaseHeldError):
        with Shutdown().listening() as shutdown, shutdown.engines_of(coordinator):
            shutdown.request(LeaseHeldError("taken over"))
            time.sleep(60)  # broken off when the engines have saved
    assert coordinator.asked == 2


def test_without_a_reason_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="other"):
        with Shutdown().listening():
            raise RuntimeError("other")


def test_other_threads_have_no_signals_to_take() -> None:
    before = [signal.getsignal(kind) for kind in SIGNALS]
    seen: list[bool] = []

    def work() -> None:
        with Shutdown().listening() as shutdown:
            shutdown.take_signals()
            seen.append([signal.getsignal(kind) for kind in SIGNALS] == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
