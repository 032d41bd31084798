"""How many slots engines get, where the settings do not say: as many as their KV cache holds."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.engines.roofline import slots_for
from pipeline.execution.nodes import look_at_gpu_nodes
from pipeline.monitor.figures import Figures, bin_floor
from pipeline.monitor.history import all_figures
from pipeline.prompts.tokenizer import load_model_config
from pipeline.storage import Storage

logger = logging.getLogger(__name__)
# Without earlier traces: half of the policy's tokens, but no more than QwQ-32B's traces have on
# average while they run, where half of them are below 5,000 tokens.
USUAL_CONTEXT = 6000
# So many traces say more than that.
ENOUGH_TRACES = 30


def expected_context(config: RunConfig, runs: Iterable[Sequence[Figures]]) -> float:
    """The tokens that a running trace has in the KV cache, averaged over time.

    From the lengths in the recorded figures of earlier ``runs`` (a pilot's too), if they have
    enough traces; else from the policy.
    """
    last = [run[-1] for run in runs if run]
    bins = sum((Counter(figures.think_lengths) for figures in last), Counter[int]())
    if bins.total() < ENOUGH_TRACES:
        return min(USUAL_CONTEXT, config.sampling.max_tokens / 2)
    prompt = sum(figures.tokens.get("prompt", 0) for figures in last) / bins.total()
    lengths = {(bin_floor(n) + bin_floor(n + 1)) / 2: count for n, count in bins.items()}
    spent = sum(length * count for length, count in lengths.items())
    held = sum(length * (prompt + length / 2) * count for length, count in lengths.items())
    return held / spent


def with_slots(config: RunConfig) -> RunConfig:
    """``config`` with slots that follow from the smallest GPU of the connected cluster.

    Unchanged if they are set, if an engine runs on CPUs, or if no node with a GPU is there yet.
    """
    kind, engine = engine_type(config.engine), config.engine
    if engine.device != "gpu" or kind.has_slots(engine):
        return config
    need = kind.memory(engine, load_model_config(config.model.path, config.model.revision))
    if need is None:
        return config
    gpus = [gpu.memory for node in look_at_gpu_nodes(()) for gpu in node.gpus]
    if not gpus:
        return config
    context = expected_context(config, all_figures(Storage(config.output.path)))
    slots = slots_for(need.kv_cache(min(gpus), engine.ranks) / need.token, context)
    logger.info("%d slots for an engine, for contexts of %.0f tokens on average", slots, context)
    return config.model_copy(update={"engine": kind.with_slots(engine, slots)})
