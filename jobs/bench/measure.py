"""A whole process, measured from its start to its exit: time, memory, what is on disk meanwhile."""

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
# What Ray calls a worker of tasks: by the one that it runs at the moment.
TASKS = ("IDLE", "Read", "StreamingRepartition", "Write")


@dataclass
class Measured:
    """One process and all below it.

    ``durable``: rows on disk, by the seconds since it was started. ``cpu``: its processes' names
    and seconds of CPU time, by number.
    """

    seconds: float = 0.0
    peak_bytes: int = 0
    cpu: dict[int, tuple[str, float]] = field(default_factory=dict)
    durable: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_durable(self) -> float | None:
        """When the first row was on disk."""
        return next((at for at, rows in self.durable if rows), None)

    @property
    def cpu_by_name(self) -> dict[str, float]:
        """Seconds of CPU time, by the name of the process."""
        found: dict[str, float] = {}
        for name, seconds in self.cpu.values():
            found[name] = found.get(name, 0.0) + seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def durable_at(self, seconds: float) -> int:
        """How many rows were on disk by then."""
        return max((rows for at, rows in self.durable if at <= seconds), default=0)


def run(
    command: Sequence[str],
    log: Path,
    rows_durable: Callable[[], int],
    kill_after: float | None = None,
) -> Measured:
    """Run ``command`` to its end, or kill it after ``kill_after`` seconds; nothing stays behind."""
    found, started = Measured(), time.monotonic()
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 (our own)
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        watching = threading.Event()
        watcher = threading.Thread(
            target=_watch, args=(process.pid, found, started, rows_durable, watching)
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
            found.seconds = time.monotonic() - started
            watching.set()
            watcher.join()
    if code:
        raise EngineError(f"{' '.join(command)} ended with {code}; its output is in {log}")
    found.durable.append((found.seconds, rows_durable()))
    return found


def _watch(
    pid: int,
    found: Measured,
    started: float,
    rows_durable: Callable[[], int],
    ended: threading.Event,
) -> None:
    looked = 0.0
    while not ended.wait(POLL_SECONDS):
        now = time.monotonic() - started
        found.durable.append((now, rows_durable()))
        tree = _tree(pid)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found.cpu[process.pid] = (_name(process), times.user + times.system)
        if now - looked > MEMORY_SECONDS:
            looked = now
            found.peak_bytes = max(found.peak_bytes, sum(map(_memory, tree)))


def _tree(pid: int) -> list[psutil.Process]:
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    """A word for what it is; Ray's workers are called by what they do."""
    title = " ".join(process.cmdline()[:3])
    if "ray::" in title:
        what = title.split("ray::")[1].split(".")[0].strip()
        return "tasks: read, write" if what.startswith(TASKS) else what
    for part in ("raylet", "gcs_server", "VLLM::EngineCore"):
        if part in title:
            return part
    return "driver" if "-m pipeline" in title else Path(title.split()[0]).name if title else ""


def _memory(process: psutil.Process) -> int:
    """Its share of memory: what processes share is divided among them."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0


def _kill(process: psutil.Process) -> None:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return
