"""Where engines run: each on one node or, where no node has the GPUs for one, over several.

On one node an engine is an actor that asks for its GPUs, and vLLM's ranks are processes below it.
Over several it is an actor without GPUs in a placement group with a bundle of one GPU for each
rank, and vLLM's Ray backend puts its ranks there, those of the actor's own node first.
"""

import logging
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any, Self

import ray
from ray.exceptions import RayError
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import BACKEND, EngineConfig

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


def node_sizes(engine: EngineConfig) -> list[int]:
    """The GPUs (or CPUs) of each living node of the cluster that has any, most first."""
    kind = "GPU" if engine.device == "gpu" else "CPU"
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    sizes = [int(node["Resources"].get(kind, 0)) for node in nodes if node["Alive"]]
    return sorted(filter(None, sizes), reverse=True)


def needs_several(engine: EngineConfig, sizes: list[int]) -> bool:
    """Whether an engine is to take GPUs of several nodes; ``sizes``: those of the nodes there are.

    What the config says of vLLM's backend holds. Nodes that are still to come say nothing.
    """
    if engine.device == "cpu" or BACKEND in engine.vllm:
        return engine.over_nodes
    return bool(sizes) and engine.ranks > max(sizes)


def with_backend(config: RunConfig) -> RunConfig:
    """``config`` for the cluster that there is: if its engines need several nodes, it says so."""
    engine = config.engine
    if engine.over_nodes or not needs_several(engine, node_sizes(engine)):
        return config
    update = {"vllm": {**engine.vllm, BACKEND: "ray"}}
    return config.model_copy(update={"engine": engine.model_copy(update=update)})


def engines_with_room(engine: EngineConfig, sizes: list[int]) -> int:
    """How many engines find room on nodes of these ``sizes``."""
    if needs_several(engine, sizes):
        return sum(sizes) // engine.ranks
    return sum(size // engine.ranks for size in sizes)


class EnginePlacements:
    """The places of a pool's engines; as a context, it takes and frees their placement groups.

    (Ray frees them when the driver is gone, however it went, but the driver may have more to do.)
    """

    def __init__(self, engine: EngineConfig) -> None:
        self._engine, self._groups = engine, list[PlacementGroup]()
        self._turns: Iterator[PlacementGroup] = iter(())

    @property
    def options(self) -> dict[str, Any]:
        """What an engine actor asks of Ray, as `map_batches_internal` takes it."""
        if not self._engine.over_nodes:
            kind = "num_gpus" if self._engine.device == "gpu" else "num_cpus"
            return {kind: self._engine.ranks}
        return {"num_cpus": 0, "num_gpus": 0, "ray_remote_args_fn": self._next}

    def __enter__(self) -> Self:
        if self._engine.over_nodes:
            bundles = [{"GPU": 1}] * self._engine.ranks
            self._groups = [placement_group(bundles) for _ in range(self._engine.replicas)]
        self._turns = cycle(self._groups)
        return self

    def __exit__(self, *_: object) -> None:
        while self._groups:
            try:
                remove_placement_group(self._groups.pop())
            except RayError:
                logger.debug("the placement group is gone with its cluster", exc_info=True)

    def _next(self) -> dict[str, Any]:
        """An actor's own group, its restarts' too.

        Ray Data starts all actors in a row, and asks at other times just to look: so they take
        turns, and no group is made here.
        """
        strategy = PlacementGroupSchedulingStrategy(
            next(self._turns), placement_group_capture_child_tasks=True
        )
        return {"scheduling_strategy": strategy}


def wait_until_placed() -> None:
    """In an engine actor over several nodes: wait until each of its GPUs has a living node.

    Ray gives a lost node's bundles to other nodes, but starts the actor again without waiting for
    that. It may take for ever; Ray Data ends a run that stands still.
    """
    group = get_current_placement_group()
    while group is not None and placement_group_table(group)["state"] != "CREATED":
        time.sleep(POLL_SECONDS)
