"""Clocks that do not wait: what sleeps for an hour is over at once.

`run` is for coroutines. `Clock` is for code that blocks, such as the pipeline's own drivers: they
take turns in one thread.
"""

import asyncio
import heapq
import itertools
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]


class _NoWait(selectors.DefaultSelector):
    """Moves the loop's clock to its next timer instead of waiting for it."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout > 0:
            self.now += timeout
        found: list[Any] = super().select(0 if timeout is not None else None)
        return found


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._no_wait = _NoWait()
        super().__init__(self._no_wait)

    def time(self) -> float:
        return self._no_wait.now


def run(main: Coroutine[Any, Any, Any]) -> float:
    """Run ``main`` to its end; returns the seconds that it would have taken."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        began = runner.get_loop().time()
        runner.run(main)
        return runner.get_loop().time() - began


class Clock:
    """Actions in the order of their times, and processes that sleep between theirs."""

    def __init__(self) -> None:
        self._now = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self._cpu: dict[greenlet, float] = {}
        self._switched = time.process_time()
        self._loop = getcurrent()

    def monotonic(self) -> float:
        """The time, by the name that `time` has for it."""
        return self._now

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do ``action`` so much later."""
        heapq.heappush(self._due, (self._now + seconds, next(self._order), action))

    def start(self, body: Callable[[], None]) -> None:
        """Begin a process that does ``body``."""
        process = greenlet(body, self._loop)
        self.after(0, lambda: self._switch(process))

    def run(self) -> None:
        """Do all actions, and those that they ask for."""
        while self._due:
            self._now, _, action = heapq.heappop(self._due)
            action()

    def sleep(self, seconds: float) -> None:
        """Let the current process sleep."""
        self.after(seconds, self.pause())
        self.wait()

    def pause(self) -> Callable[[], object]:
        """What will wake the current process, which is about to `wait`."""
        process = getcurrent()
        return lambda: self._switch(process)

    def wait(self) -> None:
        """Let the current process wait until it is woken."""
        assert getcurrent() is not self._loop, "only a process can wait"
        self._switch(self._loop)

    def cpu_seconds(self) -> float:
        """The CPU time of the current process, without that of others."""
        self._count()
        return self._cpu[getcurrent()]

    def _switch(self, process: greenlet) -> None:
        self._count()
        process.switch()

    def _count(self) -> None:
        """Count the CPU time since the last switch as the current process's."""
        now, process = time.process_time(), getcurrent()
        self._cpu[process] = self._cpu.get(process, 0.0) + now - self._switched
        self._switched = now
