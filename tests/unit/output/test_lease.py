"""The lease: one driver holds it, a dead holder is replaced, a live one is not."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore

import pytest
import yaml

from pipeline.errors import LeaseHeldError, QwqBatchError, StorageError
from pipeline.output import lease, processes
from pipeline.output.layout import LEASE
from pipeline.storage import Storage
from tests.conftest import OBJECT_STORES


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", 60.0)
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at a lease a second time, which is what waiting is, fails."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the lease was waited for"))


def lost(reason: QwqBatchError) -> None:
    raise AssertionError(reason)


@pytest.mark.parametrize("place", ["local", *OBJECT_STORES])
def test_one_of_many_drivers_takes_it_and_the_others_name_the_holder(
    place: str, store: Storage, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if place != "local":
        store = Storage(f"{request.getfixturevalue(place).bucket('leases')}/{tmp_path.name}")
    refused = Semaphore(0)

    def take(_: int) -> str:
        try:
            with lease.hold(store, lost):
                assert all(refused.acquire(timeout=60) for _ in range(5))
            return "held"
        except LeaseHeldError as error:
            refused.release()
            return error.message

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(take, range(6)))
    assert results.count("held") == 1
    refusal = next(result for result in results if result != "held")
    assert f"another driver is at work on {store.url}: process {os.getpid()} on " in refusal


def test_released_lease_is_taken_at_once(store: Storage, no_waiting: None) -> None:
    for _ in range(3):
        with lease.hold(store, lost):
            pass
    assert [info.name for info in store.files(LEASE)] == [f"{LEASE}/00000003.yaml"]


def test_dead_holder_of_this_machine_is_not_waited_for(store: Storage, no_waiting: None) -> None:
    code = (
        "import os, signal\nfrom pipeline.output import lease\nfrom pipeline.storage import Storage\n"
        f"with lease.hold(Storage({store.url!r}), print): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    assert "released" not in yaml.safe_load(store.read(f"{LEASE}/00000001.yaml"))
    with lease.hold(store, lost):
        pass


def test_holder_whose_lease_was_taken_over_is_told(store: Storage) -> None:
    reasons: list[QwqBatchError] = []
    with lease.hold(store, reasons.append):
        store.put(f"{LEASE}/00000002.yaml", b"host: elsewhere\n")
        deadline = time.monotonic() + 60
        while not reasons and time.monotonic() < deadline:
            time.sleep(0.02)
    assert isinstance(reasons[0], LeaseHeldError)
    assert store.read(f"{LEASE}/00000002.yaml") == b"host: elsewhere\n"


# With a clock that goes on only where somebody waits


class Clock:
    """In place of the module ``time``, and of an event that nothing sets."""

    def __init__(self, now: float = 1000.26) -> None:
        self.start = self.now = now
        self.during: Callable[[], object] = lambda: None  # happens at the end of each wait

    gmtime, strftime = staticmethod(time.gmtime), staticmethod(time.strftime)

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()

    @property
    def waited(self) -> float:
        return self.now - self.start


@pytest.fixture
def clock(store: Storage, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (lease, processes):
        monkeypatch.setattr(module, "time", clock)
    for name, seconds in (("RENEW", 10.0), ("LOOK", 1.0), ("EXPIRE", 90.0)):
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)
    return clock


def name(number: int) -> str:
    return f"{LEASE}/{number:08}.yaml"


def files(store: Storage) -> list[str]:
    return [info.name for info in store.files(LEASE)]


def held(store: Storage, clock: Clock, on_lost: lease.OnLost, renewals: int) -> lease._Lease:
    """A lease whose thread, once started, renews it ``renewals`` times and ends."""

    class Ended(Event):
        left = renewals

        def wait(self, timeout: float | None = None) -> bool:
            assert timeout == 10.0
            clock.sleep(timeout)
            self.left -= 1
            return self.left < 0

    taken = lease._Lease(store, on_lost)
    taken._ended = Ended()
    return taken


def test_holder_is_shown_while_it_works_and_after(store: Storage, clock: Clock) -> None:
    assert lease.holder(store) is None
    with lease.hold(store, lost):
        clock.now += 30
        shown = lease.holder(store)
        assert shown is not None
        assert (shown.host, shown.pid) == (socket.gethostname(), os.getpid())
        assert shown.since.startswith("20")
        assert (shown.is_at_work, shown.released) == (True, False)
        assert shown.silent_seconds == pytest.approx(30, abs=0.1)
    shown = lease.holder(store)
    assert shown is not None
    assert (shown.is_at_work, shown.released, shown.silent_seconds) == (False, True, 0)


@pytest.mark.parametrize(
    ("more", "at_work", "silent"),
    [
        ("at: 980", True, 20), ("at: 911", True, 89), ("at: 910", False, 90), ("", False, 1000),
        ("at: 1010", True, 0),  # its clock is ahead
        ("at: 980\nreleased: true", False, 20),
    ],
)  # fmt: skip
def test_last_holder_is_at_work_while_its_renewals_are_fresh(
    store: Storage, clock: Clock, more: str, at_work: bool, silent: float
) -> None:
    clock.now = 1000
    for other in (99_999_998, 99_999_999):
        store.put(name(other), b"host: earlier\nat: 999")
    store.put(f"{LEASE}/._100000001.yaml", b"host: none")
    store.put(name(100_000_000), f"host: elsewhere\nprocess: boot ns 1\n{more}\n".encode())
    assert lease.holder(store) == lease.Holder(
        "elsewhere", 0, "None", at_work, silent, "released" in more
    )


def test_dead_holder_is_not_at_work_though_it_has_just_renewed(store: Storage) -> None:
    with subprocess.Popen(["true"], stdout=subprocess.PIPE) as ended:
        assert ended.stdout is not None
        ended.stdout.read()  # it has ended, and is not waited for: a zombie
        start = str(processes._process(os.getpid())).rpartition(" ")[0]
        data = {"pid": ended.pid, "process": f"{start} 5", "at": time.time()}
        store.put(name(1), yaml.safe_dump(data).encode())
        shown = lease.holder(store)
        assert shown is not None
        assert (shown.pid, shown.is_at_work) == (ended.pid, False)


def test_zombie_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert processes._process(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{child.pid}").exists()
        assert processes._process(child.pid) is None


def test_nothing_is_known_of_a_holder_where_there_is_no_proc(
    store: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_process", lambda pid: None)
    store.put(name(1), b"pid: 1\nprocess: null\nat: 1000\n")
    shown = lease.holder(store)
    assert shown is not None
    assert shown.is_at_work


def test_newcomer_waits_as_long_as_a_lease_lasts_and_no_longer(
    store: Storage, clock: Clock
) -> None:
    for number in (6, 7):
        store.put(name(number), b"host: elsewhere\nprocess: boot ns 1\n")
    with lease.hold(store, lost):
        assert clock.waited == 91
        assert files(store) == [name(8)]


@pytest.mark.parametrize(
    ("then", "is_free"),
    [("host: elsewhere\nbeat: 5", False), ("host: elsewhere\nreleased: true", True), (None, True)],
)
def test_newcomer_sees_what_becomes_of_the_lease(
    store: Storage, clock: Clock, then: str | None, is_free: bool
) -> None:
    """Renewed, released, or removed by another newcomer that was faster and has ended."""
    store.put(name(7), b"host: elsewhere\npid: 1\nsince: noon\nbeat: 4\n")

    def change() -> None:
        if clock.waited == 40:
            store.delete([name(7)]) if then is None else store.put(name(7), then.encode())

    clock.during = change
    if is_free:
        with lease.hold(store, lost):
            assert clock.waited == 40
    else:
        with pytest.raises(LeaseHeldError, match=r"process 0 on elsewhere, since None; wait"):
            with lease.hold(store, lost):
                pass
        assert (clock.waited, files(store)) == (40, [name(7)])


def test_refusal_needs_no_lease_file(
    store: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder has ended just after its renewal was seen, and another has removed its file."""
    store.put(name(7), b"host: elsewhere\n")
    monkeypatch.setattr(lease._Lease, "_is_free", lambda self, n: store.delete([name(n)]))
    with pytest.raises(LeaseHeldError, match="another driver is at work"):
        with lease.hold(store, lost):
            pass


def test_each_renewal_changes_the_file_whatever_the_clock_says(
    store: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "time", lambda: 1000.26)
    contents = list[bytes]()
    clock.during = lambda: contents.append(store.read(name(1)))
    taken = held(store, clock, lost, 4)
    taken.take()
    taken._thread.join(60)
    assert clock.waited == 50
    data = [yaml.safe_load(content) for content in contents]
    assert [lease_["beat"] for lease_ in data] == [0, 1, 2, 3, 4]
    assert {lease_["at"] for lease_ in data} == {1000.3}
    assert len({lease_["id"] for lease_ in data}) == 1


def test_holder_goes_on_and_releases_beside_an_older_lease(store: Storage, clock: Clock) -> None:
    """Its removal failed, or another driver wrote it late."""
    store.put(name(1), b"released: true\n")
    taken = held(store, clock, lost, 1)
    clock.during = lambda: store.put(name(1), b"host: late\n")
    taken.take()
    taken._thread.join(60)
    assert yaml.safe_load(store.read(name(2)))["beat"] == 1
    taken.release()
    assert yaml.safe_load(store.read(name(2)))["released"] is True
    assert lease._Lease(store, lost)._number == 0


def test_lease_that_was_taken_over_is_left_alone(store: Storage, clock: Clock) -> None:
    reasons = list[QwqBatchError]()
    taken = held(store, clock, reasons.append, 3)
    clock.during = lambda: store.put(name(2), b"host: elsewhere\n")
    taken.take()
    before = store.read(name(1))
    taken._thread.join(60)
    assert [type(reason) for reason in reasons] == [LeaseHeldError]
    assert clock.waited == 10
    taken.release()
    assert store.read(name(1)) == before
    assert store.read(name(2)) == b"host: elsewhere\n"


def test_lease_that_can_not_be_renewed_is_given_up_when_others_may_take_it(
    store: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failures between renewals do not add up."""
    reasons, put, renewed = list[QwqBatchError](), store.put, list[float]()

    def fails(file: str, data: bytes) -> None:
        if clock.waited not in (60, 70):
            raise StorageError("gone")
        renewed.append(clock.waited)
        put(file, data)

    monkeypatch.setattr(store, "put", fails)
    taken = held(store, clock, reasons.append, 100)
    taken.take()
    taken._thread.join(60)
    assert renewed == [60, 70]
    assert [str(reason) for reason in reasons] == ["gone"]
    assert clock.waited == 170  # more than 90 after the last renewal
    taken.release()  # can't be written either: the lease expires instead


def test_renewal_under_way_does_not_undo_the_release(
    store: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, released, put = Event(), Event(), store.put

    def slow(file: str, data: bytes) -> None:
        if b"beat" in data:
            under_way.set()
            released.wait(0.3)
            put(file, data)
        else:
            put(file, data)
            released.set()

    monkeypatch.setattr(store, "put", slow)
    with lease.hold(store, lost):
        assert under_way.wait(60)
    assert not [t for t in threading.enumerate() if t.name == "lease"]
    assert yaml.safe_load(store.read(name(1)))["released"] is True
