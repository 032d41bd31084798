"""The command, as a user runs it."""

import os
import re
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOISE = re.compile(r"Traceback|EngineDeadError|leaked|resource_tracker|Exception ignored")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def qwq_batch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, in the repository."""
    return python_m("pipeline", *arguments, **environment)


def python_m(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` in the repository."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=500,
    )  # fmt: skip


@contextmanager
def scraped(url: str) -> Iterator[set[str]]:
    """The names of all metrics that are there at some time while the body runs."""
    names, over = set[str](), threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    names.update(re.findall(r"^(\w+)\{", answer.read().decode(), re.MULTILINE))
            except OSError:
                continue  # it is starting, or has ended

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield names
    finally:
        over.set()
        thread.join()
