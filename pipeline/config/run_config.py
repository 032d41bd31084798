"""The configuration of a whole run; no I/O."""

from collections.abc import Iterator, Mapping
from typing import Self

import pyarrow as pa
from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formats import format_asked_for, mistaken_suffix, parsed_formats
from pipeline.config.input import InputConfig
from pipeline.config.notify import NotifyConfig
from pipeline.config.section import Section
from pipeline.config.sections import (
    AnswerConfig,
    EngineConfig,
    LimitsConfig,
    ModelConfig,
    OutputConfig,
    PricesConfig,
    PromptConfig,
    RayConfig,
)
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.template import with_columns_renamed
from pipeline.reasoning.policy import ThinkingPolicy
from pipeline.reasoning.sampling import PRESETS, SamplingPolicy, warnings
from pipeline.reasoning.think_format import ThinkFormat
from pipeline.schema import ASKED_FIELDS, EARLY_FIELDS, SAMPLED_FIELDS, trace_fields


class RunConfig(Section):
    """A whole run; jobs add sections of their own."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingPolicy = Field(SamplingPolicy(), validate_default=True)
    thinking: ThinkingPolicy = ThinkingPolicy()
    answer: AnswerConfig = AnswerConfig()
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    prices: PricesConfig = PricesConfig()
    notify: NotifyConfig = NotifyConfig()
    ray: RayConfig = RayConfig()

    @field_validator("sampling")
    @classmethod
    def _with_preset_values(cls, sampling: SamplingPolicy, info: ValidationInfo) -> SamplingPolicy:
        """The preset's value for every parameter that the config does not set.

        ``model_fields_set`` stays what the config sets: jobs may decide the rest.
        """
        model = info.data.get("model")
        if model is None:  # it has an error of its own
            return sampling
        given = sampling.model_dump(exclude_unset=True)
        values = {**dict(PRESETS[model.preset].sampling), **given}
        return SamplingPolicy.model_construct(_fields_set=set(given), **values)

    @property
    def think_format(self) -> ThinkFormat:
        """What divides thinking from answer: ``model.format``, else the preset's format."""
        if self.model.format is None:
            return PRESETS[self.model.preset].think_format
        return ThinkFormat(**self.model.format.model_dump())

    def with_columns_renamed(self, names: Mapping[str, str]) -> Self:
        """The same with other input columns; ``names``: new by old, for those that change.

        Except in the settings that say what to take of the files.
        """
        if not names:
            return self
        keys = (
            "prompt_column", "context_column", "messages_column", "tools_column", "length_column",
            "sampling_column",
        )  # fmt: skip
        columns = {key: names.get(old, old) for key in keys if (old := getattr(self.input, key))}
        template, reference = self.prompt.template, self.answer.reference_column
        if template is not None:
            template = with_columns_renamed(template, names)
        if reference is not None:
            reference = names.get(reference, reference)
        changes = {
            "input": self.input.model_copy(update=columns),
            "prompt": self.prompt.model_copy(update={"template": template}),
            "answer": self.answer.model_copy(update={"reference_column": reference}),
        }
        return self.model_copy(update=changes)

    @property
    def prompt_columns(self) -> PromptColumns:
        """The columns of a prompt, as far as the configuration names them."""
        section = self.input
        return PromptColumns(
            section.prompt_column, section.messages_column, section.tools_column,
            self.prompt.template, section.context_column, section.final_answer,
        )  # fmt: skip

    @property
    def trace_fields(self) -> list[pa.Field]:
        """The columns that the run adds to those of its input, under the run's names."""
        return trace_fields(self.output.rename, self.output.raw_text, self.optional_fields)

    @property
    def optional_fields(self) -> list[pa.Field]:
        """Our columns, under our names, that only runs with certain settings have."""
        early = EARLY_FIELDS if self.thinking.early_answer is not None else ()
        asked = ASKED_FIELDS if self.answer.ask_again else ()
        return [*early, *asked, *(SAMPLED_FIELDS if self.input.sampling_column else ())]

    @property
    def suffix_text(self) -> str | None:
        """The text after the user's turn, a named suffix spelled out."""
        return self.suffix_for(self.answer.load_format())

    def suffix_for(self, answers: AnswerFormat) -> str | None:
        """As `suffix_text`, for a row with answers of another format."""
        asked_for = format_asked_for(self.prompt.suffix, answers)
        return self.prompt.suffix if asked_for is None else asked_for.suffix

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> Self:
        named = self.input
        columns = (
            named.prompt_column, named.context_column, named.messages_column, named.tools_column,
        )  # fmt: skip
        if self.prompt.template is not None and any(columns):
            raise ValueError("prompt.template makes the prompt; no input column can be set besides")
        suffix, answer_format = self.prompt.suffix, self.answer.load_format()
        asked_for = format_asked_for(suffix, answer_format)
        if asked_for is None and (meant := mistaken_suffix(suffix)):
            raise ValueError(
                f"prompt.suffix {suffix} is no name of a suffix; did you mean {meant}?"
            )
        if asked_for is not None and asked_for.needs_schema and asked_for.form is None:
            raise ValueError(f"prompt.suffix {suffix} needs answer.format {suffix} and its schema")
        if self.limits.cost is not None and self.prices.gpu_hour is None:
            raise ValueError("limits.cost needs prices.gpu_hour")
        agree = self.sampling.agree
        if agree is not None and not answer_format.is_parsed:
            raise ValueError(f"sampling.agree needs an answer.format: {parsed_formats()}")
        if self.thinking.early_answer is not None:
            self._check_early_answer(answer_format)
        taken = [field.name for field in self.trace_fields]
        if twice := sorted({name for name in taken if taken.count(name) > 1}):
            raise ValueError(f"output.rename: two columns would be named {', '.join(twice)}")
        if agree is not None and agree > self.sampling.n:
            raise ValueError(f"sampling.agree is {agree}, more than sampling.n, {self.sampling.n}")
        return self

    def _check_early_answer(self, answers: AnswerFormat) -> None:
        if not answers.is_parsed:
            raise ValueError(
                "thinking.early_answer needs an answer.format that can be compared: "
                f"{parsed_formats()}"
            )
        if self.think_format.close is None:
            raise ValueError("thinking.early_answer: the model does not think (model.format)")

    @property
    def warnings(self) -> Iterator[str]:
        """Settings that are allowed but probably a mistake, each by name."""
        yield from warnings(self.sampling, self.model.preset)
        early, most = self.thinking.early_answer, self.sampling.max_tokens
        most = min(most, self.thinking.budget_tokens or most)
        if early is not None and early.least_tokens >= most:
            yield (
                f"thinking.early_answer can close nothing: with agree {early.agree}, every_tokens "
                f"{early.every_tokens} and probe_share {early.probe_share:g} that takes more than "
                f"{early.least_tokens:,} tokens of thinking, and a trace has at most {most:,}"
            )
        suffix = self.answer.load_format().suffix_name
        if suffix is not None and self.prompt.suffix is None:
            yield (
                f"answer.format is {self.answer.format}, and no prompt.suffix asks for it; unless "
                f"your prompts do, set prompt.suffix={suffix}"
            )
