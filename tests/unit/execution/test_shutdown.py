"""How a driver ends early: the reason is told, whatever else fails because of it."""

import os
import signal
import threading
import time

import pytest
from ray.exceptions import GetTimeoutError

from pipeline.errors import HandedOverError, LeaseHeldError, StoppedError
from pipeline.execution import shutdown as module
from pipeline.execution.cluster import wait_until_closed
from pipeline.execution.shutdown import SIGNALS, Shutdown
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import EngineFigures, Snapshot, Totals


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
        return Snapshot(Totals())


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


def test_the_end_waits_for_engines_though_one_answer_is_late() -> None:
    coordinator = SlowCoordinator()
    wait_until_closed(coordinator)
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


def test_thread_that_can_not_be_broken_off_tells_the_reason_when_its_engines_have_ended() -> None:
    told: list[str] = []

    def work() -> None:
        try:
            with Shutdown().listening() as shutdown:
                assert not shutdown.can_break
                with shutdown.engines_of(CoordinatorClient(None)):
                    shutdown.request(LeaseHeldError("taken over"))
        except LeaseHeldError as error:
            told.append(error.message)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["taken over"]


def test_sigterm_while_ray_starts_is_told() -> None:
    """Ray's own handler, which is there meanwhile, exits with the signal's number."""
    with pytest.raises(StoppedError, match="ended by SIGTERM"):
        with Shutdown().listening():
            raise SystemExit(signal.SIGTERM)
    with pytest.raises(StoppedError, match="ended by SIGTERM"):
        with Shutdown().listening() as shutdown:
            shutdown.request(HandedOverError("the last rows go to others"))
            raise SystemExit(signal.SIGTERM)
    with pytest.raises(SystemExit, match="3"):
        with Shutdown().listening():
            raise SystemExit(3)


def test_hangup_that_is_ignored_stays_so() -> None:
    """Under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Shutdown().listening():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class SavingCoordinator(CoordinatorClient):
    """Has engines that save until it is let."""

    def __init__(self) -> None:
        super().__init__(None)
        self.saved = threading.Event()

    def stop(self, timeout: float) -> None:
        pass

    def snapshot(self) -> Snapshot:
        engines = () if self.saved.is_set() else (EngineFigures("a"),)
        return Snapshot(Totals(), engines=engines)


def test_signal_that_comes_twice_at_once_lets_the_engines_save(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    coordinator = SavingCoordinator()
    with pytest.raises(StoppedError, match="running traces are saved"):
        with Shutdown().listening() as shutdown, shutdown.engines_of(coordinator):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            coordinator.saved.set()
            time.sleep(60)  # broken off when the engines have saved


def test_signal_ends_a_worker_that_would_go_on_once_its_engines_have_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It hands its last rows over, or others count it as dead."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    coordinator = SavingCoordinator()
    with pytest.raises(StoppedError, match=r"ended by SIGTERM; .* traces are saved"):
        with Shutdown().listening() as shutdown, shutdown.engines_of(coordinator):
            shutdown.request(HandedOverError("the last rows go to others"))
            os.kill(os.getpid(), signal.SIGTERM)
            coordinator.saved.set()
            time.sleep(60)
    with pytest.raises(StoppedError, match="ended by SIGINT; "):
        with Shutdown().listening() as shutdown:
            try:
                with shutdown.engines_of(coordinator):
                    shutdown.request(HandedOverError("the last rows go to others"))
                    time.sleep(60)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(60)


def test_error_ends_a_worker_that_would_go_on() -> None:
    with pytest.raises(LeaseHeldError, match="taken over"):
        with Shutdown().listening() as shutdown:
            shutdown.request(HandedOverError("the last rows go to others"))
            shutdown.request(LeaseHeldError("taken over"))
            shutdown.request(HandedOverError("and others"))


def test_second_signal_ends_at_once_and_says_what_that_costs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(module, "SAME_SIGNAL_SECONDS", 0.0)
    monkeypatch.setattr(module, "DRIVER_SAVE_SECONDS", 0.5)
    with pytest.raises(StoppedError, match=r"ended by SIGINT twice; .* only as their last check"):
        with Shutdown().listening() as shutdown, shutdown.engines_of(SavingCoordinator()):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
