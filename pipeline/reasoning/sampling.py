"""The sampling policy: the model cards' values, what is refused, what is warned of; no I/O.

Values and limits come from the model cards of QwQ-32B and QwQ-32B-Preview and from Qwen's
README: temperature 0.6, top_p 0.95, top_k between 20 and 40, min_p 0, never greedy. DeepSeek's
distilled models have the same temperature and top_p, and say nothing of the others.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, ThinkFormat

PresetName = Literal["qwq-32b", "qwq-32b-preview", "qwen2"]


@dataclass(frozen=True)
class SamplingPolicy:
    """How every trace is sampled; ``max_tokens`` counts thinking and answer together.

    ``agree``: samples of a row are drawn until so many agree, ``n`` at most; None: always ``n``.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    repetition_penalty: float
    max_tokens: int
    seed: int
    agree: int | None = None

    @property
    def first_draw(self) -> int:
        """How many samples of a row are drawn at once, before any is known."""
        return min(self.n, self.agree or self.n)


@dataclass(frozen=True)
class Preset:
    """What one model family brings: its sampling defaults and how its output comes apart."""

    think_format: ThinkFormat
    sampling: SamplingPolicy


_CARD = SamplingPolicy(
    n=1,
    temperature=0.6,
    top_p=0.95,
    top_k=40,
    min_p=0.0,
    presence_penalty=0.0,
    repetition_penalty=1.0,
    max_tokens=32_768,
    seed=0,
)

PRESETS: dict[PresetName, Preset] = {
    "qwq-32b": Preset(THINK_TAGS, _CARD),
    # Preview's whole context is 32,768 tokens: vLLM ends a trace there whatever max_tokens says.
    "qwq-32b-preview": Preset(HEADINGS, _CARD),
    # Any other Qwen2 checkpoint; one that thinks says in model.format how.
    "qwen2": Preset(ThinkFormat(), replace(_CARD, top_k=-1)),
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


def still_to_draw(answers: Sequence[str | None], agree: int, most: int) -> int:
    """How many more samples it takes until ``agree`` answers can be the same, ``most`` in all.

    Only the same text agrees: to find that 1/2 is 0.5 takes algebra, to draw once more does not.
    """
    left = most - len(answers)
    if left <= 0:
        return 0
    counts = Counter(answer for answer in answers if answer is not None)
    return max(0, min(agree - max(counts.values(), default=0), left))


def derive_seed(run_seed: int, shard: str, row: int, sample: int, attempt: int = 0) -> int:
    """The seed of one sample of one row: 0 to 2**48 - 1, the same on every machine and rerun.

    ``attempt``: the number of the retry, 0 for the run itself. 48 bits survive a detour through
    float64, which pandas and JSON readers make.
    """
    key = f"{run_seed}\0{shard}\0{row}\0{sample}" + (f"\0{attempt}" if attempt else "")
    return _hash48(key)


def continued_seed(seed: int, tokens: int) -> int:
    """The seed with which a trace goes on after its first ``tokens`` tokens.

    The random generator's state is lost with its engine; under the old seed its first numbers
    would be drawn again.
    """
    return _hash48(f"{seed}\0{tokens}") if tokens else seed


def derive_again(seed: int, tries: int) -> int:
    """The seed with which a trace that went in circles ``tries`` times begins again."""
    return _hash48(f"{seed}\0again\0{tries}")


def _hash48(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest())
