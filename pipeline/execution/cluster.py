"""Ray: the cluster a run uses, Ray Data's settings for long traces, and an orderly end."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray._private import services
from ray.data import DataContext
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import engine_type
from pipeline.errors import ConfigError, EngineError, ModelError, QwqBatchError
from pipeline.execution.placement import engines_with_room, needs_several, node_sizes, spans_nodes

logger = logging.getLogger(__name__)
CLOSE_SECONDS = 30
# The slowest trace that must not be taken for a stand-still, and the time to load a model.
SLOWEST_TOKENS_PER_SECOND = 5
LOAD_SECONDS = 3600
BLOCKS_AT_ONCE = 64
# By default Ray starts workers with 15, and an engine's processes are below an actor's: whatever
# else runs on the machine goes before them.
ENGINE_NICENESS = "0"
LOOPBACK = "127.0.0.1"


def address_of(config: RunConfig) -> str:
    """The cluster of a run: ``local``, if it starts one of its own."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start a local one for this run; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    address = address_of(config)
    # What workers print stays in Ray's session folder; the driver's terminal is for the run.
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    defaults = engine_type(config.engine).environment
    environment = {name: os.environ.get(name, value) for name, value in defaults.items()}
    if address == "local":
        # Its workers inherit the environment. With a runtime_env, those that Ray has started ahead
        # would not be used: three seconds, on two cores.
        os.environ.update(environment)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", ENGINE_NICENESS)
        options["num_cpus"] = config.ray.num_cpus or local_cpus(config.engine)
        options["include_dashboard"] = False
        options["_metrics_export_port"] = config.ray.metrics_port
        options["_node_ip_address"] = LOOPBACK  # nobody else needs its ports, and may have them
    else:
        options["runtime_env"] = {"env_vars": environment}
    try:
        with _quiet_start(), _on_loopback() if address == "local" else nullcontext():
            ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"can't reach Ray at {address} (ray.address, RAY_ADDRESS): {error}"
        ) from None
    except Exception as error:  # what else can go wrong on the way up has no type of its own
        raise EngineError(f"Ray did not start at {address}: {error}") from None
    try:
        _require_resources(config.engine, address)
        yield
    finally:
        ray.shutdown()


def _require_resources(engine: EngineConfig, address: str) -> None:
    """Refuse a local run that could never start; say what a cluster has to grow by."""
    sizes = node_sizes(engine)
    room = engines_with_room(engine, sizes)
    if room >= engine.replicas:
        return
    kind = engine.device.upper()
    message = (
        f"engine.replicas is {engine.replicas}, of {engine.ranks} {kind}s each (tensor_parallel x "
        "pipeline_parallel)"
    )
    if address == "local":
        hint = "without a GPU set engine.device=cpu" if kind == "GPU" else "see ray.num_cpus"
        raise ConfigError(f"{message}, and this machine has {sum(sizes)}; {hint}")
    hint = ""
    setting = engine_type(engine).several_nodes_setting
    if kind == "GPU" and setting is not None and not needs_several(engine, sizes):
        hint = f"; {setting} lets an engine take GPUs of several nodes"
    logger.warning(
        "%s, and the nodes have %s: there is room for %d at present. The others wait for more "
        "nodes; or lower engine.replicas%s",
        message, ", ".join(map(str, sizes)) or "none", room, hint,
    )  # fmt: skip


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Keep Ray's C++ log off the terminal: Ray Data 2.60 makes it print an error that is none.

    ("Actor … has constructor arguments in the object store", once for every actor pool.) Setting
    the level is itself announced on standard error, so that is set aside meanwhile.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a local Ray listen on 127.0.0.1 when told so, as it does elsewhere than on Linux.

    There it takes the network card's address instead, and its servers listen for everybody.
    """
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = resolve


def local_cpus(engine: EngineConfig) -> int:
    """Logical CPUs of a local cluster: one for each CPU rank, one each to read, cut and write."""
    ranks = engine.replicas * engine.ranks if engine.device == "cpu" else engine.replicas
    return max(ranks + 3, os.cpu_count() or 1)


def configure_ray_data(config: RunConfig) -> None:
    """Quiet, patient with long traces, forgiving to an engine that fails to start once."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are told by `explain`
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # a thread for each block
    context.raise_original_map_exception = True
    # The driver takes so many blocks of a task ten times a second. Ray's own two keep engines
    # waiting, above some ten blocks a second.
    context._max_num_blocks_in_streaming_gen_buffer = BLOCKS_AT_ONCE
    # A block's output is cut in two above one and a half times this, and a row's samples with it.
    context.target_max_block_size = 2**30
    # An actor that replaces another would want places of its own, which the other's still hold.
    context.max_consecutive_actor_init_deaths = 0 if spans_nodes(config.engine) else 2
    context.execution_no_progress_timeout_s = (
        config.sampling.max_tokens / SLOWEST_TOKENS_PER_SECOND + LOAD_SECONDS
    )


def wait_until_closed(coordinator: Any) -> None:
    """Wait (half a minute at most) until all engines have shut down, so that none is cut off."""
    deadline = time.monotonic() + CLOSE_SECONDS
    try:
        while (
            time.monotonic() < deadline
            and ray.get(coordinator.snapshot.remote(), timeout=5).engines
        ):
            time.sleep(0.1)
    except RayError:
        logger.debug("the coordinator is gone", exc_info=True)


def results(tasks: Iterable[Any]) -> Iterator[Any]:
    """What Ray tasks return, in order; a signal breaks the waiting off, as it would not `ray.get`.

    Of each result the only reference is passed on. Raises what `explain` makes of an error.
    """
    waiting = deque(tasks)
    while waiting:
        try:
            found = waiting.popleft().future().result()
        except Exception as error:  # Ray raises what tasks raised, and all kinds of its own
            raise explain(error) from None
        yield found


def explain(error: BaseException) -> QwqBatchError:
    """What Ray raised, as an error of ours with its reason and where the logs are.

    A model that can't be loaded is the user's to mend; anything else has ended a run that can go
    on, so it is an `EngineError`.
    """
    nodes = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    session = nodes[0]["ObjectStoreSocketName"].split("/sockets/")[0] if nodes else "Ray's session"
    logs = f"the workers' logs are in {session}/logs"
    chain = list(_chain(error))
    ours = [found for found in chain if isinstance(found, QwqBatchError)]
    if ours and isinstance(ours[-1], ModelError):
        return ModelError(f"{ours[-1].message}\n{logs}")
    told = [str(found).strip() for found in chain if str(found).strip()]
    reason = ours[-1].message if ours else told[-1] if told else type(error).__name__
    kept = "what is finished is kept, the same command goes on"
    return EngineError(f"the run ended early: {reason}\n{kept}; {logs}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and what it came from, Ray's own wrapping included."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        found = queue.pop(0)
        if found is None or id(found) in seen or isinstance(found, SystemException):
            continue
        seen.add(id(found))
        yield found
        queue += [getattr(found, "cause", None), found.__cause__, found.__context__]
