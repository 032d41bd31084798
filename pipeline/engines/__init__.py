"""Engines: what an actor asks of one, the real one (vLLM) and a simulated one.

Only `pipeline.engines.vllm` imports vLLM, and only when a vLLM engine is built.
"""

from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.engines.protocol import Engine, EngineLoad, Report, Request

__all__ = ["Engine", "EngineLoad", "Report", "Request", "build_engine", "engine_slots"]
DEFAULT_SLOTS = 64


def build_engine(config: RunConfig, tokenizer: Any) -> Engine:
    """The engine that the config names."""
    slots = engine_slots(config)
    if config.engine.kind == "simulated":
        from pipeline.engines.simulated import CONTEXT_TOKENS, SimulatedEngine

        context = config.engine.vllm.get("max_model_len", CONTEXT_TOKENS)
        return SimulatedEngine(
            config.engine.simulated, config.think_format, slots, tokenizer, context
        )
    if config.engine.kind == "none":
        from pipeline.engines.none import NoEngine

        return NoEngine(config.engine.vllm["max_model_len"])
    from pipeline.engines.vllm import VllmEngine

    return VllmEngine(config, slots)


def engine_slots(config: RunConfig) -> int:
    """How many sequences one engine runs at once (``engine.vllm.max_num_seqs``)."""
    return int(config.engine.vllm.get("max_num_seqs", DEFAULT_SLOTS))
