"""Ray: the cluster a run uses, Ray Data's settings for long traces, and an orderly end."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.data import DataContext

from pipeline.config import EngineConfig, RunConfig

CLOSE_SECONDS = 30
# The slowest trace that must not be taken for a stand-still, and the time to load a model.
SLOWEST_TOKENS_PER_SECOND = 5
LOAD_SECONDS = 3600
ENGINE_RESTARTS = 4


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured cluster, or start a local one for this run; leave it at the end."""
    if ray.is_initialized():
        yield
        return
    address = config.ray.address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    environment = {"env_vars": {"VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING")}}
    if address:
        ray.init(address, runtime_env=environment, **quiet)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = config.ray.num_cpus or local_cpus(config.engine)
        ray.init("local", num_cpus=cpus, include_dashboard=False, runtime_env=environment, **quiet)
    try:
        yield
    finally:
        ray.shutdown()


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
