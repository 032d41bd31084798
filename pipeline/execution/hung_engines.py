"""Finds engines that hang, and kills their processes: Ray starts dead actors again, and no others.

An engine hangs if it has rows and does nothing: its process is stopped, or a GPU never answers. The
coordinator says which; the driver kills, by a task on the engine's node, because a process that is
stopped takes no orders.
"""

import logging
import os
import signal
import socket
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import time_limits
from pipeline.execution.watching import watching
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.engine_processes import HungLimits, ProcessAddress

logger = logging.getLogger(__name__)


def address_here(engine: str) -> ProcessAddress:
    """The address of ``engine`` in the present process, an actor's."""
    context = ray.get_runtime_context()
    return ProcessAddress(
        engine, context.get_actor_id() or "", context.get_node_id(), socket.gethostname(),
        os.getpid(), start_of(os.getpid()),
    )  # fmt: skip


def start_of(process: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty if there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22; the name before it may hold anything


def hung_engines_killed(coordinator: CoordinatorClient) -> AbstractContextManager[None]:
    """While the body runs, look for engines that hang, in another thread, and kill them."""
    limits = HungLimits(
        time_limits.HUNG_LOOK_SECONDS, time_limits.HUNG_SECONDS, time_limits.HUNG_ALONE_SECONDS
    )

    def look() -> None:
        for address in coordinator.hung_engines(limits):
            _end(address, coordinator)

    return watching("hung engines", look, limits.look)


def _end(address: ProcessAddress, coordinator: CoordinatorClient) -> None:
    """Kill a process, if it is still the one that was meant, and say so."""
    there = NodeAffinitySchedulingStrategy(address.node, soft=False)
    kill: Any = ray.remote(num_cpus=0, max_retries=0)(_kill)
    killed = kill.options(scheduling_strategy=there).remote(address)
    if ray.get(killed, timeout=time_limits.CALL_SECONDS):
        coordinator.engine_killed(address.engine)
        logger.warning(
            "engine %s on %s (process %d) had rows and did nothing for %.0f s or longer, so its "
            "process was killed; it starts again, and its rows continue from the last checkpoint",
            address.engine, address.host, address.pid, time_limits.HUNG_SECONDS,
        )  # fmt: skip


def _kill(address: ProcessAddress) -> bool:
    """Kill a process of this machine; returns False if it has ended already."""
    if start_of(address.pid) != address.started:
        return False
    os.kill(address.pid, signal.SIGKILL)
    return True
