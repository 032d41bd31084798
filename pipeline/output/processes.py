"""Which process wrote a file, so that its end can be noticed at once on the same machine."""

import math
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SeenProcess:
    """A process that rewrites its file at intervals, as the last content shows it; for display.

    ``host``, ``pid``: where it runs. ``since``: when it started, in UTC. ``silent_seconds``: the
    age of that content, by comparing the clocks of two machines.
    """

    host: str
    pid: int
    since: str
    is_at_work: bool
    silent_seconds: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


def seen(content: Mapping[str, Any], expire_seconds: float) -> SeenProcess:
    """The process that wrote ``content``, `this_process` with the time as ``at`` (Unix).

    It counts as gone if it has ended or is silent for ``expire_seconds``.
    """
    silent = max(0.0, time.time() - _number(content.get("at")))
    is_gone = silent >= expire_seconds or ("pid" in content and has_ended(content))
    return SeenProcess(
        host=str(content.get("host")),
        pid=int(_number(content.get("pid"))),
        since=str(content.get("since")),
        is_at_work=not is_gone,
        silent_seconds=silent,
    )


def this_process() -> dict[str, Any]:
    """Describes this process to others: host, pid, a random id, when it began (in UTC)."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": _process(os.getpid()),
        "id": uuid.uuid4().hex,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether a process as `this_process` describes it ran on this machine and has ended.

    And in this container: elsewhere the answer is always no.
    """
    here, other = _here(os.getpid()), str(process.get("process"))
    if here is None or other.rpartition(" ")[0] != here:
        return False
    return _process(int(_number(process["pid"]))) != other


def _number(value: object) -> float:
    """``value`` if it is a number, 0 if its file was damaged."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0


@lru_cache(maxsize=1)  # a worker asks for each of a thousand others
def _here(pid: int) -> str | None:
    """The boot and the pid namespace of ``pid``, which is this process; None without /proc."""
    this = _process(pid)
    return None if this is None else this.rpartition(" ")[0]


def _process(pid: int) -> str | None:
    """An identity of a process: the boot, the pid namespace and the start of the process.

    None if the process has ended or there is no /proc.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    # Field 0 is the state (Z: ended, but not waited for), field 19 the start in clock ticks.
    return None if status[0] in "ZX" else f"{boot} {namespace} {status[19]}"
