"""Engines: what an actor asks of one, and the kinds there are. A new kind adds its file and a line.

Only `pipeline.engines.vllm` imports vLLM, and only when a vLLM engine is built.
"""

import os
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines.protocol import Engine, EngineLoad, EngineType, OnTokens, Request
from pipeline.errors import ConfigError, ModelError
from pipeline.registry import Registry

__all__ = [
    "ENGINES",
    "Engine",
    "EngineLoad",
    "EngineType",
    "OnTokens",
    "Request",
    "build_engine",
    "engine_slots",
    "engine_type",
]
ENGINES = Registry[EngineType](
    "engine.kind",
    {
        "vllm": "pipeline.engines.vllm:VLLM",
        "endpoint": "pipeline.engines.endpoint:ENDPOINT",
        "simulated": "pipeline.engines.simulated:SIMULATED",
    },
)


def engine_type(engine: EngineConfig) -> EngineType:
    """The kind that ``engine.kind`` names; raises `ConfigError` if there is none."""
    try:
        kind = ENGINES[engine.kind]
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(kind, EngineType):
        raise ConfigError(
            f"engine.kind {engine.kind} is a {type(kind).__name__}; it must be an object of a "
            "class derived from pipeline.engines.EngineType"
        )
    return kind


def build_engine(config: RunConfig, tokenizer: Any) -> Engine:
    """Start the engine that the config names; raises `ModelError` if it can't start."""
    try:
        kind = engine_type(config.engine)
    except ConfigError as error:  # this node lacks a module that the driver has
        raise ModelError(error.message) from None
    for name, value in kind.environment.items():
        os.environ.setdefault(name, value)
    return kind.build(config, tokenizer)


def engine_slots(config: RunConfig) -> int:
    """How many sequences one engine runs at once."""
    return engine_type(config.engine).slots(config.engine)
