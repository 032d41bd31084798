"""The configuration of a whole run; no I/O."""

from collections.abc import Iterator
from typing import Self

from pydantic import model_validator

from pipeline.config.sections import (
    AnswerConfig,
    EngineConfig,
    InputConfig,
    LimitsConfig,
    ModelConfig,
    OutputConfig,
    PricesConfig,
    PromptConfig,
    RayConfig,
    SamplingConfig,
    Section,
    ThinkingConfig,
)
from pipeline.reasoning.sampling import PRESETS, SamplingPolicy, warnings
from pipeline.reasoning.think_format import ThinkFormat

SUFFIXES = {
    "math": r"Please reason step by step, and put your final answer within \boxed{}.",
    "choice": (
        "Please show your choice in the `answer` field with only the choice letter, "
        'e.g.,`"answer": "C"`.'
    ),
    "json": "Please give your answer as JSON that matches this schema: {schema}",
}


# What the answers of each format are to be asked for with.
FORMS = {"boxed": "math", "choice": "choice", "json": "json"}


class RunConfig(Section):
    """A whole run; jobs add sections of their own."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    thinking: ThinkingConfig = ThinkingConfig()
    answer: AnswerConfig = AnswerConfig()
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    prices: PricesConfig = PricesConfig()
    ray: RayConfig = RayConfig()

    @property
    def policy(self) -> SamplingPolicy:
        """The preset's sampling policy with this run's overrides."""
        preset = PRESETS[self.model.preset].sampling
        overrides = self.sampling.model_dump(exclude_none=True)
        return SamplingPolicy(**{**preset.__dict__, **overrides})

    @property
    def think_format(self) -> ThinkFormat:
        """How the model's output comes apart: as the run says, or the preset."""
        if self.model.format is None:
            return PRESETS[self.model.preset].think_format
        return ThinkFormat(**self.model.format.model_dump())

    @property
    def suffix_text(self) -> str | None:
        """What is added to the user's turn: a named suffix spelled out."""
        suffix = self.prompt.suffix
        if suffix is None or suffix not in SUFFIXES:
            return suffix
        return SUFFIXES[suffix].replace("{schema}", self.answer.schema_text or "")

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> Self:
        named = self.input
        columns = (named.prompt_column, named.messages_column, named.tools_column)
        if self.prompt.template is not None and any(columns):
            raise ValueError("prompt.template makes the prompt; no input column can be set besides")
        if self.prompt.suffix == "json" and self.answer.format != "json":
            raise ValueError("prompt.suffix json needs answer.format json and its schema")
        if self.limits.cost is not None and self.prices.gpu_hour is None:
            raise ValueError("limits.cost needs prices.gpu_hour")
        agree = self.sampling.agree
        if agree is not None and self.answer.format == "text":
            raise ValueError("sampling.agree needs an answer.format: boxed, choice or json")
        if agree is not None and agree > self.policy.n:
            raise ValueError(f"sampling.agree is {agree}, more than sampling.n, {self.policy.n}")
        return self

    @property
    def warnings(self) -> Iterator[str]:
        """What is allowed but probably not meant, each naming its setting."""
        yield from warnings(self.policy, self.model.preset)
        form = FORMS.get(self.answer.format)
        if form is not None and self.prompt.suffix is None:
            yield (
                f"answer.format is {self.answer.format}, and no prompt.suffix asks for it; unless "
                f"your prompts do, set prompt.suffix={form}"
            )
