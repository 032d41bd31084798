"""Measures a process from start to exit: time, CPU time, memory, and durable rows over time."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from pipeline.errors import EngineError

POLL_SECONDS, MEMORY_SECONDS = 2.0, 6.0
# Ray names a worker process by the task that it runs at the moment.
TASK_NAMES = ("IDLE", "Read", "StreamingRepartition", "Write")


@dataclass
class Measured:
    """A process and all its descendants.

    ``seconds``: from start to exit. ``durable``: (seconds since the start, rows on disk). ``cpu``:
    name and seconds of CPU time of each process, by its id.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    cpu: dict[int, tuple[str, float]] = field(default_factory=dict)
    durable: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_durable(self) -> float | None:
        """Seconds until the first row was on disk; None if there was none."""
        return next((at for at, rows in self.durable if rows), None)

    @property
    def cpu_by_name(self) -> dict[str, float]:
        """Seconds of CPU time by name of process, highest first."""
        by_name: dict[str, float] = {}
        for name, seconds in self.cpu.values():
            by_name[name] = by_name.get(name, 0.0) + seconds
        return dict(sorted(by_name.items(), key=lambda item: -item[1]))

    def durable_at(self, seconds: float) -> int:
        """Rows on disk ``seconds`` after the start."""
        return max((rows for at, rows in self.durable if at <= seconds), default=0)


def run(
    command: Sequence[str],
    log: Path,
    rows_durable: Callable[[], int],
    kill_after: float | None = None,
) -> Measured:
    """Run ``command`` to its end, or kill it and its descendants after ``kill_after`` seconds.

    ``rows_durable`` counts the rows on disk. Raises `EngineError` if the command fails.
    """
    measured, started = Measured(), time.monotonic()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 (our own)
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        ended = threading.Event()
        watcher = threading.Thread(
            target=_watch, args=(process.pid, measured, started, rows_durable, ended)
        )
        watcher.start()
        try:
            code = process.wait(kill_after)
        except subprocess.TimeoutExpired:
            for victim in _tree(process.pid):
                _kill(victim)
            code = 0
            process.wait()
        except BaseException:
            for victim in _tree(process.pid):
                _kill(victim)
            raise
        finally:
            measured.seconds = time.monotonic() - started
            ended.set()
            watcher.join()
    if code:
        raise EngineError(f"{' '.join(command)} ended with {code}; its output is in {log}")
    measured.durable.append((measured.seconds, rows_durable()))
    return measured


def _watch(
    pid: int,
    measured: Measured,
    started: float,
    rows_durable: Callable[[], int],
    ended: threading.Event,
) -> None:
    memory_read = 0.0
    while not ended.wait(POLL_SECONDS):
        now = time.monotonic() - started
        measured.durable.append((now, rows_durable()))
        tree = _tree(pid)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                measured.cpu[process.pid] = (_name(process), times.user + times.system)
        if now - memory_read > MEMORY_SECONDS:
            memory_read = now
            measured.peak_bytes = max(measured.peak_bytes, sum(map(_memory, tree)))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    """A short name for ``process``; Ray's workers are named by what they run."""
    title = " ".join(process.cmdline()[:3])
    if "ray::" in title:
        name = title.split("ray::")[1].split(".")[0].strip()
        return "tasks: read, write" if name.startswith(TASK_NAMES) else name
    for part in ("raylet", "gcs_server", "VLLM::EngineCore"):
        if part in title:
            return part
    return "driver" if "-m pipeline" in title else Path(title.split()[0]).name if title else ""


def _memory(process: psutil.Process) -> int:
    """Proportional set size in bytes: shared memory is divided among its processes."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
