"""The lease: one driver holds it, a dead holder is replaced, a live one is not."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from pipeline.errors import LeaseHeldError, QwqBatchError
from pipeline.output import lease
from pipeline.output.layout import LEASE
from pipeline.storage import Storage

EXPIRE_SECONDS = 1.0


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lease, "EXPIRE_SECONDS", EXPIRE_SECONDS)
    return Storage(str(tmp_path / "out"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at a lease a second time, which is what waiting is, fails."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the lease was waited for"))


def lost(reason: QwqBatchError) -> None:
    raise AssertionError(reason)


def test_one_of_many_drivers_takes_it_and_the_others_name_the_holder(store: Storage) -> None:
    def take(_: int) -> str:
        try:
            with lease.hold(store, lost):
                time.sleep(2)
            return "held"
        except LeaseHeldError as error:
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


def test_silent_holder_elsewhere_is_replaced_after_a_while(store: Storage) -> None:
    store.put(f"{LEASE}/00000007.yaml", b"host: elsewhere\npid: 1\nprocess: boot ns 1\n")
    started = time.monotonic()
    with lease.hold(store, lost):
        assert time.monotonic() - started >= EXPIRE_SECONDS
        assert [info.name for info in store.files(LEASE)] == [f"{LEASE}/00000008.yaml"]


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
