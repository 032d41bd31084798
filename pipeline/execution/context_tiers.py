"""Context tiers: engines with the model's own context, and with YaRN for long rows; no I/O.

Static YaRN stretches the positions of short prompts too, which can hurt their quality. So each row
runs in the first tier with room for its prompt and ``sampling.max_tokens`` of output. Its length
alone decides, so a resumed run sends it to the same tier.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import engine_type
from pipeline.errors import ConfigError, ModelError
from pipeline.planning import Range

FACTORS = (2.0, 4.0)
# YaRN stretches the length that QwQ, like all of Qwen2.5, was trained with. Its config.json has
# 40,960: this length and a prompt of 8,192.
ORIGINAL_TOKENS = 32_768
NO_ENGINE, NO_ENGINE_KIND = "no engine", "pipeline.engines.none:NO_ENGINE"
# The prompt tokens of a row that can't be rendered: more than any engine holds.
UNRENDERED = 2**40


@dataclass(frozen=True)
class ContextTier:
    """Engines that hold ``context`` tokens; ``engine``: their settings, None: as configured."""

    name: str = ""
    context: int = 0
    engine: EngineConfig | None = None

    def applied(self, config: RunConfig) -> RunConfig:
        """``config`` with this tier's engines."""
        return config.model_copy(update={"engine": self.engine or config.engine})


AS_CONFIGURED = ContextTier()


def make_context_tiers(config: RunConfig, model: Mapping[str, Any]) -> tuple[ContextTier, ...]:
    """The tiers of ``engine.context: auto``, shortest first; ``model``: its config.json.

    The last tier has no engine. It takes rows that fit nowhere, and rows without a prompt. Raises
    `ConfigError` if the settings or the model leave no room for tiers, `ModelError` if config.json
    lacks the positions.
    """
    kind, engine = engine_type(config.engine), config.engine
    native, rope = _positions(config.model.path, model)
    if config.sampling.max_tokens >= native:
        raise ConfigError(
            f"sampling.max_tokens is {config.sampling.max_tokens}, which leaves no room for a "
            f"prompt in the model's own context of {native} tokens, which engine.context=auto "
            "needs; lower it"
        )
    tiers = [ContextTier(f"{native:,} tokens", native, kind.with_context(engine, native, None))]
    for factor in FACTORS:
        context = int(rope["original_max_position_embeddings"] * factor)
        if context > native:
            stretched = {**rope, "rope_type": "yarn", "factor": factor}
            settings = kind.with_context(engine, context, stretched)
            tiers.append(ContextTier(f"{context:,} tokens, YaRN {factor:g}", context, settings))
    none = {
        "kind": NO_ENGINE_KIND, "device": "cpu", "replicas": 1, "tensor_parallel": 1,
        "pipeline_parallel": 1, "options": {"context_tokens": tiers[-1].context},
    }  # fmt: skip
    return (*tiers, ContextTier(NO_ENGINE, 0, engine.model_copy(update=none)))


def assign(tiers: tuple[ContextTier, ...], prompt_tokens: Any, max_tokens: Any) -> Any:
    """The tier numbers of rows; ``prompt_tokens``: an integer array, as the result.

    ``max_tokens``: of each row's output, an array of the same shape, or one number for all.

    The first tier with room for the whole output; the longest, if it has room for any output; else
    the last.
    """
    contexts = [tier.context for tier in tiers[:-1]]
    first = np.searchsorted(contexts, prompt_tokens + max_tokens)
    return np.where(
        prompt_tokens < contexts[-1], np.minimum(first, len(contexts) - 1), len(contexts)
    )


def divide(pieces: Iterable[Range], marks: Any) -> Iterator[tuple[int, Range]]:
    """``pieces``, cut where the mark changes, each with its mark; ``marks``: one for each row."""
    at = 0
    for piece in pieces:
        yield from piece.split(marks[at : at + piece.rows].tolist())
        at += piece.rows


def _positions(path: str, model: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """A model's own context, and its rope section with what YaRN needs."""
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
