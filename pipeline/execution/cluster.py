"""Ray for a run: its cluster, Ray Data's settings for long traces, an orderly end, its errors."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ray
from ray.data import DataContext
from ray.data.exceptions import SystemException
from ray.exceptions import GetTimeoutError, RayError

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import engine_type
from pipeline.errors import (
    ConfigError,
    EngineError,
    InputError,
    ModelError,
    QwqBatchError,
    TaskKilledError,
)
from pipeline.execution import ray_private
from pipeline.execution.placement import engines_with_room, needs_several, node_sizes, spans_nodes
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.time_limits import DRIVER_CLOSE_SECONDS

logger = logging.getLogger(__name__)
# Ray Data ends a run in which no block has moved for as long as the slowest trace may take, and an
# engine to load its model.
SLOWEST_TOKENS_PER_SECOND = 5
MODEL_LOAD_SECONDS = 3600
BLOCKS_AT_ONCE = 64
POLL_SECONDS = 0.1
# By default Ray gives workers the niceness 15, and engine processes inherit it: every other process
# would outrank the most expensive one.
ENGINE_NICENESS = "0"


def address_of(config: RunConfig) -> str:
    """The address of a run's cluster; ``local`` if the run starts its own."""
    return config.ray.address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start a local one for this run; leave it at the end.

    Raises `ConfigError` if the cluster can't be reached or can never hold the engines, and
    `EngineError` if Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    address = address_of(config)
    # The output of workers stays in Ray's session folder; the terminal is for the run.
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # Local workers inherit the environment. A runtime_env would discard the workers that Ray
        # starts in advance, which costs three seconds on two cores.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_worker_niceness", ENGINE_NICENESS)
        options["num_cpus"] = config.ray.num_cpus or local_cpus(config.engine)
        options["include_dashboard"] = False
        options |= ray_private.local_init_options(config.ray.metrics_port)
    else:
        names = engine_type(config.engine).environment
        environment = {name: os.environ[name] for name in names if name in os.environ}
        options["runtime_env"] = {"env_vars": environment}
    try:
        with _quiet_start(), ray_private.on_loopback() if address == "local" else nullcontext():
            ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"can't reach Ray at {address} (ray.address, RAY_ADDRESS): {error}"
        ) from None
    except Exception as error:  # other failures of a start have no type of their own
        raise EngineError(f"Ray did not start at {address}: {error}") from None
    try:
        _require_resources(config.engine, address)
        yield
    finally:
        ray.shutdown()


def _require_resources(engine: EngineConfig, address: str) -> None:
    """Refuse a local run that could never start; warn if a cluster has to grow."""
    sizes = node_sizes(engine)
    room = engines_with_room(engine, sizes)
    if room >= engine.min_replicas:
        return
    kind, least = engine.device.upper(), "at least " if engine.is_elastic else ""
    message = (
        f"engine.replicas is {least}{engine.min_replicas}, of {engine.ranks} {kind}s each "
        "(tensor_parallel x pipeline_parallel)"
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
    """Keep Ray's C++ log off the terminal: Ray Data 2.60 makes it print a false error.

    ("Actor … has constructor arguments in the object store", once for every actor pool.) Ray
    announces the log level on standard error, so that is redirected meanwhile.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


def local_cpus(engine: EngineConfig) -> int:
    """Logical CPUs of a local cluster: one for each CPU rank, one each to read, split and write."""
    ranks = engine.max_replicas * engine.ranks if engine.device == "cpu" else engine.max_replicas
    return max(ranks + 3, os.cpu_count() or 1)


def configure_ray_data(config: RunConfig) -> None:
    """Set Ray Data to print little, wait for long traces and accept two failed engine starts."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `explain` reports errors
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # it would take a thread for each block
    context.raise_original_map_exception = True
    # The driver takes finished blocks of a task ten times a second, two at a time by default. Above
    # some ten blocks a second, engines would wait.
    ray_private.buffer_blocks(context, BLOCKS_AT_ONCE)
    # Ray Data splits output blocks above one and a half times this, even between a row's samples.
    context.target_max_block_size = 2**30
    # A replacement would need a placement group while the first actor still holds all of them.
    context.max_consecutive_actor_init_deaths = 0 if spans_nodes(config.engine) else 2
    context.execution_no_progress_timeout_s = (
        config.sampling.max_tokens / SLOWEST_TOKENS_PER_SECOND + MODEL_LOAD_SECONDS
    )


def wait_until_closed(coordinator: CoordinatorClient) -> None:
    """Wait until all engines have shut down, for `DRIVER_CLOSE_SECONDS` at most."""
    deadline = time.monotonic() + DRIVER_CLOSE_SECONDS
    while time.monotonic() < deadline:
        try:
            if not coordinator.snapshot().engines:
                return
        except GetTimeoutError:  # a busy machine; engines may still be shutting down
            pass
        except RayError:
            logger.debug("the coordinator is gone", exc_info=True)
            return
        time.sleep(POLL_SECONDS)


def results(tasks: Iterable[Any]) -> Iterator[Any]:
    """The results of Ray tasks, in order. A signal interrupts the wait, as it would not `ray.get`.

    Keeps no reference to a result. Raises what `explain` makes of an error.
    """
    waiting = deque(tasks)
    while waiting:
        try:
            result = waiting.popleft().future().result()
        except Exception as error:  # Ray raises what tasks raise, and all kinds of its own
            raise explain(error) from None
        yield result


def explain(error: BaseException) -> QwqBatchError:
    """An error of Ray's as one of ours, with its reason and the folder of the logs.

    A model that can't be loaded is a `ModelError`, and an input that is gone or has changed an
    `InputError`: the user has to mend these. Anything else is an `EngineError`.
    """
    nodes = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    session = nodes[0]["ObjectStoreSocketName"].split("/sockets/")[0] if nodes else "Ray's session"
    logs = f"the workers' logs are in {session}/logs"
    chain = list(_chain(error))
    ours = [each for each in chain if isinstance(each, QwqBatchError)]
    if ours and isinstance(ours[-1], ModelError | InputError):
        return type(ours[-1])(f"{ours[-1].message}\n{logs}")
    texts = [str(each).strip() for each in chain if str(each).strip()]
    reason = ours[-1].message if ours else texts[-1] if texts else type(error).__name__
    remedy = "finished rows are kept"
    if not ours or not isinstance(ours[-1], TaskKilledError):  # which says what has to change
        remedy += "; the same command continues"
    return EngineError(f"the run ended early: {reason}\n{remedy}; {logs}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and its causes, those that Ray wraps included."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        first = queue.pop(0)
        if first is None or id(first) in seen or isinstance(first, SystemException):
            continue
        seen.add(id(first))
        yield first
        queue += [getattr(first, "cause", None), first.__cause__, first.__context__]
