"""Where engines run: each on one node or, if no node has enough GPUs, over several nodes.

On one node, an engine is an actor that asks for its GPUs; its ranks are processes below it. Over
several nodes, the actor asks for no GPU. It stands in a placement group with a bundle of one GPU
for each rank. The engine starts its ranks in these bundles, those of the actor's node first.
"""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
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
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import engine_type
from pipeline.errors import ConfigError
from pipeline.execution import ray_private

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


def node_sizes(engine: EngineConfig) -> list[int]:
    """The numbers of GPUs (or CPUs) of the cluster's living nodes, most first, without zeros."""
    kind = "GPU" if engine.device == "gpu" else "CPU"
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    sizes = [int(node["Resources"].get(kind, 0)) for node in nodes if node["Alive"]]
    return sorted(filter(None, sizes), reverse=True)


def needs_several(engine: EngineConfig, sizes: list[int]) -> bool:
    """Whether an engine must take GPUs of several nodes; ``sizes``: see `node_sizes`.

    The engine's settings may decide; otherwise the largest node does. Without nodes: False, because
    nodes that start later may be large enough.
    """
    decided = engine_type(engine).spans_nodes(engine)
    return bool(sizes) and engine.ranks > max(sizes) if decided is None else decided


def spans_nodes(engine: EngineConfig) -> bool:
    """Whether the settings place an engine over several nodes; see `fitted_to_cluster`."""
    return engine_type(engine).spans_nodes(engine) is True


def fitted_to_cluster(config: RunConfig) -> RunConfig:
    """``config``, its engines set to span nodes if no node of the cluster has enough GPUs.

    Raises `ConfigError` if engines that span nodes are to come and go.
    """
    engine = config.engine
    if engine.is_elastic and needs_several(engine, node_sizes(engine)):
        raise ConfigError(
            f"engine.replicas {engine.replicas_text}: an engine of {engine.ranks} GPUs takes those "
            "of several nodes here, and keeps them to the end of the run, so such engines can't "
            "come and go; set a number"
        )
    if spans_nodes(engine) or not needs_several(engine, node_sizes(engine)):
        return config
    return config.model_copy(update={"engine": engine_type(engine).over_nodes(engine)})


def engines_with_room(engine: EngineConfig, sizes: list[int]) -> int:
    """How many engines fit on nodes of these ``sizes``."""
    if needs_several(engine, sizes):
        return sum(sizes) // engine.ranks
    return sum(size // engine.ranks for size in sizes)


class EnginePlacements:
    """Where a pool's engines run. As a context, it creates and removes their placement groups.

    (Ray removes them with the driver, but the driver may have other tiers to run.)
    """

    def __init__(self, engine: EngineConfig) -> None:
        self._engine, self._spans_nodes = engine, spans_nodes(engine)
        self._groups = list[PlacementGroup]()
        self._turns: Iterator[PlacementGroup] = iter(())

    @property
    def options(self) -> dict[str, Any]:
        """Ray options of an engine actor, as `map_batches_internal` takes them."""
        if not self._spans_nodes:
            kind = "num_gpus" if self._engine.device == "gpu" else "num_cpus"
            return {kind: self._engine.ranks}
        return {"num_cpus": 0, "num_gpus": 0, "ray_remote_args_fn": self._next}

    @property
    def avoid(self) -> Callable[[str], Any]:
        """See `avoid_node`."""
        return partial(avoid_node, self._engine)

    def __enter__(self) -> Self:
        if self._spans_nodes:
            bundles = [{"GPU": 1}] * self._engine.ranks
            self._groups = [placement_group(bundles) for _ in range(self._engine.max_replicas)]
        self._turns = cycle(self._groups)
        return self

    def __exit__(self, *_: object) -> None:
        while self._groups:
            try:
                remove_placement_group(self._groups.pop())
            except RayError:
                logger.debug("the placement group is gone with its cluster", exc_info=True)

    def _next(self) -> dict[str, Any]:
        """The placement group of the next actor; its restarts keep it.

        Ray Data calls this once for each actor in a row, and at other times only to look. So the
        groups take turns, and none is created here.
        """
        strategy = PlacementGroupSchedulingStrategy(
            next(self._turns), placement_group_capture_child_tasks=True
        )
        return {"scheduling_strategy": strategy}


class Occupant:
    """An actor that only takes room."""


def avoid_node(engine: EngineConfig, node: str) -> Any:
    """Occupy the room of an engine on the node with this id, so that Ray starts engines elsewhere.

    Returns the handle of the actor that does so: as long as it is held. None if no other node has
    room at present, or if an engine's place is a placement group.
    """
    kind = "GPU" if engine.device == "gpu" else "CPU"
    free = ray_private.free_resources()
    if spans_nodes(engine) or not any(
        room.get(kind, 0) >= engine.ranks for name, room in free.items() if name != node
    ):
        return None
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    resources = {"num_cpus": 0, f"num_{kind.lower()}s": engine.ranks}
    return ray.remote(Occupant).options(**resources, scheduling_strategy=there).remote()


def wait_until_placed() -> None:
    """Wait in an engine actor over several nodes until each of its GPUs has a living node.

    Ray moves a lost node's bundles to other nodes, but restarts the actor before that. The wait has
    no limit; Ray Data ends a run that makes no progress.
    """
    group = get_current_placement_group()
    while group is not None and placement_group_table(group)["state"] != "CREATED":
        time.sleep(POLL_SECONDS)
