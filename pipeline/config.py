"""The configuration of a run: frozen, checked when built, unknown keys refused.

    config = load_config("configs/demo.yaml", ["sampling.n=4"])

Its sections are in `pipeline.sections`. No I/O but reading the one YAML file.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

import yaml
from pydantic import ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.reasoning import ThinkFormat
from pipeline.sampling import PRESETS, SamplingPolicy, warnings
from pipeline.sections import (
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
    unknown_key,
)

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


Config = TypeVar("Config", bound="RunConfig")


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
        if self.engine.vllm.get("trust_remote_code"):
            yield (
                "engine.vllm.trust_remote_code: code that comes with the model runs on every node; "
                "set model.revision to the commit that you have read"
            )
        form = FORMS.get(self.answer.format)
        if form is not None and self.prompt.suffix is None:
            yield (
                f"answer.format is {self.answer.format}, and no prompt.suffix asks for it; unless "
                f"your prompts do, set prompt.suffix={form}"
            )


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run that a YAML file describes, see `load_as`."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Config], path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys, YAML values).

    ``kind``: `RunConfig`, or a job's with sections of its own besides. Raises `ConfigError` with
    one line for each thing that is wrong.
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
    return parse_as(kind, data, str(path))


def parse_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """The run that ``data`` describes, see `parse_as`."""
    return parse_as(RunConfig, data, source)


def parse_as(kind: type[Config], data: Mapping[str, Any], source: str) -> Config:
    """Build a ``kind``, or raise `ConfigError` naming every wrong key and value."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        lines = [f"  {_explain(dict(e), kind)}" for e in error.errors()]
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


def _explain(error: Mapping[str, Any], kind: type[RunConfig]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: {unknown_key(str(error['loc'][-1]), _accepted(kind, error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{path}: is required"
    if error["type"] == "credentials":  # which are not repeated
        return f"{path}: {error['msg']}"
    if error["type"] == "string_type":
        return f"{path}: must be text (in YAML, put quotes around it if it begins with a brace)"
    message: str = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], Mapping):  # all of a section would be no help
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {error['input']!r})"


def _accepted(kind: type[RunConfig], section: tuple[str | int, ...]) -> list[str]:
    model: Any = kind
    for name in section:
        annotation = model.model_fields[name].annotation
        model = next(iter(get_args(annotation)), annotation)  # a section, or one or None
    return list(model.model_fields)
