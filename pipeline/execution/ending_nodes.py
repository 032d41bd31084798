"""Tells the coordinator which nodes are there, and which are about to end.

A node ends soon when Ray drains it: its autoscaler on a spot notice, or `ray drain-node`. Engines
there save their traces and end. Ray starts them again where GPUs are free, or as soon as some are.
"""

from contextlib import AbstractContextManager
from typing import Any

import ray

from pipeline.execution import ray_private
from pipeline.execution.watching import watching
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.time_limits import NODES_LOOK_SECONDS


def living_nodes() -> set[str]:
    """The ids of the cluster's nodes at present."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["NodeID"] for node in nodes if node["Alive"]}


def node_lives(node: str) -> bool:
    """Whether the node with this id is part of the cluster at present."""
    return node in living_nodes()


def nodes_told(coordinator: CoordinatorClient) -> AbstractContextManager[None]:
    """While the body runs, keep ``coordinator`` informed about the nodes."""

    def look() -> None:
        coordinator.note_nodes(living_nodes(), ray_private.draining_nodes())

    return watching("nodes", look, NODES_LOOK_SECONDS)
