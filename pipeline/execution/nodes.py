"""What the nodes of a cluster have: a Ray task looks at each. `gpus_here` needs no Ray."""

import contextlib
import csv
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOK_SECONDS, SMI_SECONDS = 120.0, 30.0
_FIELDS = "name,memory.total,memory.used,driver_version"
MIB = 2**20


@dataclass(frozen=True)
class NodeGpu:
    """A GPU as nvidia-smi shows it; ``memory`` and ``used`` in bytes."""

    name: str
    memory: int
    used: int
    driver: str


@dataclass(frozen=True)
class Node:
    """What a node has; ``shared_memory``: free bytes of /dev/shm; ``versions``: by package.

    ``counted``: the GPUs that Ray counts there. ``problem``: why it could not be looked at.
    """

    host: str
    gpus: tuple[NodeGpu, ...] = ()
    shared_memory: int | None = None
    nvcc: str | None = None
    versions: dict[str, str | None] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    counted: int = 0
    problem: str | None = None


def gpus_here() -> tuple[NodeGpu, ...]:
    """The GPUs of this machine; empty without any, or where nvidia-smi is missing or hangs."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    try:
        running = subprocess.Popen(query, **pipes)  # noqa: S603 (no input in it)
        return tuple(_gpus(running.communicate(timeout=SMI_SECONDS)[0]))
    except OSError:
        return ()
    except subprocess.TimeoutExpired:
        running.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # a hanging GPU holds it
            running.communicate(timeout=1)
        return ()


def _gpus(shown: str) -> list[NodeGpu]:
    """The GPUs in nvidia-smi's table; lines of another form are left out."""
    lines = csv.reader(shown.splitlines(), skipinitialspace=True)
    return [
        NodeGpu(line[0], int(line[1]) * MIB, int(line[2]) * MIB, line[3])
        for line in lines
        if len(line) == len(_FIELDS.split(",")) and line[1].isdigit() and line[2].isdigit()
    ]


def look_here(packages: Sequence[str], variables: Sequence[str] = ()) -> Node:
    """The present machine; ``variables``: of the environment, those to note if they are set."""
    shared = Path("/dev/shm")  # noqa: S108 (a device, not a temporary file)
    return Node(
        socket.gethostname(),
        gpus_here(),
        shutil.disk_usage(shared).free if shared.is_dir() else None,
        shutil.which("nvcc"),
        {name: installed_version(name) for name in packages},
        {name: os.environ[name] for name in variables if name in os.environ},
    )


def look_at_gpu_nodes(packages: Sequence[str], variables: Sequence[str] = ()) -> list[Node]:
    """All living nodes with GPUs of the connected cluster; a task without resources on each."""
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU")]  # type: ignore[no-untyped-call]
    tasks = [_look(node["NodeID"], packages, variables) for node in nodes]
    found = []
    for node, task in zip(nodes, tasks, strict=True):
        counted = int(node["Resources"]["GPU"])
        try:
            found.append(replace(ray.get(task, timeout=LOOK_SECONDS), counted=counted))
        except (RayError, GetTimeoutError) as error:
            host = str(node.get("NodeManagerHostname") or node["NodeID"])
            problem = str(error).strip().splitlines()[-1]
            found.append(Node(host, counted=counted, problem=problem))
    return found


def _look(node: str, packages: Sequence[str], variables: Sequence[str]) -> ObjectRef[Node]:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    look: Any = ray.remote(num_cpus=0, max_retries=0)(look_here)
    task: ObjectRef[Node] = look.options(scheduling_strategy=there).remote(packages, variables)
    return task


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
