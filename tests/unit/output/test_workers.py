"""Workers: the living are told from the dead, and from a driver that has the output alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ExpelledError, LeaseHeldError, QwqBatchError
from pipeline.output import lease, workers
from pipeline.output.layout import CLAIMS, LEASE, WORKERS
from pipeline.output.workers import Watch, joined, present, refuse_workers
from pipeline.storage import Storage


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for module in (lease, workers):
        monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
        monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
        monkeypatch.setattr(module, "EXPIRE_SECONDS", 60.0)
    return Storage(str(tmp_path / "out"))


def lost(reason: QwqBatchError) -> None:
    raise AssertionError(reason)


def wait_for(condition: object) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def strangers_file(store: Storage, name: str = "stranger") -> None:
    """A worker on another machine."""
    store.put(f"{WORKERS}/{name}.yaml", b"host: elsewhere\npid: 1\nprocess: boot ns 1\nbeat: 0\n")


@pytest.fixture
def killed(store: Storage) -> None:
    """A worker of this machine that was killed."""
    code = (
        "import os, signal\nfrom pipeline.output.workers import joined\n"
        "from pipeline.storage import Storage\n"
        f"with joined(Storage({store.url!r}), print): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    assert done.returncode == -signal.SIGKILL
    assert len(store.files(WORKERS)) == 1


def test_workers_see_each_other_alive_and_leave_no_file(store: Storage) -> None:
    with joined(store, lost) as one, joined(store, lost) as two:
        assert one.look() == two.look() == {one.name: False, two.name: False}
        before = store.read(f"{WORKERS}/{one.name}.yaml")
        wait_for(lambda: store.read(f"{WORKERS}/{one.name}.yaml") != before)
    assert store.files(WORKERS) == []


def test_killed_worker_of_this_machine_is_dead_at_once(store: Storage, killed: None) -> None:
    assert list(Watch(store).look().values()) == [True]


def test_silent_worker_is_dead_after_a_while_by_the_clock_of_who_looks(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    strangers_file(store)
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = Watch(store)
    assert watch.look() == {"stranger": False}
    now += 59
    assert watch.look() == {"stranger": False}
    store.put(f"{WORKERS}/stranger.yaml", b"host: elsewhere\npid: 1\nbeat: 17\n")
    assert watch.look() == {"stranger": False}
    now += 59
    assert watch.look() == {"stranger": False}
    now += 2
    assert watch.look() == {"stranger": True}
    store.put(f"{WORKERS}/stranger.yaml", b"host: elsewhere\npid: 1\nbeat: 18\n")
    assert watch.look() == {"stranger": False}, "it was only slow"


@pytest.mark.parametrize(
    "content",
    [b"", b"- 1", b"{", b"pid: x\nprocess: 7", b"\xff", b"at: x\npid: [1]", b"at: .nan\npid: .inf"],
)
def test_damaged_file_is_a_silent_worker(store: Storage, content: bytes) -> None:
    store.put(f"{WORKERS}/damaged.yaml", content)
    store.put(f"{WORKERS}/notes.txt", b"of somebody")
    assert Watch(store).look() == {"damaged": False}
    shown = present(store)
    assert [(name, each.is_at_work) for name, each in shown.items()] == [("damaged", False)]


def test_worker_whose_file_others_have_removed_is_told(store: Storage) -> None:
    reasons: list[QwqBatchError] = []
    with joined(store, reasons.append) as slept, joined(store, lost) as other:
        other.remove(slept.name)
        wait_for(lambda: reasons)
    assert isinstance(reasons[0], ExpelledError)
    assert store.files(WORKERS) == []


def test_worker_is_refused_while_a_driver_has_the_output_alone(store: Storage) -> None:
    with lease.hold(store, lost):
        with pytest.raises(LeaseHeldError, match=f"another driver is at work .* {os.getpid()}"):
            with joined(store, lost):
                pass
    assert store.files(WORKERS) == []
    with joined(store, lost):
        pass


def test_driver_that_only_slept_learns_that_workers_have_the_output(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[QwqBatchError] = []
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 0.2)
    asleep = threading.Event()
    write = lease._Lease._renew
    monkeypatch.setattr(lease._Lease, "_renew", lambda self: (asleep.wait(), write(self)))
    with lease.hold(store, reasons.append):
        with joined(store, lost):
            asleep.set()
            wait_for(lambda: reasons)
    assert isinstance(reasons[0], LeaseHeldError)
    assert [info.name for info in store.files(LEASE)] == [f"{LEASE}/00000002.yaml"]


def test_driver_is_refused_while_workers_share_the_output(store: Storage) -> None:
    with joined(store, lost):
        with pytest.raises(LeaseHeldError, match=f"shared by workers .process {os.getpid()} on"):
            refuse_workers(store)
    refuse_workers(store)


def test_what_dead_workers_have_left_is_removed(store: Storage, killed: None) -> None:
    store.put(f"{CLAIMS}/00000.00000001.json", b"{}")
    refuse_workers(store)
    assert store.files(WORKERS) == store.files(CLAIMS) == []
