"""Processes that crash or pause at a chosen write, one at a time, so that a seed repeats them.

A process is a thread. Whoever starts or resumes one waits until it ends, crashes or pauses.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import pytest

from pipeline.storage import Storage


class Crash(BaseException):
    """The end of a process, as by SIGKILL: no handler of the product catches it."""


@dataclass
class Fault:
    """What happens at the ``write``-th write of a process (from 1), before or after it.

    ``pauses``: the process stops there until it is resumed; otherwise it crashes.
    """

    write: int
    after: bool
    pauses: bool


class Process(threading.Thread):
    """One process; ``error``: what its ``body`` raised."""

    def __init__(self, body: Callable[[], object], fault: Fault | None = None) -> None:
        super().__init__(daemon=True)
        self._body, self.fault = body, fault
        self.writes = 0
        self.error: BaseException | None = None
        self.is_paused = False
        self._rests, self._goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def go(self) -> "Process":
        """Start it; returns when it has ended or paused."""
        self.start()
        self._rests.acquire()
        return self

    def resume(self, fault: Fault | None) -> "Process":
        """Let it go on from where it paused, with another ``fault``."""
        self.writes, self.fault, self.is_paused = 0, fault, False
        self._goes_on.release()
        self._rests.acquire()
        return self

    def run(self) -> None:
        try:
            self._body()
        except BaseException as error:  # the starter looks at it
            self.error = error
        self._rests.release()

    def write(self, do: Callable[[], Any]) -> Any:
        """Do one write, with the fault that is due."""
        self.writes += 1
        due = self.fault if self.fault and self.fault.write == self.writes else None
        if due and not due.after:
            self._fail(due)
        result = do()
        if due and due.after:
            self._fail(due)
        return result

    def _fail(self, fault: Fault) -> None:
        if not fault.pauses:
            raise Crash
        self.is_paused = True
        self._rests.release()
        self._goes_on.acquire()


def written(do: Callable[[], Any]) -> Any:
    """Do a write of the current process; outside of any there are no faults."""
    thread = threading.current_thread()
    return thread.write(do) if isinstance(thread, Process) else do()


def make_writes_faulty(patch: pytest.MonkeyPatch) -> None:
    """Let every change of a file pass through `written`."""
    put, create, delete, writing = (
        getattr(Storage, name) for name in ("put", "create", "delete", "writing")
    )

    @contextlib.contextmanager
    def faulty_writing(store: Storage, *arguments: Any, **options: Any) -> Iterator[IO[bytes]]:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(writing(store, *arguments, **options))
            yield file
            written(stack.close)

    def faulty_delete(store: Storage, names: list[str]) -> None:
        for name in names:
            written(partial(delete, store, [name]))

    patch.setattr(Storage, "put", lambda *given: written(lambda: put(*given)))
    patch.setattr(Storage, "create", lambda *given: written(lambda: create(*given)))
    patch.setattr(Storage, "delete", faulty_delete)
    patch.setattr(Storage, "writing", faulty_writing)
