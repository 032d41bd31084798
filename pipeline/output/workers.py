"""The workers of an output: drivers that share it, where `run` would take all of it.

Each worker has a file, which it rewrites every `RENEW_SECONDS`. A worker whose file stays unchanged
for `EXPIRE_SECONDS`, by the clock of whoever looks, counts as dead, and on the same machine at once
when its process has ended. Another worker then removes the file and takes over its rows. So a
worker that finds its own file gone was only slow, or asleep: its rows are in others' hands.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ExpelledError, LeaseHeldError, OutputError, QwqBatchError
from pipeline.local_disk import FileInfo
from pipeline.output import lease
from pipeline.output.layout import CLAIMS, WORKERS, YAML
from pipeline.output.processes import SeenProcess, has_ended, seen, this_process
from pipeline.output.yaml_files import read_yaml, to_yaml
from pipeline.storage import Storage
from pipeline.time_limits import LEASE_EXPIRE_SECONDS as EXPIRE_SECONDS
from pipeline.time_limits import LEASE_LOOK_SECONDS as LOOK_SECONDS
from pipeline.time_limits import LEASE_RENEW_SECONDS as RENEW_SECONDS

OnLost = Callable[[QwqBatchError], None]
NAME_CHARACTERS = 12


@dataclass
class _Seen:
    """What is known of a worker's file: its tag, since when (by our clock), its content.

    ``renewed``: whether it changed while we looked.
    """

    tag: str
    since: float
    content: dict[str, Any]
    renewed: bool = False

    def is_dead(self, now: float) -> bool:
        """Whether the worker counts as dead."""
        is_silent = now - self.since > EXPIRE_SECONDS
        return is_silent or ("pid" in self.content and has_ended(self.content))


class Watch:
    """Tells dead workers from living ones by looking at their files again and again."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        self._seen: dict[str, _Seen] = {}
        self._lock = threading.Lock()

    def look(self) -> dict[str, bool]:
        """List the workers' files: for each worker, by name, whether it counts as dead."""
        with self._lock:
            now, files = time.monotonic(), dict[str, _Seen]()
            for info in _files(self._store):
                name = _name(info.name)
                file = self._seen.get(name)
                if file is None:
                    file = _Seen(info.tag, now, _content(self._store, info.name))
                elif file.tag != info.tag:
                    file = _Seen(info.tag, now, file.content, renewed=True)
                files[name] = file
            self._seen = files
            return {name: file.is_dead(now) for name, file in files.items()}

    def renewed(self) -> list[str]:
        """Where the workers run whose files have changed since the first look, in words."""
        return [
            str(seen(file.content, EXPIRE_SECONDS)) for file in self._seen.values() if file.renewed
        ]


class Worker(Watch):
    """One of the workers of ``store``: the driver in this process. ``name``: its own."""

    def __init__(self, store: Storage, lost: OnLost) -> None:
        super().__init__(store)
        self._lost, self._me = lost, this_process()
        self.name = str(self._me["id"])[:NAME_CHARACTERS]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="worker")

    def join(self) -> None:
        """Become one of the workers; raises `LeaseHeldError` if a driver has the output alone.

        Whoever comes later sees the other: each writes its own file before it looks for others.
        """
        self._write(0)
        try:
            lease.refuse_driver(self._store)
        except QwqBatchError:
            self.remove(self.name)
            raise
        self._thread.start()

    def leave(self) -> None:
        """Be one of the workers no longer."""
        self._ended.set()
        self._thread.join()
        self.remove(self.name)

    def remove(self, name: str) -> None:
        """Remove the file of a worker."""
        self._store.delete([_file(name)])

    def _renew(self) -> None:
        """Rewrite the file until `leave`; tell ``lost`` if others count this worker as dead."""
        beat, renewed = 0, time.monotonic()
        while not self._ended.wait(RENEW_SECONDS):
            beat += 1
            try:
                if self.name not in self.look():
                    self._lost(expelled())
                    return
                self._write(beat)
                renewed = time.monotonic()
            except QwqBatchError as error:
                if time.monotonic() - renewed > EXPIRE_SECONDS:
                    self._lost(error)
                    return

    def _write(self, beat: int) -> None:
        self._store.put(
            _file(self.name), to_yaml({**self._me, "at": round(time.time(), 1), "beat": beat})
        )


def expelled() -> ExpelledError:
    """The error of a worker that others count as dead."""
    return ExpelledError(
        "other workers have not heard from this one for a while and have taken its rows over"
    )


@contextmanager
def joined(store: Storage, lost: OnLost) -> Iterator[Worker]:
    """Be one of the workers of ``store`` while the body runs.

    ``lost`` is called from another thread if others count this worker as dead, or if its file can't
    be renewed. Raises `LeaseHeldError` if a driver has the output alone.
    """
    worker = Worker(store, lost)
    worker.join()
    try:
        yield worker
    finally:
        with suppress(QwqBatchError):  # its silence tells the others
            worker.leave()


def refuse_workers(store: Storage) -> None:
    """Raise `LeaseHeldError` if workers share ``store``; what dead ones have left is removed."""
    watch = Watch(store)
    while not all(watch.look().values()):
        if living := watch.renewed():
            raise LeaseHeldError(
                f"{store.url} is shared by workers ({living[0]}); end them first, or help them "
                "with qwq-batch work"
            )
        time.sleep(LOOK_SECONDS)
    store.delete([info.name for folder in (WORKERS, CLAIMS) for info in store.files(folder)])


def present(store: Storage) -> dict[str, SeenProcess]:
    """The workers that have a file in ``store``, by name, for display only."""
    files = [info.name for info in _files(store)]
    return {_name(file): seen(_content(store, file), EXPIRE_SECONDS) for file in files}


def _files(store: Storage) -> list[FileInfo]:
    """The files of the workers, without others that lie there."""
    return [info for info in store.files(WORKERS) if info.name.endswith(YAML)]


def _content(store: Storage, file: str) -> dict[str, Any]:
    """What a worker's file says; nothing if it is gone or was damaged."""
    try:
        return read_yaml(store, file) or {}
    except OutputError:
        return {}


def _name(file: str) -> str:
    return file.rpartition("/")[2].removesuffix(YAML)


def _file(name: str) -> str:
    return f"{WORKERS}/{name}{YAML}"
