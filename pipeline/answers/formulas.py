"""Reads and compares formulas in a process of its own, which is killed when it takes too long.

A computer algebra system can be busy for hours with a formula of ten characters, in one call of C
code that no signal interrupts. The process is started at the first formula and kept.
"""

import atexit
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from pipeline.errors import EngineError

logger = logging.getLogger(__name__)
# CPU time for one request, after which the system ends the process. It gives up earlier by itself
# where a signal can interrupt it. And how long to wait for it, on a busy machine too.
LIMIT_SECONDS, WAIT_SECONDS = 12.0, 90.0
# It imports SymPy first.
START_SECONDS = 120.0
READY = "ready"


class FormulaProcess:
    """A process that reads formulas, and says whether two are equal in value."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def values(self, formulas: Sequence[str]) -> list[Any]:
        """The value of each formula, as `formula_values.value` gives it; False: given up.

        Raises `EngineError` if the process does not start: no answer would be right then.
        """
        return self._all("values", formulas, False)

    def are_equal(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether the two of each pair are equal in value; None: given up.

        Raises `EngineError` as `values` does.
        """
        return self._all("are_equal", pairs, None)

    def _all(self, command: str, arguments: Sequence[Any], unknown: bool | None) -> list[Any]:
        """The process's answer for each of ``arguments``; ``unknown`` for all if it takes long."""
        if not arguments:
            return []
        with self._lock:
            try:
                answer = self._ask(json.dumps([command, arguments]))
            except OSError:  # it has died, of too much memory for example
                answer = None
            if answer is None:
                logger.warning("gave up comparing %s", ", ".join(map(repr, arguments))[:200])
                self._end()
                return [unknown] * len(arguments)
            results: list[Any] = json.loads(answer)
            return results

    def _ask(self, question: str) -> str | None:
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(f"{question}\n")
        process.stdin.flush()
        return self._read(process, WAIT_SECONDS)

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.answers.formulas"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )  # fmt: skip
        if self._read(self._process, START_SECONDS) != READY:
            self._end()
            raise EngineError(
                f"the process that compares formulas did not start: try `{sys.executable} -m "
                "pipeline.answers.formulas`, and see the log of this worker"
            )
        return self._process

    @staticmethod
    def _read(process: subprocess.Popen[str], seconds: float) -> str | None:
        """The next line; None if there is none within ``seconds``, or the process has ended."""
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return (process.stdout.readline().strip() or None) if ready else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()


FORMULAS = FormulaProcess()
atexit.register(FORMULAS.close)


def main() -> None:
    """Answer questions from standard input until it ends."""
    from pipeline.answers import formula_values

    logging.disable(logging.CRITICAL)
    formula_values.are_equal([("1", "1")])
    print(READY, flush=True)
    commands = {"values": formula_values.values, "are_equal": formula_values.are_equal}
    for line in sys.stdin:
        # After so much CPU time the system ends this process: whoever asked may be gone.
        signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_SECONDS)
        command, arguments = json.loads(line)
        answer = commands[command](arguments)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
