"""How many slots engines get, where the settings do not say: as many as their KV cache holds."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.engines.roofline import slots_for
from pipeline.execution.nodes import look_at_gpu_nodes
from pipeline.execution.prepare import PreparedRun
from pipeline.execution.prompt_lengths import count_tokens
from pipeline.monitor.figures import Figures, bin_floor
from pipeline.monitor.history import all_figures
from pipeline.planning import Range, bundles
from pipeline.prompts.tokenizer import load_model_config

logger = logging.getLogger(__name__)
# Without earlier traces: half of the policy's tokens, but no more than QwQ-32B's traces have on
# average while they run, where half of them are below 5,000 tokens.
USUAL_CONTEXT = 6000
# So many traces say more than that.
ENOUGH_TRACES = 30
ROWS_A_SAMPLE = 16


def expected_context(
    config: RunConfig, runs: Iterable[Sequence[Figures]], prompt_tokens: float = 0.0, tier: str = ""
) -> float:
    """The tokens that a running trace has in the KV cache, averaged over time.

    From the lengths of earlier, finished ``runs`` of this ``tier`` (a pilot is one), if they had
    enough traces; else from the policy. ``prompt_tokens``: of a prompt, on average.
    """
    last = [run[-1] for run in runs if run and run[-1].tier == tier]
    done = [figures for figures in last if figures.rows >= figures.rows_to_do]
    bins = sum((Counter(figures.think_lengths) for figures in done), Counter[int]())
    if bins.total() < ENOUGH_TRACES:
        return prompt_tokens + min(USUAL_CONTEXT, config.sampling.max_tokens / 2)
    traces = bins.total()
    tokens = sum((Counter(figures.tokens) for figures in done), Counter[str]())
    thinking = {(bin_floor(n) + bin_floor(n + 1)) / 2: count for n, count in bins.items()}
    mean = sum(length * count for length, count in thinking.items()) / traces
    answer = max(1.0, tokens["output"] / traces - mean)
    lengths = {length + answer: count for length, count in thinking.items()}
    spent = sum(length * count for length, count in lengths.items())
    held = sum(
        length * (tokens["prompt"] / traces + length / 2) * count
        for length, count in lengths.items()
    )
    return held / spent


def with_slots(
    config: RunConfig, prepared: PreparedRun, tier: str, todo: Sequence[Range]
) -> RunConfig:
    """``config`` with slots that follow from the smallest GPU of the connected cluster.

    Unchanged if they are set, if an engine runs on CPUs, if its memory is not known well enough, or
    if no node with a GPU is there yet. ``todo``: in this ``tier``.
    """
    kind, engine = engine_type(config.engine), config.engine
    if engine.device != "gpu" or kind.has_slots(engine):
        return config
    need = kind.memory(engine, load_model_config(config.model.path, config.model.revision))
    gpus = [gpu.memory for node in look_at_gpu_nodes(()) for gpu in node.gpus] if need else []
    if need is None or not need.is_exact or not gpus:
        logger.info("slots are left at their default: the memory for them is not known")
        return config
    kv_tokens = need.kv_cache(min(gpus), engine.ranks) / need.token
    if kv_tokens < need.context:
        return config  # the engine will say so
    runs = all_figures(prepared.ledger.store)
    sized = prepared.sized(config)
    context = expected_context(sized, runs, _prompt_tokens(config, prepared, todo), tier)
    slots = slots_for(kv_tokens, context)
    logger.info("%d slots for an engine, for contexts of %.0f tokens on average", slots, context)
    return config.model_copy(update={"engine": kind.with_slots(engine, slots)})


def _prompt_tokens(config: RunConfig, prepared: PreparedRun, todo: Sequence[Range]) -> float:
    """The tokens of a prompt, as the mean of some rows at the begin, in the middle, at the end."""
    places = {0, len(todo) // 2, len(todo) - 1}
    some = [next(iter(bundles([todo[place]], ROWS_A_SAMPLE)))[0] for place in sorted(places)]
    tokens, _ = count_tokens(config, prepared.columns, prepared.prompts, some)
    known = tokens[tokens >= 0]
    return float(known.mean()) if len(known) else 0.0
