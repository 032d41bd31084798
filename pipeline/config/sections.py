"""The sections of a run's configuration; no I/O, except that a schema may be in a file."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formats import answer_format, parsed_formats
from pipeline.answers.json_schema import form_of
from pipeline.config.endpoint import EndpointConfig
from pipeline.config.locations import Location
from pipeline.config.section import Section
from pipeline.config.simulated import SimulatedConfig
from pipeline.prompts.template import columns_of
from pipeline.reasoning.sampling import PresetName
from pipeline.registry import did_you_mean
from pipeline.schema import OUR_COLUMNS, TRACE_COLUMNS


class OutputConfig(Section):
    """The traces: where they go, and in what shape."""

    path: Location = Field(
        description="Folder for this run alone; local, `s3://`, `gs://` or `az://`."
    )
    rows_per_part: Annotated[int, Field(ge=1)] = Field(
        4096, description="Input rows of one output file."
    )
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(
        30, description="Seconds between two saves of running traces, for each engine."
    )
    raw_text: bool = Field(False, description="Keep the unsplit output text, in the column `raw`.")
    rename: dict[str, str] = Field(
        default_factory=dict,
        description="New names for output columns that clash with yours, as `state: trace_state`.",
    )

    @field_validator("path")
    @classmethod
    def _is_no_dataset(cls, path: str) -> str:
        if path.startswith("hf://"):
            raise ValueError(
                "hf:// can't be written to while a run goes on: the hub has no atomic create, "
                "which keeps two drivers apart; write to a disk or an object store, and qwq-batch "
                "push what is finished to the hub, as often as you like"
            )
        return path

    @field_validator("rename")
    @classmethod
    def _known_columns(cls, rename: dict[str, str]) -> dict[str, str]:
        for name in rename:
            if name not in OUR_COLUMNS:
                raise ValueError(did_you_mean(name, OUR_COLUMNS, "key"))
        taken = [rename.get(name, name) for name in TRACE_COLUMNS]
        twice = {name for name in taken if taken.count(name) > 1}
        if twice:
            raise ValueError(f"two columns would be named {', '.join(sorted(twice))}")
        return rename


Tag = Annotated[str, Field(min_length=1)]


class FormatConfig(Section):
    """The marks between thinking and answer; without any, the model does not think."""

    open: Tag | None = Field(
        None, description="Begins the thinking; the template or the model writes it."
    )
    close: Tag | None = Field(
        None,
        description="Ends the thinking, at its first occurrence. Also closes thinking that runs "
        "out of tokens.",
    )
    close_pattern: Tag | None = Field(
        None,
        description="Regular expression for models that end thinking in several ways; the last "
        "match divides. Then the pipeline alone writes `close`.",
    )
    answer_open: Tag | None = Field(
        None, description="Begins the answer; left out of the column `answer`."
    )
    answer_close: Tag | None = Field(
        None, description="Ends the answer; left out of the column `answer`."
    )

    @field_validator("close_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _closes(self) -> Self:
        if self.close is None:
            if self.model_dump(exclude_none=True):
                raise ValueError("close is missing; it ends the thinking")
        elif self.close_pattern is not None:
            if re.search(self.close_pattern, ""):
                raise ValueError("close_pattern matches empty text")
            if not re.search(self.close_pattern, self.close, re.MULTILINE):
                raise ValueError("close_pattern does not match close, which it must")
        return self


class ModelConfig(Section):
    """The weights, and the preset of their family."""

    path: Location = Field(
        description="Hugging Face name, folder or `s3://` URL; built in: `qwq-nano`, "
        "`qwq-nano-preview`."
    )
    preset: PresetName = Field(
        "qwq-32b", description="Sampling defaults, and how thinking and answer are split."
    )
    format: FormatConfig | None = Field(
        None, description="Replaces the preset's marks between thinking and answer."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a Hugging Face model.")
    lora: Location | None = Field(
        None, description="LoRA adapter: a folder or a Hugging Face name."
    )


class ExamplesConfig(Section):
    """Few-shot examples: rows of a file, which stand before every prompt as earlier turns."""

    path: Location = Field(
        description="Parquet or `.jsonl` file. A row's user turn is made as the prompts are, from "
        "the same columns."
    )
    answer_column: str = Field("answer", description="Column with the text that answers it.")


class PromptConfig(Section):
    """Text that makes the prompt, or is added to it."""

    template: str | None = Field(
        None,
        description="The user turn, with columns in braces: `Translate {text:document} into "
        "{language}.` With a tag, the text stands between `<document>` and `</document>`, or other "
        "tags if it contains these. Replaces `input.prompt_column`.",
    )
    system: str | None = Field(None, description="System turn of rows that have none.")
    suffix: str | None = Field(
        None,
        description="Text after the last user turn. `math` and `choice` stand for Qwen's own "
        "wordings, `json` and `sets` for one with the schema.",
    )
    examples: ExamplesConfig | None = Field(None, description="Few-shot examples.")

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None and not columns_of(template):
            raise ValueError("names no column, so all rows would have the same prompt")
        return template


class AnswerConfig(Section):
    """The format in which programs read the answers, and the column to compare them with."""

    format: str = Field(
        "text",
        description="`text` (programs do not read it), `boxed`, `choice`, `json`, `sets` (JSON "
        "whose arrays have no order), or a format of your own as `package.module:Class`.",
    )
    json_schema: dict[str, Any] | str | None = Field(
        None,
        description="Required by `json` and `sets`: a JSON Schema, a file that holds one, or a "
        "pydantic model as `package.module:Class`.",
    )
    reference_column: str | None = Field(
        None, description="Input column with the right answer. Not with format `text`."
    )
    ask_again: bool = Field(
        False,
        description="Asks once more, in a few tokens, for an answer that is not in the format. Not "
        "with formats `text`, `json` and `sets`.",
    )

    @field_validator("format")
    @classmethod
    def _is_known(cls, name: str) -> str:
        answer_format(name)
        return name

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        kind = answer_format(self.format)
        if self.reference_column is not None and not kind.is_parsed:
            raise ValueError(f"reference_column needs a format: {parsed_formats()}")
        if kind.needs_schema and self.json_schema is None:
            raise ValueError(
                f"format {self.format} needs json_schema: a JSON Schema, a file that holds one, or "
                "a pydantic model as package.module:Class"
            )
        if self.json_schema is not None and not kind.needs_schema:
            raise ValueError(f"json_schema needs format: json or sets, not {self.format}")
        form = self.load_format().form
        if form is not None:
            form.check()
        if self.ask_again and (not kind.is_parsed or self.schema_text is not None):
            raise ValueError(f"ask_again needs a format that reads free text, not {self.format}")
        return self

    def load_format(self) -> AnswerFormat:
        """The format, with its schema; raises `ValueError` if this process can't load either."""
        form = None if self.json_schema is None else form_of(self.json_schema)
        return answer_format(self.format, form)

    @property
    def schema_text(self) -> str | None:
        """The JSON Schema that answers are generated by, as compact text; None: they are free."""
        return self.load_format().schema


def _read_replicas(value: Any, read: ValidatorFunctionWrapHandler) -> Any:
    """A number of engines or a range, with one reason if it is neither."""
    numbers = value if isinstance(value, list | tuple) else [value]
    try:
        replicas = read(value)
    except ValidationError as error:
        if numbers is not value:
            raise ValueError(error.errors()[0]["msg"]) from None
        replicas = None
    if replicas is None or bool in map(type, numbers):
        raise ValueError(
            "must be a whole number from 1, or the least and the most such numbers, as in [1, 8]"
        )
    if numbers[0] > numbers[-1]:
        raise ValueError("the first number is the least, the second the most, as in [1, 8]")
    return replicas


Count = Annotated[int, Field(ge=1)]
Replicas = Annotated[Count | tuple[Count, Count], WrapValidator(_read_replicas)]


class EngineConfig(Section):
    """The engines: their kind, how many, how large, on what, and each kind's own settings."""

    kind: str = Field(
        "vllm",
        description="`vllm`; `endpoint`, servers of vLLM that run already; `simulated`, an engine "
        "without a model for scheduling and fault tests; or an engine of your own, as "
        "`package.module:OBJECT`.",
    )
    device: Literal["gpu", "cpu"] = Field("gpu", description="What the engines run on.")
    replicas: Replicas = Field(
        1,
        description="Number of engines. `[1, 8]`: from 1 to 8, as GPUs join and leave the cluster.",
    )
    tensor_parallel: Annotated[int, Field(ge=1)] = Field(
        1, description="GPUs (or CPU processes) that share each layer of one engine."
    )
    pipeline_parallel: Annotated[int, Field(ge=1)] = Field(
        1,
        description="Pipeline stages of one engine, each with `tensor_parallel` GPUs; on several "
        "nodes if none has enough GPUs.",
    )
    context: Literal["native", "auto"] = Field(
        "native",
        description="`auto`: rows too long for the model's own context run on engines with YaRN.",
    )
    block_rows: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Rows that become durable together. Default: as many as `sampling.max_tokens` "
        "lets make 60,000 tokens (1 with 32,768), 256 at most.",
    )
    rows_in_flight: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Rows at one engine at a time. Default: as many as keep its slots full (80 for "
        "64 slots, with blocks of one row).",
    )
    vllm: dict[str, Any] = Field(
        default_factory=dict,
        description="Any of vLLM's engine arguments, by its own names: `quantization`, "
        "`speculative_config`, `load_format`, `max_model_len` … Names are checked before anything "
        "starts.",
    )
    endpoint: EndpointConfig = EndpointConfig()
    simulated: SimulatedConfig = SimulatedConfig()
    options: dict[str, Any] = Field(
        default_factory=dict, description="Settings of an engine of your own, which checks them."
    )

    @property
    def ranks(self) -> int:
        """GPUs (or CPU processes) of one engine."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def is_elastic(self) -> bool:
        """Whether the number of engines follows the GPUs that are there."""
        return not isinstance(self.replicas, int)

    @property
    def replicas_text(self) -> str:
        """The number of engines, such as ``2`` or ``1 to 8``."""
        least = f"{self.min_replicas:,} to " if self.is_elastic else ""
        return f"{least}{self.max_replicas:,}"

    @property
    def min_replicas(self) -> int:
        """The least number of engines; without a range, their number."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas[0]

    @property
    def max_replicas(self) -> int:
        """The largest number of engines; without a range, their number."""
        return self.replicas if isinstance(self.replicas, int) else self.replicas[1]


class LimitsConfig(Section):
    """Early-stop limits: time, tokens, cost. The next run continues."""

    minutes: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Minutes until the run has ended. The engines save their traces a minute "
        "earlier, or at half of the time if that is later.",
    )
    output_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Tokens generated in this run, including those of traces that were restarted.",
    )
    cost: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Cost of all engines from start to end, in the currency of `prices.gpu_hour`. "
        "If `engine.replicas` is a range: of the engines that are there, as long as they are.",
    )


Price = Annotated[float, Field(ge=0)]


class PricesConfig(Section):
    """Prices in a currency of your choice, for limits, estimates and reports."""

    gpu_hour: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="One GPU for an hour; with `engine.device: cpu`, one CPU process.",
    )
    million_input_tokens: Price | None = Field(
        None,
        description="A million prompt tokens at an API; `estimate` then shows its price too.",
    )
    million_output_tokens: Price | None = Field(
        None, description="A million output tokens at the same API."
    )

    @model_validator(mode="after")
    def _both_of_the_api(self) -> Self:
        if (self.million_input_tokens is None) != (self.million_output_tokens is None):
            raise ValueError("million_input_tokens and million_output_tokens go together")
        return self


class RayConfig(Section):
    """The Ray cluster: an address, or a local one for this run."""

    address: str | None = Field(
        None,
        description="Address of a cluster. Default: `RAY_ADDRESS` if set, else a local cluster.",
    )
    num_cpus: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Logical CPUs of a local cluster. Default: as many as the run needs."
    )
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None, description="Port of a local cluster's Prometheus metrics. Default: any free port."
    )
