"""A run at one moment, in figures: what a screen shows, a log keeps and a status tells; no I/O."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Lengths of thinking are counted by powers of the square root of two.
STEPS_AN_OCTAVE = 2
BARS = "▁▂▃▄▅▆▇█"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def length_bin(tokens: int) -> int:
    """The bin of the histogram that a length falls into."""
    return 0 if tokens < 1 else 1 + int(STEPS_AN_OCTAVE * math.log2(tokens))


def bin_floor(number: int) -> float:
    """The least length in a bin, in tokens."""
    return 0.0 if number < 1 else float(2 ** ((number - 1) / STEPS_AN_OCTAVE))


def quantile(bins: Mapping[int, int], share: float) -> float | None:
    """The length (in the middle of its bin) that ``share`` of all do not pass; None of none."""
    whole = sum(bins.values())
    seen = 0
    for number in sorted(bins):
        seen += bins[number]
        if seen >= share * whole:
            return math.sqrt(max(1.0, bin_floor(number)) * bin_floor(number + 1))
    return None


def sparkline(bins: Mapping[int, int]) -> str:
    """The histogram as characters, from the shortest length there is to the longest."""
    if not bins:
        return ""
    most = max(bins.values())
    counts = (bins.get(number, 0) for number in range(min(bins), max(bins) + 1))
    return "".join(" " if n == 0 else BARS[(n * len(BARS) - 1) // most] for n in counts)


@dataclass(frozen=True)
class EngineFigures:
    """One engine: sequences running and waiting, share of KV cache in use, tokens a second."""

    name: str
    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class EnginePool:
    """The engines of a run: how many, GPUs and slots of each, the price of a GPU for an hour."""

    replicas: int = 1
    gpus: int = 1
    slots: int = 1
    gpu_hour: float | None = None

    def gpu_hours(self, seconds: float) -> float:
        """Of all engines, in that time."""
        return seconds * self.replicas * self.gpus / 3600

    def cost(self, seconds: float) -> float | None:
        """Of all engines, in that time; None where no price is known."""
        return None if self.gpu_hour is None else self.gpu_hours(seconds) * self.gpu_hour


# Keys in JSON lines that differ from our names: readers of existing records know them.
_KEYS = {"tier": "lane", "engine_pool": "fleet"}


@dataclass(frozen=True)
class Figures:
    """A run (in one tier) at one moment, ``seconds`` after its engines were asked for.

    ``tokens``: prompt, output (of traces that have ended) and spent (all that was generated).
    ``think_lengths``: traces by `length_bin`. ``engine_pool``: what was asked for.
    """

    at: str
    seconds: float
    rows: int
    rows_to_do: int
    tier: str = ""
    ready_seconds: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    states: Mapping[str, int] = field(default_factory=dict)
    think_lengths: Mapping[int, int] = field(default_factory=dict)
    engines: Sequence[EngineFigures] = ()
    engine_pool: EnginePool = field(default_factory=EnginePool)

    @property
    def tokens_per_second(self) -> float:
        """Of all engines, now."""
        return sum(engine.tokens_per_second for engine in self.engines)

    @property
    def running(self) -> int:
        """Sequences at work on all engines."""
        return sum(engine.running for engine in self.engines)

    @property
    def eta_seconds(self) -> float | None:
        """The time that is left, tail and all; None as long as nothing says how long traces are.

        All tokens that are still to come at the present rate; but no less than a long trace takes
        at the pace of one sequence, because some begin only when the last rows are given out.
        """
        rate, traces = self.tokens_per_second, sum(self.states.values())
        if self.rows >= self.rows_to_do:
            return 0.0
        if not rate or not self.rows or not traces:
            return None
        begun = self.tokens.get("spent", 0) - self.tokens.get("output", 0)
        mean = self.tokens.get("output", 0) / self.rows
        body = max(0.0, (self.rows_to_do - self.rows) * mean - max(0, begun)) / rate
        longest = (quantile(self.think_lengths, 0.99) or mean) / (rate / max(1, self.running))
        # While rows wait, those that begin last are half way, on average, when the others are done.
        return max(body, longest) + min(body, longest) / 2

    def to_json(self) -> dict[str, Any]:
        """Plain values; see `from_json`."""
        values = asdict(self)
        bins = {str(number): count for number, count in sorted(self.think_lengths.items())}
        values |= {"think_lengths": bins, "eta_seconds": self.eta_seconds}
        return {_KEYS.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Figures":
        """The inverse of `to_json`; unknown keys are ignored."""
        names = {name: _KEYS.get(name, name) for name in cls.__dataclass_fields__}
        known = {name: values[key] for name, key in names.items() if key in values}
        bins = {int(number): count for number, count in values.get("think_lengths", {}).items()}
        known |= {
            "think_lengths": Counter(bins),
            "engines": tuple(EngineFigures(**engine) for engine in values.get("engines", ())),
            "engine_pool": EnginePool(**values.get("fleet", {})),
        }
        return cls(**known)

    def lines(self) -> Iterator[str]:
        """As a person reads them."""
        left = "-" if self.eta_seconds is None else clock(self.eta_seconds)
        yield (
            f"{'now':<10} {self.tokens_per_second:>9,.0f} tokens/s, {self.running:,} running, "
            f"ETA {left}"
        )
        for engine in self.engines:
            cache = "" if engine.kv_usage is None else f", KV cache {engine.kv_usage:.0%}"
            yield (
                f"{'engine':<10} {engine.tokens_per_second:>9,.0f} tokens/s, {engine.running:,} "
                f"running, {engine.waiting:,} waiting{cache} ({engine.name})"
            )
        if self.think_lengths:
            low, high = (quantile(self.think_lengths, share) or 0 for share in (0.5, 0.95))
            yield (
                f"{'thinking':<10} {sparkline(self.think_lengths)} half below {low:,.0f} tokens, "
                f"95% below {high:,.0f}"
            )


@dataclass
class Totals:
    """Counts since the start of this run (not of earlier ones in the same output).

    ``output_tokens`` are those of traces that have ended, ``spent_tokens`` all that was generated;
    ``think_lengths`` counts traces by `pipeline.monitor.figures.length_bin`.
    """

    rows: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    spent_tokens: int = 0
    states: Counter[str] = field(default_factory=Counter)
    think_lengths: Counter[int] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        """Add ``other`` to this."""
        self.rows += other.rows
        self.generated += other.generated
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.spent_tokens += other.spent_tokens
        self.states.update(other.states)
        self.think_lengths.update(other.think_lengths)


@dataclass(frozen=True)
class Snapshot:
    """The coordinator at one moment; ``running``: requests that engines have, waiting ones too."""

    totals: Totals
    running: int
    engines: int
    ready_seconds: float | None
    loads: tuple[EngineFigures, ...] = ()
    engine_pool: EnginePool = field(default_factory=EnginePool)
