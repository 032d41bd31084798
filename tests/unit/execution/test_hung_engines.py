"""Killing the process of an engine that hangs: that one, stopped or not, and no other."""

import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from pipeline import time_limits
from pipeline.execution import hung_engines
from pipeline.execution.hung_engines import hung_engines_killed, start_of
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.engine_processes import HungLimits, ProcessAddress


@pytest.fixture
def stopped() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "600"])
    process.send_signal(signal.SIGSTOP)
    yield process
    process.kill()
    process.wait()


def test_stopped_process_is_killed(stopped: "subprocess.Popen[bytes]") -> None:
    address = ProcessAddress("e", "a", "n", "h", stopped.pid, start_of(stopped.pid))
    assert hung_engines._kill(address)
    assert stopped.wait() == -signal.SIGKILL
    assert not hung_engines._kill(address), "there is no such process any more"


def test_another_process_with_the_same_number_is_left_alone(
    stopped: "subprocess.Popen[bytes]",
) -> None:
    assert not hung_engines._kill(ProcessAddress("e", "a", "n", "h", stopped.pid, "1"))
    assert stopped.poll() is None


def test_engines_that_hang_are_killed_while_the_run_lasts_though_a_look_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hung = ProcessAddress("e", "a", "n", "h", 7, "1")
    ended = list[ProcessAddress]()
    monkeypatch.setattr(hung_engines, "_end", lambda address, _: ended.append(address))
    monkeypatch.setattr(time_limits, "HUNG_LOOK_SECONDS", 0.01)

    class Coordinator(CoordinatorClient):
        looks = 0

        def hung_engines(self, limits: HungLimits) -> list[ProcessAddress]:
            self.looks += 1
            if self.looks == 1:
                raise TimeoutError("busy")
            return [hung] if self.looks == 3 else []

    coordinator = Coordinator(None)
    with hung_engines_killed(coordinator):
        until = time.monotonic() + 60
        while coordinator.looks < 5 and time.monotonic() < until:
            time.sleep(0.01)
    looks = coordinator.looks
    time.sleep(0.1)
    assert coordinator.looks == looks, "nobody may ask Ray after the run"
    assert ended == [hung]
