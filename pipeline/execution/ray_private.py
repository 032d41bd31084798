"""All that we use of Ray's private API, in one place.

`tests/unit/execution/test_ray_private.py` names what a new version of Ray has dropped.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray.data
from ray._private import services, state, worker
from ray._private.state import available_resources_per_node
from ray.data import DataContext, Dataset

LOOPBACK = "127.0.0.1"


def local_init_options(metrics_port: int | None) -> dict[str, Any]:
    """Arguments of `ray.init` for a Ray that listens on 127.0.0.1 only; see `on_loopback`."""
    return {"_metrics_export_port": metrics_port, "_node_ip_address": LOOPBACK}


@contextmanager
def on_loopback() -> Iterator[None]:
    """Let a local Ray listen on 127.0.0.1 when told to, as it does elsewhere than on Linux.

    On Linux it replaces that by the network card's address, and its servers listen for everybody.
    """
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


def buffer_blocks(context: DataContext, blocks: int) -> None:
    """Let the driver take up to ``blocks`` finished blocks of a task at a time."""
    context._max_num_blocks_in_streaming_gen_buffer = blocks


def map_blocks(dataset: Dataset, actor: type, **options: Any) -> Dataset:
    """Map whole blocks, as Arrow tables, with an actor class.

    The public `map_batches` refuses GPUs without a batch size; here a block is a batch.
    """
    return dataset.map_batches_internal(actor, batch_size=None, batch_format="pyarrow", **options)


def free_resources() -> dict[str, dict[str, float]]:
    """By node id, what is free of each resource at present."""
    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return free


def draining_nodes() -> set[str]:
    """The ids of the nodes that are to end soon, so that Ray places nothing there any more."""
    return set(state.state.get_draining_nodes())


def map_actor_context() -> Any:
    """The object that Ray Data holds in an actor until the actor ends in good order; or None."""
    return ray.data._map_actor_context


def task_attempt() -> int:
    """How often Ray has started the present task before."""
    core: Any = vars(worker.global_worker)["core_worker"]
    attempt: int = core.get_current_task_attempt_number()
    return attempt
