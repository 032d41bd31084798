"""No engine: for rows that no engine of the run can hold. `pipeline.execution` chooses it."""

from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.section import Section
from pipeline.config.sections import EngineConfig
from pipeline.engines.protocol import EngineLoad, EngineType, OnTokens, Request, parse_options
from pipeline.errors import RequestRejectedError


class NoEngineOptions(Section):
    """``context_tokens``: the longest context among the run's real engines."""

    context_tokens: int


class NoEngine:
    """Refuses every request. Prompts are measured against the longest real context."""

    def __init__(self, context_tokens: int) -> None:
        self.context_tokens, self.load = context_tokens, EngineLoad()

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        """Refuse: only a prompt that could not be rendered before, and now can, comes here."""
        raise RequestRejectedError("no engine was started for this row; retry it")

    def close(self) -> None:
        """Nothing to free."""


class NoEngineType(EngineType):
    """Starts nothing."""

    def build(self, config: RunConfig, tokenizer: Any) -> NoEngine:
        """An engine that refuses every request."""
        return NoEngine(parse_options(NoEngineOptions, config.engine).context_tokens)

    def check(self, engine: EngineConfig) -> None:
        """Raise `ConfigError` without ``context_tokens``."""
        parse_options(NoEngineOptions, engine)


NO_ENGINE = NoEngineType()
