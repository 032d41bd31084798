"""One driver at a time: a lease on the output location, without comparing clocks.

Lease files are numbered, and a driver takes the lease by creating the next one, which of several
only one can. The holder rewrites its file every `RENEW_SECONDS`; one that has not changed for
`EXPIRE_SECONDS`, as the newcomer's own clock measures, is dead. On the holder's own machine a
process that has ended is known to be dead at once.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import LeaseHeldError, QwqBatchError
from pipeline.output.layout import LEASE, YAML
from pipeline.storage import Storage
from pipeline.time_limits import LEASE_EXPIRE_SECONDS as EXPIRE_SECONDS
from pipeline.time_limits import LEASE_LOOK_SECONDS as LOOK_SECONDS
from pipeline.time_limits import LEASE_RENEW_SECONDS as RENEW_SECONDS

Lost = Callable[[QwqBatchError], None]


@dataclass(frozen=True)
class Holder:
    """Who has the lease, or had it last. ``silent_seconds``: since its last sign, by the clocks."""

    host: str
    pid: int
    since: str
    is_at_work: bool
    released: bool
    silent_seconds: float


def holder(store: Storage) -> Holder | None:
    """Who holds the lease of ``store``, to be told, not to be relied on; None if nobody ever has.

    The clocks of two machines are compared here; the lease itself compares none.
    """
    lease = _Lease(store, lambda _: None)
    last = lease.numbers()[-1:]
    found = lease.read(last[0]) if last else None
    if not found:
        return None
    silent = max(0.0, time.time() - float(found.get("at", 0)))
    released = bool(found.get("released"))
    exclusive_driver = not released and not _is_dead(found) and silent < EXPIRE_SECONDS
    who = str(found.get("host")), int(found.get("pid", 0)), str(found.get("since"))
    return Holder(*who, exclusive_driver, released, silent)


@contextmanager
def hold(store: Storage, lost: Lost) -> Iterator[None]:
    """Hold the lease of ``store`` while the body runs; raises `LeaseHeldError` if another does.

    ``lost`` is called, in another thread, if the lease is taken over meanwhile or can't be renewed.
    """
    lease = _Lease(store, lost)
    lease.take()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    def __init__(self, store: Storage, lost: Lost) -> None:
        self._store, self._lost = store, lost
        self._number = 0
        self._me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "id": uuid.uuid4().hex,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def take(self) -> None:
        """Create the next lease file once the last one's holder is gone."""
        while True:
            last = self.numbers()[-1:]
            if last and not self._is_free(last[0]):
                holder = self.read(last[0]) or {}
                raise LeaseHeldError(
                    f"another driver is at work on {self._store.url}: process "
                    f"{holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}; "
                    "wait for it or end it"
                )
            self._number = last[0] + 1 if last else 1
            if self._store.create(_name(self._number), self._text(beat=0)):
                break
        self._store.delete([_name(n) for n in self.numbers() if n < self._number])
        self._thread.start()

    def release(self) -> None:
        """Say that the lease is free, unless it is another's by now."""
        self._ended.set()
        self._thread.join()
        try:
            if self.numbers()[-1:] == [self._number]:
                self._store.put(_name(self._number), self._text(released=True))
        except QwqBatchError:
            return  # it expires

    def _is_free(self, number: int) -> bool:
        """Watch lease ``number`` until it is sure whether its holder lives."""
        first, deadline = self.read(number), time.monotonic() + EXPIRE_SECONDS
        while (found := self.read(number)) is not None and found == first:
            if found.get("released") or _is_dead(found) or time.monotonic() > deadline:
                return True
            time.sleep(LOOK_SECONDS)
        return found is None or bool(found.get("released"))

    def _keep(self) -> None:
        beat, renewed = 0, time.monotonic()
        while not self._ended.wait(RENEW_SECONDS):
            beat += 1
            try:
                if self.numbers()[-1:] != [self._number]:
                    self._lost(
                        LeaseHeldError("another driver has taken this run over; this one ends")
                    )
                    return
                self._store.put(_name(self._number), self._text(beat=beat))
                renewed = time.monotonic()
            except QwqBatchError as error:
                if time.monotonic() - renewed > EXPIRE_SECONDS:
                    self._lost(error)
                    return

    def numbers(self) -> list[int]:
        """The numbers of the lease files, in order."""
        names = [info.name.rpartition("/")[2] for info in self._store.files(LEASE)]
        return sorted(int(n.removesuffix(YAML)) for n in names if n.removesuffix(YAML).isdigit())

    def read(self, number: int) -> dict[str, Any] | None:
        """What a lease file holds; None if it is gone."""
        try:
            found = yaml.safe_load(self._store.read(_name(number)))
        except FileNotFoundError:
            return None
        return found if isinstance(found, dict) else {}

    def _text(self, **more: Any) -> bytes:
        told = {**self._me, "at": round(time.time(), 1), **more}
        return yaml.safe_dump(told, sort_keys=False).encode()


def _name(number: int) -> str:
    return f"{LEASE}/{number:08}{YAML}"


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this machine (and container) that has ended."""
    here, there = _process(os.getpid()), str(holder.get("process"))
    if here is None or there.rpartition(" ")[0] != here.rpartition(" ")[0]:
        return False
    return _process(holder["pid"]) != there


def _process(pid: int) -> str | None:
    """What tells a process from all others: this boot, the pid namespace, its start.

    None if it has ended, and where there is no /proc: then nothing is concluded.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    # The state (Z: ended, not yet waited for), and nineteen fields on the start in clock ticks.
    return None if status[0] in "ZX" else f"{boot} {namespace} {status[19]}"
