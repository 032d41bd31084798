"""The command, as a user runs it."""

import os
import re
import socket
import subprocess
import sys
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
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}, timeout=900,
    )  # fmt: skip
