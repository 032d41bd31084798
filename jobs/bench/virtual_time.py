"""An event loop whose clock does not wait: what sleeps for an hour is over at once."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


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
