"""A lease on the output location, so that one driver works on it at a time.

Lease files are numbered. A driver takes the lease by creating the next file, which only one of
several drivers can. The holder rewrites its file every `RENEW_SECONDS`. If a file stays unchanged
for `EXPIRE_SECONDS`, measured by the clock of the waiting driver, its holder counts as dead. On the
same machine, the end of the holder's process is noticed at once. No two clocks are compared.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.errors import LeaseHeldError, QwqBatchError
from pipeline.output.layout import LEASE, YAML
from pipeline.output.processes import SeenProcess, has_ended, seen, this_process
from pipeline.storage import Storage
from pipeline.time_limits import LEASE_EXPIRE_SECONDS as EXPIRE_SECONDS
from pipeline.time_limits import LEASE_LOOK_SECONDS as LOOK_SECONDS
from pipeline.time_limits import LEASE_RENEW_SECONDS as RENEW_SECONDS

OnLost = Callable[[QwqBatchError], None]


@dataclass(frozen=True)
class Holder(SeenProcess):
    """The driver that holds the lease or held it last; ``released``: whether it ended in order."""

    released: bool


def holder(store: Storage) -> Holder | None:
    """The holder of the lease of ``store``, for display only; None if there never was one.

    Unlike the lease, this compares the clocks of two machines.
    """
    lease = _Lease(store, lambda _: None)
    last = lease.numbers()[-1:]
    data = lease.read(last[0]) if last else None
    if not data:
        return None
    driver, released = seen(data, EXPIRE_SECONDS), bool(data.get("released"))
    values = {**vars(driver), "is_at_work": driver.is_at_work and not released}
    return Holder(**values, released=released)


@contextmanager
def hold(store: Storage, lost: OnLost) -> Iterator[None]:
    """Hold the lease of ``store`` while the body runs.

    ``lost`` is called from another thread if the lease is taken over or can't be renewed. Raises
    `LeaseHeldError` if another driver holds the lease.
    """
    lease = _Lease(store, lost)
    lease.take()
    try:
        yield
    finally:
        lease.release()


def refuse_driver(store: Storage) -> None:
    """Raise `LeaseHeldError` if a driver holds the lease of ``store``.

    A dead holder's lease is released: should it only have slept, it learns that it has lost it.
    """
    _Lease(store, lambda _: None).release_dead()


class _Lease:
    def __init__(self, store: Storage, lost: OnLost) -> None:
        self._store, self._lost = store, lost
        self._number = 0
        self._me = this_process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def take(self) -> None:
        """Create the next lease file if the holder of the last one has ended."""
        while True:
            last = self._last_free()
            if self._create(last + 1, beat=0):
                break
        self._thread.start()

    def release_dead(self) -> None:
        """Release the lease of a holder that has ended without doing so."""
        while (last := self._last_free()) and not (self.read(last) or {}).get("released"):
            self._create(last + 1, released=True)

    def _last_free(self) -> int:
        """The number of the last lease, 0 without any; raises `LeaseHeldError` if it is held."""
        last = self.numbers()[-1:]
        if last and not self._is_free(last[0]):
            other = seen(self.read(last[0]) or {}, EXPIRE_SECONDS)
            raise LeaseHeldError(
                f"another driver is at work on {self._store.url}: {other}; wait for it or end it"
            )
        return last[0] if last else 0

    def _create(self, number: int, **more: Any) -> bool:
        """Create lease ``number`` and remove those before it; False if another driver did."""
        if not self._store.create(_name(number), self._content(**more)):
            return False
        self._number = number
        self._store.delete([_name(n) for n in self.numbers() if n < number])
        return True

    def release(self) -> None:
        """Mark the lease as free, unless another driver has taken it over."""
        self._ended.set()
        self._thread.join()
        try:
            if self.numbers()[-1:] == [self._number]:
                self._store.put(_name(self._number), self._content(released=True))
        except QwqBatchError:
            return  # the lease expires instead

    def _is_free(self, number: int) -> bool:
        """Watch lease ``number`` until its holder has ended, released it or renewed it.

        Returns False if it was renewed.
        """
        first, deadline = self.read(number), time.monotonic() + EXPIRE_SECONDS
        while (current := self.read(number)) is not None and current == first:
            if current.get("released") or has_ended(current) or time.monotonic() > deadline:
                return True
            time.sleep(LOOK_SECONDS)
        return current is None or bool(current.get("released"))

    def _renew(self) -> None:
        """Renew the lease until `release`; report its loss to ``lost``."""
        beat, renewed = 0, time.monotonic()
        while not self._ended.wait(RENEW_SECONDS):
            beat += 1
            try:
                if self.numbers()[-1:] != [self._number]:
                    self._lost(
                        LeaseHeldError("another driver has taken this run over; this one ends")
                    )
                    return
                self._store.put(_name(self._number), self._content(beat=beat))
                renewed = time.monotonic()
            except QwqBatchError as error:
                if time.monotonic() - renewed > EXPIRE_SECONDS:
                    self._lost(error)
                    return

    def numbers(self) -> list[int]:
        """The numbers of the lease files, ascending."""
        names = [info.name.rpartition("/")[2] for info in self._store.files(LEASE)]
        return sorted(int(n.removesuffix(YAML)) for n in names if n.removesuffix(YAML).isdigit())

    def read(self, number: int) -> dict[str, Any] | None:
        """The content of a lease file; None if it was removed."""
        try:
            data = yaml.safe_load(self._store.read(_name(number)))
        except FileNotFoundError:
            return None
        return data if isinstance(data, dict) else {}

    def _content(self, **more: Any) -> bytes:
        data = {**self._me, "at": round(time.time(), 1), **more}
        return yaml.safe_dump(data, sort_keys=False).encode()


def _name(number: int) -> str:
    return f"{LEASE}/{number:08}{YAML}"
