"""The sections of a run's configuration; no I/O, except that a schema may be in a file."""

import difflib
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formats import answer_format, parsed_formats
from pipeline.answers.json_schema import form_of
from pipeline.config.locations import Location
from pipeline.prompts.template import columns_of
from pipeline.reasoning.sampling import PresetName
from pipeline.schema import TRACE_COLUMNS


class Section(BaseModel):
    """What all have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InputConfig(Section):
    """Where the prompts are: Parquet files, and the columns that hold them.

    With neither column named, ``prompt`` (text) or ``messages`` (list of {role, content}) is
    taken, whichever the files have.
    """

    path: Location = Field(description="folder, file or glob; local, s3:// or any fsspec URL")
    prompt_column: str | None = None
    messages_column: str | None = None
    tools_column: str | None = None
    length_column: str | None = Field(
        None, description="numbers that say how long the traces will be, an earlier run's or a "
        "guess: at the end of the run the longest go first"
    )  # fmt: skip
    dedupe: bool = Field(
        False, description="generate one of the rows with the same prompt, copy its traces to all"
    )


class OutputConfig(Section):
    """Where the traces go, and in what shape."""

    path: Location = Field(description="folder; local, s3:// or any fsspec URL")
    rows_per_part: Annotated[int, Field(ge=1)] = 4096
    checkpoint_seconds: Annotated[float, Field(gt=0)] = Field(
        30, description="how often each engine saves the tokens of its running traces"
    )
    raw_text: bool = Field(False, description="also keep the output text as it came, in `raw`")
    rename: dict[str, str] = Field(default_factory=dict, description="our column: your name for it")

    @field_validator("rename")
    @classmethod
    def _known_columns(cls, rename: dict[str, str]) -> dict[str, str]:
        for name in rename:
            if name not in TRACE_COLUMNS:
                raise ValueError(unknown_key(name, TRACE_COLUMNS))
        taken = [rename.get(name, name) for name in TRACE_COLUMNS]
        twice = {name for name in taken if taken.count(name) > 1}
        if twice:
            raise ValueError(f"two columns would be called {', '.join(sorted(twice))}")
        return rename


Tag = Annotated[str, Field(min_length=1)]


class FormatConfig(Section):
    """How the model's thinking and answer lie in its output; all None: it does not think."""

    open: Tag | None = Field(None, description="begins the thinking, in the prompt or the output")
    close: Tag | None = Field(None, description="ends the thinking")
    close_pattern: Tag | None = Field(
        None, description="a regular expression where it ends in several ways; the last one divides"
    )
    answer_open: Tag | None = Field(None, description="begins the answer")
    answer_close: Tag | None = Field(None, description="ends the answer")

    @field_validator("close_pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _closes(self) -> Self:
        if self.close is None:
            if self.model_dump(exclude_none=True):
                raise ValueError("close, which ends the thinking, is missing")
        elif self.close_pattern is not None:
            if re.search(self.close_pattern, ""):
                raise ValueError("close_pattern matches where there is nothing")
            if not re.search(self.close_pattern, self.close, re.MULTILINE):
                raise ValueError("close_pattern does not match close")
        return self


class ModelConfig(Section):
    """Which weights, and which preset their family has."""

    path: Location = Field(
        description="Hugging Face name, folder, s3:// URL, or built in: qwq-nano, qwq-nano-preview"
    )
    preset: PresetName = "qwq-32b"
    format: FormatConfig | None = Field(None, description="in place of the preset's")
    revision: str | None = None
    lora: Location | None = Field(None, description="a LoRA adapter: folder or Hugging Face name")


class PromptConfig(Section):
    """What is added to every prompt, or makes it."""

    template: str | None = Field(
        None,
        description="the user turn, with columns of the row in braces: {text}, or {text:document} "
        "for the text between <document> tags; in place of input.prompt_column",
    )
    system: str | None = None
    suffix: str | None = Field(
        None,
        description="text after the (last) user turn; math and choice are Qwen's own, json names "
        "the schema",
    )

    @field_validator("template")
    @classmethod
    def _names_columns(cls, template: str | None) -> str | None:
        if template is not None and not columns_of(template):
            raise ValueError("names no column, so that all rows would have the same prompt")
        return template


class AnswerConfig(Section):
    """The format in which programs read the answers, and the column to compare them with."""

    format: str = Field(
        "text", description="text (not read by programs), boxed, choice, json, or a format of your "
        "own as package.module:CLASS"
    )  # fmt: skip
    json_schema: dict[str, Any] | str | None = Field(
        None,
        description="with format json: a JSON Schema, a file that holds one, or a pydantic model "
        "as package.module:CLASS",
    )
    reference_column: str | None = Field(
        None, description="the input column with the right answer; not with format text"
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
            raise ValueError(f"json_schema needs format: json, not {self.format}")
        form = self.load_format().form
        if form is not None:
            form.check()
        return self

    def load_format(self) -> AnswerFormat:
        """The format, with its schema; raises `ValueError` if this process can't load either."""
        form = None if self.json_schema is None else form_of(self.json_schema)
        return answer_format(self.format, form)

    @property
    def schema_text(self) -> str | None:
        """The JSON Schema that answers are generated by, as compact text; None: they are free."""
        return self.load_format().schema


class SimulatedConfig(Section):
    """The simulated engine: no model, for scheduling and fault tests.

    It takes a step for one token of each running sequence; the seconds of a step are the sum of
    what follows.
    """

    tokens_median: Annotated[int, Field(ge=1)] = 200
    tokens_sigma: Annotated[float, Field(ge=0)] = 0.75
    seconds_per_token: Annotated[float, Field(ge=0)] = Field(0.0002, description="each step")
    seconds_per_sequence: Annotated[float, Field(ge=0)] = Field(
        0, description="more for each running sequence"
    )
    seconds_per_kv_token: Annotated[float, Field(ge=0)] = Field(
        0, description="more for each token of their contexts, which is read from the KV cache"
    )
    seconds_per_prompt_token: Annotated[float, Field(ge=0)] = Field(
        0, description="prefill, during which the others wait; of carried tokens too"
    )
    dies_with: str | None = Field(
        None,
        description="a file: the first engine to see it removes it and dies; a folder: all die",
    )
    loops: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="the share of traces that think in circles until they are ended"
    )
    endless: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="the share of traces that think until sampling.max_tokens, of new things"
    )
    mixes: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="the share of traces that slip into Chinese"
    )
    right: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="the share of traces that answer 42 rather than any number"
    )
    dies_of: str | None = Field(
        None, description="an engine that gets a prompt with this text dies"
    )
    varies: bool = Field(
        False, description="text of its own each time, as from an engine with other neighbours"
    )
    log: str | None = Field(
        None, description="a file to which each engine appends what it generates, as JSON lines"
    )


# The engine argument of vLLM that says what its ranks are: ``mp``, processes; ``ray``, actors.
BACKEND = "distributed_executor_backend"


class EngineConfig(Section):
    """The engines: how many, how large, on what, and vLLM's own arguments."""

    # none: what `pipeline.execution.context_tiers` gives to rows that no engine can run.
    kind: Literal["vllm", "simulated", "none"] = "vllm"
    device: Literal["gpu", "cpu"] = "gpu"
    replicas: Annotated[int, Field(ge=1)] = 1
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel: Annotated[int, Field(ge=1)] = 1
    context: Literal["native", "auto"] = Field(
        "native", description="auto: rows too long for the model's own context run with YaRN"
    )
    block_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="rows that become durable at once; None: as many as sampling.max_tokens "
        "lets make 60,000 tokens, 256 at most"
    )  # fmt: skip
    rows_in_flight: Annotated[int, Field(ge=1)] | None = Field(
        None, description="rows at one engine at a time; None: as many as keep its slots "
        "(max_num_seqs) full though blocks hold their places"
    )  # fmt: skip
    vllm: dict[str, Any] = Field(default_factory=dict, description="vLLM's AsyncEngineArgs")
    simulated: SimulatedConfig = SimulatedConfig()

    @field_validator("kind", mode="before")
    @classmethod
    def _some_engine(cls, kind: Any) -> Any:
        if kind not in ("vllm", "simulated"):
            raise ValueError("must be vllm or simulated")
        return kind

    @model_validator(mode="after")
    def _only_what_cpus_can(self) -> Self:
        if self.kind == "vllm" and self.device == "cpu":
            if self.pipeline_parallel > 1:
                raise ValueError("pipeline_parallel: vLLM can't on CPUs; set tensor_parallel")
            if self.vllm.get(BACKEND) == "ray":
                raise ValueError(f"vllm.{BACKEND}: vLLM has no Ray backend on CPUs; remove it")
        return self

    @property
    def ranks(self) -> int:
        """GPUs (or CPU processes) of one engine."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def over_nodes(self) -> bool:
        """Whether an engine's GPUs may be on several nodes."""
        return self.device == "gpu" and self.vllm.get(BACKEND) == "ray"


class LimitsConfig(Section):
    """Where the run ends though rows are left; the next one goes on."""

    minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="the run is over by then; a minute before (half the time, if that is "
        "less) the engines save what they have"
    )  # fmt: skip
    output_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="of this run, those of traces that were begun again included"
    )
    cost: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of all engines from start to end, in the unit of prices.gpu_hour"
    )


Price = Annotated[float, Field(ge=0)]


class PricesConfig(Section):
    """What things cost, in a currency of your choice; for limits, estimates and reports."""

    gpu_hour: Annotated[float, Field(gt=0)] | None = Field(
        None, description="one GPU (with device cpu, one CPU process) for an hour"
    )
    million_input_tokens: Price | None = Field(
        None, description="at an API that you compare with; so `estimate` names its price as well"
    )
    million_output_tokens: Price | None = None

    @model_validator(mode="after")
    def _both_of_the_api(self) -> Self:
        if (self.million_input_tokens is None) != (self.million_output_tokens is None):
            raise ValueError("million_input_tokens and million_output_tokens go together")
        return self


class RayConfig(Section):
    """The Ray cluster: an address, or a local one for this run."""

    address: str | None = Field(None, description="None: RAY_ADDRESS if set, else a local cluster")
    num_cpus: Annotated[int, Field(ge=2)] | None = Field(
        None, description="logical CPUs of a local cluster; None: as many as the run needs"
    )
    metrics_port: Annotated[int, Field(ge=1024, le=65535)] | None = Field(
        None, description="where Prometheus finds a local cluster's metrics; None: any free port"
    )


def unknown_key(name: str, accepted: Iterable[str]) -> str:
    """What to say of a key that is not among ``accepted``."""
    accepted = list(accepted)
    close = difflib.get_close_matches(name, accepted, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown key {name}{hint} (accepted: {', '.join(accepted)})"
