"""The sampling policy: the model cards' values, what is refused, what is warned of; no I/O.

Values and limits come from the model cards of QwQ-32B and QwQ-32B-Preview and from Qwen's
README: temperature 0.6, top_p 0.95, top_k between 20 and 40, min_p 0, never greedy. The cards of
DeepSeek's distilled models name the same temperature and top_p, and no other value.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, ThinkFormat

PresetName = Literal["qwq-32b", "qwq-32b-preview", "qwen2"]
# The pipeline applies these itself; every other field goes to the engine under its own name.
APPLIED_HERE = frozenset({"n", "max_tokens", "seed", "agree"})


# A field added after version 0.1.0 has the default None. A manifest without its key counts as None;
# with another default, outputs of earlier versions could not be continued.
class SamplingPolicy(BaseModel, frozen=True, extra="forbid"):
    """How every trace is sampled.

    The defaults are the values of QwQ's model card; a preset may have others. Null keeps the
    preset's value.
    """

    n: int = Field(1, ge=1, le=4096, description="Samples of each row.")
    temperature: float = Field(
        0.6, ge=0.05, le=2, description="Divides the logits. Low values make QwQ loop."
    )
    top_p: float = Field(
        0.95, gt=0, le=1,
        description="Draws from the likeliest tokens that together have this probability.",
    )  # fmt: skip
    top_k: int = Field(
        40, ge=-1, description="Draws from this many of the likeliest tokens; -1 or 0: from all."
    )
    min_p: float = Field(
        0.0, ge=0, le=1,
        description="Skips tokens below this share of the likeliest token's probability.",
    )  # fmt: skip
    presence_penalty: float = Field(
        0.0, ge=0, le=2, description="Subtracted from the logits of tokens already in the output."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=2,
        description="Lowers the logits of tokens already in prompt or output; 1: off.",
    )  # fmt: skip
    max_tokens: int = Field(
        32_768, ge=1, description="Most tokens of one sample, thinking and answer together."
    )
    seed: int = Field(
        0, ge=0, description="The run's seed; the seed of each sample derives from it."
    )
    agree: int | None = Field(
        None, ge=1,
        description="Draws a row's samples until this many agree, `n` at most. Default: always "
        "`n`.",
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _null_is_unset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return {
            key: value
            for key, value in data.items()
            if value is not None or key not in cls.model_fields
        }

    @field_validator("temperature", mode="before")
    @classmethod
    def _not_greedy(cls, value: Any) -> Any:
        if isinstance(value, (int, float)) and value == 0:
            raise ValueError("0 is greedy decoding, with which reasoning models loop; QwQ has 0.6")
        return value

    @field_validator("top_k")
    @classmethod
    def _not_one(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "1 is greedy decoding, with which reasoning models loop; QwQ has 20 to 40"
            )
        return value

    @property
    def first_draw(self) -> int:
        """How many samples of a row are drawn at once, before any is known."""
        return min(self.n, self.agree or self.n)

    @property
    def engine_parameters(self) -> dict[str, Any]:
        """What the engine applies, by vLLM's names; what is None is the engine's to decide."""
        return self.model_dump(exclude=set(APPLIED_HERE), exclude_none=True)


@dataclass(frozen=True)
class Preset:
    """What one model family brings: its sampling defaults and how its output comes apart."""

    think_format: ThinkFormat
    sampling: SamplingPolicy


PRESETS: dict[PresetName, Preset] = {
    "qwq-32b": Preset(THINK_TAGS, SamplingPolicy()),
    # Preview's whole context is 32,768 tokens: vLLM ends a trace there whatever max_tokens says.
    "qwq-32b-preview": Preset(HEADINGS, SamplingPolicy()),
    # Any other Qwen2 checkpoint; for one that thinks, the config sets model.format.
    "qwen2": Preset(ThinkFormat(), SamplingPolicy(top_k=-1)),
}


def warnings(policy: SamplingPolicy, preset: PresetName) -> Iterator[str]:
    """What about ``policy`` is allowed but probably not meant, each naming its setting."""
    if policy.presence_penalty > 1.5:
        yield (
            f"sampling.presence_penalty is {policy.presence_penalty}; high values mix languages "
            "and cost quality"
        )
    if policy.max_tokens < 1024:
        yield (
            f"sampling.max_tokens is {policy.max_tokens}; reasoning traces take thousands of "
            "tokens, so most will be truncated (the preset has 32768)"
        )
    if preset == "qwen2":
        return  # no one card speaks for all of them
    if not 20 <= policy.top_k <= 40:
        yield f"sampling.top_k is {policy.top_k}; Qwen advises 20 to 40 for QwQ"
    if policy.temperature < 0.5:
        yield (
            f"sampling.temperature is {policy.temperature}; QwQ loops at low temperature, "
            "its card advises 0.6"
        )
    if policy.temperature > 1.0:
        yield f"sampling.temperature is {policy.temperature}; the QwQ card advises 0.6"
    if policy.top_p < 0.8:
        yield f"sampling.top_p is {policy.top_p}; the QwQ card advises 0.95"
    if policy.min_p > 0:
        yield f"sampling.min_p is {policy.min_p}; the QwQ card advises 0"
    if policy.repetition_penalty != 1.0:
        yield (
            f"sampling.repetition_penalty is {policy.repetition_penalty}; QwQ is meant to run "
            "without (1.0); against loops use sampling.presence_penalty, 0 to 2"
        )


def needed_samples(answers: Mapping[int, str | None], agree: int, most: int) -> int:
    """How many samples it takes, as far as is known, until ``agree`` are the same; ``most`` in all.

    ``answers``: of the samples that have ended, by number. All samples that are needed are the
    first ones, up to the one with which ``agree`` of them are the same. When those have ended that
    this says, and it still says so, these are all. Answers of others do not count yet.
    Only the same text agrees: to find that 1/2 is 0.5 takes algebra, to draw once more does not.
    """
    needed, before, known, alike = min(agree, most), 0, 0, 0
    counts = Counter[str]()
    while needed > before:
        for i in filter(answers.__contains__, range(before, needed)):
            known += 1
            if (answer := answers[i]) is not None:
                counts[answer] += 1
                alike = max(alike, counts[answer])
        before, needed = needed, min(most, agree + known - alike)
    return needed


def derive_seed(run_seed: int, shard: str, row: int, sample: int, attempt: int = 0) -> int:
    """The seed of one sample of one row: 0 to 2**48 - 1, the same on every machine and rerun.

    ``attempt``: the number of the retry, 0 for the run itself. 48 bits survive a detour through
    float64, which pandas and JSON readers make.
    """
    key = f"{run_seed}\0{shard}\0{row}\0{sample}" + (f"\0{attempt}" if attempt else "")
    return hash48(key)


def continued_seed(seed: int, tokens: int) -> int:
    """The seed with which a trace goes on after its first ``tokens`` tokens.

    The random generator's state is lost with its engine; under the old seed its first numbers
    would be drawn again.
    """
    return hash48(f"{seed}\0{tokens}") if tokens else seed


def derive_again(seed: int, tries: int) -> int:
    """The seed with which a trace that went in circles ``tries`` times begins again.

    Below zero: with which its answer is drawn again.
    """
    return hash48(f"{seed}\0again\0{tries}")


def hash48(key: str) -> int:
    """A hash of 48 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest())
