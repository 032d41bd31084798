"""A toy engine, as someone else would write one: it is registered by its import path alone.

engine: {kind: "tests.toy_engine:TOY", options: {answer: "42"}}
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from pipeline.config.run_config import RunConfig
from pipeline.config.section import Section
from pipeline.config.sections import EngineConfig
from pipeline.engines import EngineLoad, EngineType, OnTokens, Request
from pipeline.engines.protocol import parse_options


class ToyOptions(Section):
    """What ``engine.options`` may hold."""

    answer: str
    slots: Annotated[int, Field(ge=1)] = 3
    context: int = 40_960
    factor: float | None = None


class ToyEngine:
    """Thinks "Easy." about every prompt and gives the answer that its options have."""

    def __init__(self, options: ToyOptions, text: str, tokenizer: Any) -> None:
        self.context_tokens, self.load = options.context, EngineLoad()
        self._token_ids = tokenizer.encode(text, add_special_tokens=False)

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        new = self._token_ids[len(request.carried_token_ids) : request.policy.max_tokens]
        return "repetition" if on_tokens(new) else "stop"

    def close(self) -> None:
        """Nothing to free."""


class Toy(EngineType):
    """All that the pipeline asks of this kind of engine."""

    packages = ("pytest",)

    def build(self, config: RunConfig, tokenizer: Any) -> ToyEngine:
        options = parse_options(ToyOptions, config.engine)
        text = f"Easy.\n{config.think_format.close}\n\n\\boxed{{{options.answer}}}"
        return ToyEngine(options, text, tokenizer)

    def check(self, engine: EngineConfig) -> None:
        parse_options(ToyOptions, engine)

    def slots(self, engine: EngineConfig) -> int:
        return parse_options(ToyOptions, engine).slots

    def result_settings(self, engine: EngineConfig) -> dict[str, Any]:
        return {"engine.options.answer": parse_options(ToyOptions, engine).answer}

    def with_context(
        self, engine: EngineConfig, tokens: int, rope: Mapping[str, Any] | None
    ) -> EngineConfig:
        longer = {"context": tokens, "factor": None if rope is None else rope["factor"]}
        return engine.model_copy(update={"options": {**engine.options, **longer}})

    def yarn_factor(self, engine: EngineConfig) -> float | None:
        return parse_options(ToyOptions, engine).factor

    def warnings(self, engine: EngineConfig) -> Iterator[str]:
        yield "engine.kind: a toy answers every prompt alike"


TOY = Toy()
NOT_AN_ENGINE = "a text"
