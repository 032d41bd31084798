"""The configuration of a run: frozen, checked when built, unknown keys refused.

    config = load_config("configs/demo.yaml", ["sampling.n=4"])

No I/O but reading the one YAML file.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import ConfigError
from pipeline.policy import ThinkingPolicy
from pipeline.sampling import PRESETS, PresetName, SamplingPolicy
from pipeline.schema import TRACE_COLUMNS
from pipeline.verify import AnswerFormat

SUFFIXES = {
    "math": r"Please reason step by step, and put your final answer within \boxed{}.",
    "choice": (
        "Please show your choice in the `answer` field with only the choice letter, "
        'e.g.,`"answer": "C"`.'
    ),
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class InputConfig(_Section):
    """Where the prompts are: Parquet files, and the columns that hold them.

    With neither column named, ``prompt`` (text) or ``messages`` (list of {role, content}) is
    taken, whichever the files have.
    """

    path: str = Field(description="folder, file or glob; local, s3:// or any fsspec URL")
    prompt_column: str | None = None
    messages_column: str | None = None
    tools_column: str | None = None


class OutputConfig(_Section):
    """Where the traces go, and in what shape."""

    path: str = Field(description="folder; local, s3:// or any fsspec URL")
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
                raise ValueError(_unknown(name, TRACE_COLUMNS))
        taken = [rename.get(name, name) for name in TRACE_COLUMNS]
        twice = {name for name in taken if taken.count(name) > 1}
        if twice:
            raise ValueError(f"two columns would be called {', '.join(sorted(twice))}")
        return rename


class ModelConfig(_Section):
    """Which weights, and which preset their family has."""

    path: str = Field(
        description="Hugging Face name, folder, s3:// URL, or built in: qwq-nano, qwq-nano-preview"
    )
    preset: PresetName = "qwq-32b"
    revision: str | None = None
    lora: str | None = Field(None, description="a LoRA adapter: folder or Hugging Face name")


class PromptConfig(_Section):
    """What is added to every prompt."""

    system: str | None = None
    suffix: str | None = Field(
        None, description="text after the (last) user turn; math and choice are Qwen's own"
    )

    @property
    def suffix_text(self) -> str | None:
        """The suffix itself: a named one spelled out."""
        return None if self.suffix is None else SUFFIXES.get(self.suffix, self.suffix)


class SamplingConfig(_Section):
    """Overrides of the preset's sampling policy; None keeps the preset's value."""

    n: Annotated[int, Field(ge=1, le=4096)] | None = None
    temperature: Annotated[float, Field(ge=0.05, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    @field_validator("temperature", mode="before")
    @classmethod
    def _not_greedy(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and value == 0:
            raise ValueError("0 is greedy decoding, with which QwQ loops; its card has 0.6")
        return value

    @field_validator("top_k")
    @classmethod
    def _not_one(cls, value: int | None) -> int | None:
        if value == 1:
            raise ValueError("1 is greedy decoding, with which QwQ loops; its card has 20 to 40")
        return value


class ThinkingConfig(_Section):
    """How long a trace may think, and what is done about one that does not come to an end."""

    budget_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="thinking is closed after so many; None: what sampling.max_tokens leaves"
    )
    rescue: bool = Field(True, description="close thinking that runs out or loops, and answer")
    answer_tokens: Annotated[int, Field(ge=1)] = Field(
        2048, description="for the answer after thinking was closed"
    )
    detect_loops: bool = Field(True, description="end a trace that goes in circles")
    loop_retries: Annotated[int, Field(ge=0, le=10)] = Field(
        1, description="how often a trace that goes in circles begins again, before it is closed"
    )
    loop_presence_penalty: Annotated[float, Field(ge=0, le=2)] = Field(
        0.5, description="with at least this presence penalty"
    )

    @property
    def policy(self) -> ThinkingPolicy:
        """The same for `pipeline.policy`."""
        return ThinkingPolicy(**self.model_dump())


class AnswerConfig(_Section):
    """The form in which answers are read by machines, and what they are compared with."""

    format: AnswerFormat = "text"
    reference_column: str | None = Field(None, description="the input column with the right answer")

    @model_validator(mode="after")
    def _has_a_form(self) -> Self:
        if self.reference_column is not None and self.format == "text":
            raise ValueError("reference_column needs a format: boxed or choice")
        return self


class SimulatedConfig(_Section):
    """The simulated engine: no model, for scheduling and fault tests."""

    tokens_median: Annotated[int, Field(ge=1)] = 200
    tokens_sigma: Annotated[float, Field(ge=0)] = 0.75
    seconds_per_token: Annotated[float, Field(ge=0)] = 0.0002
    dies_with: str | None = Field(
        None,
        description="a file: the first engine to see it removes it and dies; a folder: all die",
    )
    loops: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="the share of traces that think in circles until they are ended"
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


class EngineConfig(_Section):
    """The engines: how many, how large, on what, and vLLM's own arguments."""

    # none: what `pipeline.lanes` gives to rows that no engine can run.
    kind: Literal["vllm", "simulated", "none"] = "vllm"
    device: Literal["gpu", "cpu"] = "gpu"
    replicas: Annotated[int, Field(ge=1)] = 1
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    context: Literal["native", "auto"] = Field(
        "native", description="auto: rows too long for the model's own context run with YaRN"
    )
    block_rows: Annotated[int, Field(ge=1)] = 16
    rows_in_flight: Annotated[int, Field(ge=1)] | None = Field(
        None, description="rows at one engine at a time; None: four times its slots (max_num_seqs)"
    )
    vllm: dict[str, Any] = Field(default_factory=dict, description="vLLM's AsyncEngineArgs")
    simulated: SimulatedConfig = SimulatedConfig()

    @field_validator("kind", mode="before")
    @classmethod
    def _some_engine(cls, kind: Any) -> Any:
        if kind not in ("vllm", "simulated"):
            raise ValueError("must be vllm or simulated")
        return kind


class RayConfig(_Section):
    """The Ray cluster: an address, or a local one for this run."""

    address: str | None = Field(None, description="None: RAY_ADDRESS if set, else a local cluster")
    num_cpus: Annotated[int, Field(ge=2)] | None = Field(
        None, description="logical CPUs of a local cluster; None: as many as the run needs"
    )


class RunConfig(_Section):
    """A whole run."""

    input: InputConfig
    output: OutputConfig
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    sampling: SamplingConfig = SamplingConfig()
    thinking: ThinkingConfig = ThinkingConfig()
    answer: AnswerConfig = AnswerConfig()
    engine: EngineConfig = EngineConfig()
    ray: RayConfig = RayConfig()

    @property
    def policy(self) -> SamplingPolicy:
        """The preset's sampling policy with this run's overrides."""
        preset = PRESETS[self.model.preset].sampling
        overrides = self.sampling.model_dump(exclude_none=True)
        return SamplingPolicy(**{**preset.__dict__, **overrides})


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys, YAML values).

    Raises `ConfigError` with one line for each thing that is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the config {path}: {error}") from None
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping with input, output and model")
    for override in overrides:
        _apply(data, override)
    return parse_config(data, str(path))


def parse_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Build a `RunConfig`, or raise `ConfigError` naming every wrong key and value."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        lines = [f"  {_explain(dict(e))}" for e in error.errors()]
        raise ConfigError("\n".join([f"{source} is not a valid run:", *lines])) from None


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """A short hash of a mapping of plain values, independent of key order."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def _apply(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes key=value with a dotted key, got {override!r}")
    *parents, leaf = key.strip().split(".")
    target = data
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
    try:
        target[leaf] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        target[leaf] = value


def _explain(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: {_unknown(str(error['loc'][-1]), _accepted(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{path}: is required"
    message = error["msg"].removeprefix("Value error, ")
    return f"{path}: {message} (got {error['input']!r})"


def _accepted(section: tuple[str | int, ...]) -> list[str]:
    model: Any = RunConfig
    for name in section:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _unknown(name: str, accepted: Iterable[str]) -> str:
    accepted = list(accepted)
    close = difflib.get_close_matches(name, accepted, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown key {name}{hint} (accepted: {', '.join(accepted)})"
