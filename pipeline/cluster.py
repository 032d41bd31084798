"""Ray: the cluster a run uses, Ray Data's settings for long traces, and an orderly end."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import DataContext

from pipeline.config import EngineConfig, RunConfig
from pipeline.errors import EngineError, QwqBatchError

CLOSE_SECONDS = 30
# The slowest trace that must not be taken for a stand-still, and the time to load a model.
SLOWEST_TOKENS_PER_SECOND = 5
LOAD_SECONDS = 3600


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start a local one for this run; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    # What workers print stays in Ray's session folder; the driver's terminal is for the run.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    environment = {
        "env_vars": {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}
    }
    if address is None:
        address = "local"
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet |= {
            "num_cpus": config.ray.num_cpus or local_cpus(config.engine),
            "include_dashboard": False,
        }
    with _quiet_start():
        ray.init(address, runtime_env=environment, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


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


def local_cpus(engine: EngineConfig) -> int:
    """Logical CPUs of a local cluster: one for each CPU rank, one each to read, cut and write."""
    ranks = engine.replicas * engine.tensor_parallel if engine.device == "cpu" else engine.replicas
    return max(ranks + 3, os.cpu_count() or 1)


def engine_resources(engine: EngineConfig) -> dict[str, Any]:
    """What an engine actor asks of Ray: its ranks' GPUs, or in CPU mode their CPUs."""
    on_gpu = engine.device == "gpu" and engine.kind == "vllm"
    return {"num_gpus": engine.tensor_parallel} if on_gpu else {"num_cpus": engine.tensor_parallel}


def configure_ray_data(config: RunConfig) -> None:
    """Quiet, patient with long traces, forgiving to an engine that fails to start once."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = 2
    context.execution_no_progress_timeout_s = (
        config.policy.max_tokens / SLOWEST_TOKENS_PER_SECOND + LOAD_SECONDS
    )


def wait_until_closed(board: Any) -> None:
    """Wait (half a minute at most) until all engines have shut down, so that none is cut off."""
    deadline = time.monotonic() + CLOSE_SECONDS
    while time.monotonic() < deadline and ray.get(board.snapshot.remote()).engines:
        time.sleep(0.1)


def explain(error: BaseException) -> QwqBatchError:
    """The error of ours at the root of what Ray raised, or one that says where to look."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop(0)
        if found is None or found in seen:
            continue
        if isinstance(found, QwqBatchError):
            return found
        seen.append(found)
        queue += [found.__cause__, found.__context__, getattr(found, "cause", None)]
    nodes = ray.nodes() if ray.is_initialized() else []  # type: ignore[no-untyped-call]
    session = nodes[0]["ObjectStoreSocketName"].split("/sockets/")[0] if nodes else "Ray's session"
    reason = str(seen[-1]).strip()
    return EngineError(f"the run ended early: {reason}\nthe workers' logs are in {session}/logs")
