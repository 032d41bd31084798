"""The real workers of an output on a clock that does not wait, with a storage in memory.

The storage counts its requests as s3fs makes them, and each takes `LATENCY_SECONDS`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from jobs.bench.virtual_time import Clock
from pipeline.local_disk import FileInfo
from pipeline.output import claims as claims_module
from pipeline.output import workers as workers_module
from pipeline.output.layout import CLAIMS
from pipeline.output.workers import Worker
from pipeline.storage import Storage

LATENCY_SECONDS = 0.05
KEYS_A_LISTING = 1000


class MemoryStorage(Storage):
    """Files in memory.

    ``requests``: their number by kind, as s3fs makes them on S3. A look at a file that is not there
    is a HEAD and a LIST; an empty folder two LISTs and a HEAD. ``largest_board``: in bytes.
    """

    def __init__(self, clock: Clock) -> None:
        self.url, self.root, self.is_local = "memory://", "", False
        self.requests: Counter[str] = Counter()
        self.lost_creates = self.largest_board = 0
        self._clock = clock
        self._folders: dict[str, dict[str, tuple[bytes, str]]] = {}
        self._versions = 0

    def _request(self, **kinds: int) -> None:
        self.requests.update(kinds)
        self._clock.sleep(LATENCY_SECONDS * sum(kinds.values()))

    def _folder(self, name: str) -> dict[str, tuple[bytes, str]]:
        return self._folders.setdefault(name.rpartition("/")[0], {})

    def set(self, name: str, data: bytes = b"") -> None:
        """Write a file without a request."""
        self._versions += 1
        self._folder(name)[name] = data, str(self._versions)

    def drop(self, folder: str) -> None:
        """Remove the files of a folder without requests."""
        self._folders.pop(folder, None)

    def files(self, folder: str = "", left_out: list[str] | None = None) -> list[FileInfo]:
        """As `Storage.files`."""
        found = [
            FileInfo(name, len(data), tag, 0)
            for path, files in list(self._folders.items())
            if not folder or path == folder or path.startswith(folder + "/")
            for name, (data, tag) in files.items()
        ]
        if found:
            self._request(LIST=1 + (len(found) - 1) // KEYS_A_LISTING)
        else:
            self._request(LIST=2, HEAD=1)
        return sorted(found, key=lambda info: info.name)

    def read(self, name: str) -> bytes:
        """As `Storage.read`."""
        self._request(HEAD=1, GET=1)
        if name not in self._folder(name):
            raise FileNotFoundError(name)
        return self._folder(name)[name][0]

    def exists(self, name: str) -> bool:
        """As `Storage.exists`."""
        exists = name in self._folder(name)
        self._request(HEAD=1, **({} if exists else {"LIST": 1}))
        return exists

    def put(self, name: str, data: bytes) -> None:
        """As `Storage.put`."""
        self._request(PUT=1)
        self.set(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """As `Storage.create`."""
        self._request(PUT=1)
        if name in self._folder(name):
            self.lost_creates += 1
            return False
        if name.startswith(CLAIMS):
            self.largest_board = max(self.largest_board, len(data))
        self.set(name, data)
        return True

    def delete(self, names: list[str]) -> None:
        """As `Storage.delete`."""
        if names:
            self._request(DELETE=len(names))
        for name in names:
            self._folder(name).pop(name, None)

    def prune(self, folder: str) -> None:
        """Object stores have no folders."""


class _Ended:
    """Stands in for the event that ends a worker's renewals."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._is_set = clock, False

    def set(self) -> None:
        self._is_set = True

    def wait(self, seconds: float) -> bool:
        self._clock.sleep(0 if self._is_set else seconds)
        return self._is_set


class VirtualWorker(Worker):
    """The real worker, whose renewals follow the clock; ``name``: in place of a random one."""

    def __init__(self, store: Storage, clock: Clock, name: str) -> None:
        super().__init__(store, _raise)
        self.name = name
        self._me = {**self._me, "process": f"{name} {name} 0"}  # on a machine of its own
        self._ended: Any = _Ended(clock)
        self._thread: Any = SimpleNamespace(
            start=lambda: clock.start(self._renew), join=lambda: None
        )
        self._lock: Any = nullcontext()  # only one process has the turn


def _raise(error: Exception) -> None:
    raise error


@contextmanager
def virtual(clock: Clock) -> Iterator[None]:
    """While the body runs, claims and workers use the clock, and no threads of their own."""
    time = SimpleNamespace(monotonic=clock.monotonic, time=clock.monotonic)
    with (
        patch.object(workers_module, "time", time),
        patch.object(claims_module, "map_in_threads", map),
    ):
        yield
