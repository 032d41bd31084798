"""How a driver ends before its run is done: by a signal, a limit, or the loss of its lease.

The engines are told to save their running traces first; then the run is broken off. The same ends
the engines of a worker that goes on afterwards (`GOES_ON`).
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ray
from ray.exceptions import GetTimeoutError

from pipeline.errors import ExpelledError, HandedOverError, QwqBatchError, StoppedError
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.time_limits import DRIVER_SAVE_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.1
# SIGHUP: the terminal, or the ssh session, has gone. Under nohup it is ignored, and stays so.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# A signal that comes again so soon is the same one: a terminal sends it to the driver and to its
# parent, which passes it on.
SAME_SIGNAL_SECONDS = 1.0
# After these a worker joins the others again, unless there is another reason to end.
GOES_ON = (ExpelledError, HandedOverError)


class _Broken(BaseException):
    """Raised in the middle of whatever the main thread does; ``except Exception`` lets it pass."""


class Shutdown:
    """Waits for a reason to end the run. Only the main thread handles signals."""

    def __init__(self) -> None:
        self._reason: QwqBatchError | None = None
        self._coordinator: CoordinatorClient | None = None
        self._listening = self._breaking = self._is_saved = False
        self._signalled = float("-inf")
        self._saving: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator["Shutdown"]:
        """Handle `SIGNALS` while the body runs; raises the reason that ended it."""
        if threading.current_thread() is not threading.main_thread():
            try:
                yield self
            except _Broken:
                self.check()
            return
        previous = {kind: signal.getsignal(kind) for kind in SIGNALS}
        self._listening = True
        self.take_signals()
        try:
            yield self
        except BaseException as error:  # once there is a reason to end, other errors follow from it
            if isinstance(error, SystemExit) and error.code == signal.SIGTERM:
                # While Ray starts, the handler is Ray's, which exits.
                self._end_for(_stopped(signal.SIGTERM))
            if self._reason is None:
                raise
        finally:
            self._listening = False
            if self._saving is not None:
                self._saving.join(DRIVER_SAVE_SECONDS)
            for kind, handler in previous.items():
                signal.signal(kind, handler)
        if self._reason is not None:
            raise self._reason

    @property
    def can_break(self) -> bool:
        """Whether a run can be broken off in the middle."""
        return self._listening

    def take_signals(self) -> None:
        """Set our handlers (again): `ray.init` and `ray.shutdown` replace them."""
        if self._listening:
            for kind in SIGNALS:
                if kind != signal.SIGHUP or signal.getsignal(kind) is not signal.SIG_IGN:
                    signal.signal(kind, self._on_signal)

    @contextmanager
    def engines_of(self, coordinator: CoordinatorClient) -> Iterator[None]:
        """While the body runs, an end tells the engines of ``coordinator`` to save first."""
        self.take_signals()
        with self._lock:
            self._coordinator = coordinator
        try:
            if self._reason is not None:  # it came while there was no coordinator to tell
                raise _Broken
            yield
        finally:
            with self._lock:
                self._coordinator = None
        if self._reason is not None:
            raise _Broken

    def check(self) -> None:
        """Raise the reason to end, if there is one."""
        if self._reason is not None:
            raise self._reason

    def request(self, reason: QwqBatchError) -> None:
        """End the run for ``reason``; any thread may call it.

        The first reason counts, but for one after which a worker goes on.
        """
        with self._lock:
            self._end_for(reason)
            if self._coordinator is not None and self._saving is None and self._listening:
                self._save_soon()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._listening:
            return
        if self._breaking:  # our own signal
            self._breaking, self._is_saved = False, True
            raise _Broken
        now = time.monotonic()
        if self._end_for(_stopped(number)):
            self._signalled = now
            if self._coordinator is None:
                raise _Broken
            if self._saving is None:
                self._save_soon()
            return
        if now - self._signalled < SAME_SIGNAL_SECONDS and not self._is_saved:
            return
        self._signalled = now
        if isinstance(self._reason, StoppedError) and not self._is_saved:
            self._reason = _stopped(number, is_saved=False)
        raise _Broken

    def _end_for(self, reason: QwqBatchError) -> bool:
        """Take ``reason``, unless there is one to end for good; returns whether it is taken."""
        is_taken = self._reason is None or isinstance(self._reason, GOES_ON)
        if is_taken:
            self._reason = reason
        return is_taken

    def _save_soon(self) -> None:
        # In a thread: the main thread may hold a lock of Ray's, for which a call to Ray would wait.
        self._saving = threading.Thread(target=self._save_then_break, daemon=True)
        self._saving.start()

    def _save_then_break(self) -> None:
        try:
            self._let_engines_save()
        except Exception:
            logger.warning("the engines could not be told to save their traces")
            logger.debug("because", exc_info=True)
        main = threading.main_thread().ident
        with self._lock:
            # Whether the handler is ours is sure only now. A main thread that has left `engines_of`
            # knows the reason anyway.
            if self._coordinator is not None and main is not None:
                self._breaking = True
                signal.pthread_kill(main, signal.SIGTERM)

    def _let_engines_save(self) -> None:
        """Tell the engines to save, and wait until they have, for `DRIVER_SAVE_SECONDS` at most."""
        deadline = time.monotonic() + DRIVER_SAVE_SECONDS
        coordinator = self._coordinator
        if coordinator is None or not ray.is_initialized():
            return
        coordinator.stop(timeout=DRIVER_SAVE_SECONDS)
        while self._coordinator is not None and ray.is_initialized():
            try:
                is_saved = not coordinator.snapshot().engines
            except GetTimeoutError:  # a busy machine; the engines may still be saving
                is_saved = False
            if is_saved or time.monotonic() >= deadline:
                return
            time.sleep(POLL_SECONDS)


def _stopped(number: int, is_saved: bool = True) -> StoppedError:
    traces = (
        "running traces are saved" if is_saved
        else "running traces only as their last checkpoints have them"
    )  # fmt: skip
    name = signal.Signals(number).name
    twice = "" if is_saved else " twice"
    return StoppedError(
        f"ended by {name}{twice}; finished rows are kept and {traces}; the same command continues",
        number,
    )
