"""Lanes: engines with the model's own context for most rows, with YaRN for the long ones; no I/O.

vLLM's YaRN is static: once on, it stretches the positions of short prompts too, which can hurt
them. So each row goes to the first tier that has room for its prompt and ``sampling.max_tokens`` of
output, by its length alone: a resumed run sends it to the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, ModelError
from pipeline.planning import Range

FACTORS = (2.0, 4.0)
# What YaRN stretches: the length that QwQ, as all of Qwen2.5, was trained for. Its config.json has
# 40,960, which is this and 8,192 of prompt.
ORIGINAL_TOKENS = 32_768
OURS = ("max_model_len", "max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta")
NO_ENGINE = "no engine"
# The prompt tokens of a row that can't be rendered: too many for any engine.
UNRENDERED = 2**40


@dataclass(frozen=True)
class ContextTier:
    """Engines that hold ``context`` tokens; ``settings``: what is theirs of `EngineConfig`."""

    name: str = ""
    context: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def applied(self, config: RunConfig) -> RunConfig:
        """``config`` with this tier's engines."""
        engine = config.engine.model_copy(update=dict(self.settings))
        return config.model_copy(update={"engine": engine})


AS_CONFIGURED = ContextTier()


def make_context_tiers(config: RunConfig, model: Mapping[str, Any]) -> tuple[ContextTier, ...]:
    """The tiers of ``engine.context: auto``, shortest first; ``model``: its config.json.

    The last one has no engine: it is for rows that fit nowhere, and for those without a prompt.
    """
    args = {key: value for key, value in config.engine.vllm.items() if value is not None}
    overrides = args.get("hf_overrides") or {}
    if not isinstance(overrides, dict):
        raise ConfigError("engine.vllm.hf_overrides must be a mapping")
    if taken := [key for key in OURS if key in {**args, **overrides}]:
        raise ConfigError(
            f"engine.vllm has {', '.join(taken)}, which engine.context=auto sets; remove it "
            f"(--set engine.vllm.{taken[0]}=null), or set engine.context=native"
        )
    native, rope = _positions(config.model.path, model)
    if config.policy.max_tokens >= native:
        raise ConfigError(
            f"sampling.max_tokens is {config.policy.max_tokens}, which leaves no room for a prompt "
            f"in the model's own context of {native} tokens, which engine.context=auto needs; "
            "lower it"
        )
    tiers = [ContextTier(f"{native:,} tokens", native, {"vllm": {**args, "max_model_len": native}})]
    for factor in FACTORS:
        context = int(rope["original_max_position_embeddings"] * factor)
        if context > native:
            stretched = {
                "rope_parameters": {**rope, "rope_type": "yarn", "factor": factor},
                "max_position_embeddings": context,
            }
            vllm = {
                **args, "max_model_len": context, "hf_overrides": {**overrides, **stretched}
            }  # fmt: skip
            tiers.append(
                ContextTier(f"{context:,} tokens, YaRN {factor:g}", context, {"vllm": vllm})
            )
    none = {
        "kind": "none", "device": "cpu", "replicas": 1, "tensor_parallel": 1, "pipeline_parallel": 1
    }  # fmt: skip
    return (*tiers, ContextTier(NO_ENGINE, 0, {**tiers[-1].settings, **none}))


def assign(tiers: tuple[ContextTier, ...], prompt_tokens: Any, max_tokens: int) -> Any:
    """For each row, an array of whose prompt's tokens is given, the number of its tier.

    The first with room for the whole output; the longest, if that has room for any; else the last.
    """
    contexts = [tier.context for tier in tiers[:-1]]
    first = np.searchsorted(contexts, prompt_tokens + max_tokens)
    return np.where(
        prompt_tokens < contexts[-1], np.minimum(first, len(contexts) - 1), len(contexts)
    )


def divide(pieces: Iterable[Range], marks: Any) -> Iterator[tuple[int, Range]]:
    """``pieces``, cut where the mark changes, with it; ``marks``: an array, one for each row."""
    at = 0
    for piece in pieces:
        yield from piece.split(marks[at : at + piece.rows].tolist())
        at += piece.rows


def yarn_factor(engine_args: Mapping[str, Any]) -> float | None:
    """YaRN's factor in vLLM's engine arguments, a tier's or the user's own; None without."""
    overrides = engine_args.get("hf_overrides")
    rope = overrides.get("rope_parameters") if isinstance(overrides, dict) else None
    if not isinstance(rope, dict) or rope.get("rope_type") != "yarn":
        return None
    return float(rope["factor"])


def _positions(path: str, model: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """A model's own context, and what its rope section has to say for YaRN."""
    section = model.get("rope_parameters") or model.get("rope_scaling") or {}
    kind = section.get("rope_type", section.get("type", "default"))
    if kind != "default":
        raise ConfigError(
            f"the config.json of model.path {path} has rope type {kind} already; "
            "engine.context=auto needs the model as published, or set engine.context=native"
        )
    native, theta = model.get("max_position_embeddings"), section.get("rope_theta")
    theta = model.get("rope_theta") if theta is None else theta
    if native is None or theta is None:
        raise ModelError(
            f"the config.json of model.path {path} lacks max_position_embeddings or rope_theta, "
            "which engine.context=auto needs"
        )
    section = {key: value for key, value in section.items() if key != "type"}  # its old name
    original = {"original_max_position_embeddings": min(native, ORIGINAL_TOKENS)}
    return native, {**original, **section, "rope_theta": theta}
