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


class _Broken(BaseException):
    """Raised in the middle of whatever the main thread does; no ``except Exception`` takes it."""


class Stop:
    """Waits for a reason to end the run. Signals are taken only in the main thread."""

    def __init__(self) -> None:
        self._reason: QwqBatchError | None = None
        self._board: Any = None
        self._begins = threading.Lock()
        self._main = threading.current_thread() is threading.main_thread()

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take SIGTERM and SIGINT while the body runs; raises what ended it."""
        if not self._main:
            yield self
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self._on_signal) for kind in kinds}
        try:
            yield self
        except _Broken:
            assert self._reason is not None
            raise self._reason from None
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    @contextmanager
    def engines_of(self, board: Any) -> Iterator[None]:
        """While the body runs there are engines to be told, by ``board``."""
        self._board = board
        try:
            yield
        finally:
            self._board = None

    def because(self, reason: QwqBatchError) -> None:
        """End the run for ``reason``; called by any thread."""
        self._reason = self._reason or reason
        if self._main and self._begins.acquire(blocking=False):
            self._save_then_break()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        told_before = self._reason is not None
        name = signal.Signals(number).name
        self._reason = self._reason or StoppedError(
            f"ended by {name}; what is finished is kept, what was running is saved, the same "
            "command goes on",
            number,
        )
        if told_before or self._board is None:
            raise _Broken
        if self._begins.acquire(blocking=False):
            # Not here: the main thread may hold a lock of Ray's that asking Ray would wait for.
            threading.Thread(target=self._save_then_break, daemon=True).start()

    def _save_then_break(self) -> None:
        board, deadline = self._board, time.monotonic() + SAVE_SECONDS
        try:
            if board is not None:
                ray.get(board.stop.remote(), timeout=SAVE_SECONDS)
            while board is not None and time.monotonic() < deadline:
                if not ray.get(board.snapshot.remote(), timeout=SAVE_SECONDS).engines:
                    break
                time.sleep(POLL_SECONDS)
        except Exception:
            logger.warning("the engines could not be told to save what they have", exc_info=True)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)
