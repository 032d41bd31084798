"""How a driver ends before its run is done: by a signal, or because its lease is lost.

The engines are told to save what their running traces have, and only then the run is broken off.
"""

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from pipeline.errors import QwqBatchError, StoppedError

logger = logging.getLogger(__name__)
# What Slurm and Kubernetes leave between SIGTERM and SIGKILL is 30 s unless set otherwise.
SAVE_SECONDS = 20.0
POLL_SECONDS = 0.1
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Broken(BaseException):
    """Raised in the middle of whatever the main thread does; no ``except Exception`` takes it."""


class Shutdown:
    """Waits for a reason to end the run. Signals are taken only in the main thread."""

    def __init__(self) -> None:
        self._reason: QwqBatchError | None = None
        self._coordinator: Any = None
        self._listens = False
        self._saving: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator["Shutdown"]:
        """Take SIGTERM and SIGINT while the body runs; raises what ended it."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {kind: signal.getsignal(kind) for kind in SIGNALS}
        self._listens = True
        self.take_signals()
        try:
            yield self
        except BaseException:  # once there is a reason to end, whatever else fails follows from it
            if self._reason is None:
                raise
        finally:
            self._listens = False
            if self._saving is not None:
                self._saving.join(SAVE_SECONDS)
            for kind, handler in before.items():
                signal.signal(kind, handler)
        if self._reason is not None:
            raise self._reason

    def take_signals(self) -> None:
        """Take the signals (again): `ray.init` and `ray.shutdown` put others' handlers in place."""
        if self._listens:
            for kind in SIGNALS:
                signal.signal(kind, self._on_signal)

    @contextmanager
    def engines_of(self, coordinator: Any) -> Iterator[None]:
        """While the body runs there are engines to be told, by ``coordinator``."""
        self.take_signals()
        with self._lock:
            self._coordinator = coordinator
        try:
            if self._reason is not None:  # found while there was no coordinator to tell
                raise _Broken
            yield
        finally:
            with self._lock:
                self._coordinator = None
        if self._reason is not None:
            raise _Broken

    def check(self) -> None:
        """Raise if there is a reason to end, found while no engine was running."""
        if self._reason is not None:
            raise self._reason

    def request(self, reason: QwqBatchError) -> None:
        """End the run for ``reason``; called by any thread."""
        with self._lock:
            self._reason = self._reason or reason
            if self._coordinator is not None and self._saving is None and self._listens:
                self._save_soon()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if not self._listens:
            return
        told_before = self._reason is not None
        name = signal.Signals(number).name
        self._reason = self._reason or StoppedError(
            f"ended by {name}; what is finished is kept, what was running is saved, the same "
            "command goes on",
            number,
        )
        if told_before or self._coordinator is None:
            raise _Broken
        self._save_soon()

    def _save_soon(self) -> None:
        # In a thread: the main one may hold a lock of Ray's that asking Ray would wait for.
        self._saving = threading.Thread(target=self._save_then_break, daemon=True)
        self._saving.start()

    def _save_then_break(self) -> None:
        deadline = time.monotonic() + SAVE_SECONDS
        try:
            if (coordinator := self._coordinator) is not None and ray.is_initialized():
                ray.get(coordinator.stop.remote(), timeout=SAVE_SECONDS)
            while (coordinator := self._coordinator) is not None and time.monotonic() < deadline:
                if (
                    not ray.is_initialized()
                    or not ray.get(coordinator.snapshot.remote(), timeout=SAVE_SECONDS).engines
                ):
                    break
                time.sleep(POLL_SECONDS)
        except Exception:
            logger.warning("the engines could not be told to save what they have")
            logger.debug("because", exc_info=True)
        main = threading.main_thread().ident
        with self._lock:
            # Only now is it sure that the handler is ours; who has left `engines_of` knows anyway.
            if self._coordinator is not None and main is not None:
                signal.pthread_kill(main, signal.SIGTERM)
