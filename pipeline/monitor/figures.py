"""The figures of a run at one moment, for the terminal, the log and `status`; no I/O."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pipeline.reasoning.early_answer import ControlGroup

# The histogram of thinking lengths has bins by powers of the square root of two.
STEPS_AN_OCTAVE = 2
# From this share of recomputed tokens on there is a warning; and from so many tokens on.
THRASHING, ENOUGH_TOKENS = 0.05, 50_000
BARS = "▁▂▃▄▅▆▇█"


def clock(seconds: float) -> str:
    """``seconds`` as hours, minutes and seconds, such as 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def length_bin(tokens: int) -> int:
    """The number of the histogram bin for a length in tokens."""
    return 0 if tokens < 1 else 1 + int(STEPS_AN_OCTAVE * math.log2(tokens))


def bin_floor(number: int) -> float:
    """The shortest length in a bin, in tokens."""
    return 0.0 if number < 1 else float(2 ** ((number - 1) / STEPS_AN_OCTAVE))


def quantile(bins: Mapping[int, int], share: float) -> float | None:
    """The ``share`` quantile of the lengths, as the middle of its bin; None without lengths."""
    total = sum(bins.values())
    seen = 0
    for number in sorted(bins):
        seen += bins[number]
        if seen >= share * total:
            return math.sqrt(max(1.0, bin_floor(number)) * bin_floor(number + 1))
    return None


def sparkline(bins: Mapping[int, int]) -> str:
    """The histogram as one character per bin, from the shortest length to the longest."""
    if not bins:
        return ""
    most = max(bins.values())
    counts = (bins.get(number, 0) for number in range(min(bins), max(bins) + 1))
    return "".join(" " if n == 0 else BARS[(n * len(BARS) - 1) // most] for n in counts)


@dataclass(frozen=True)
class EngineFigures:
    """One engine: sequences running and waiting, share of KV cache in use, tokens per second."""

    name: str
    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None
    tokens_per_second: float = 0.0


@dataclass(frozen=True)
class EnginePool:
    """The engines of a run: their number, the GPUs and slots of each, the price of a GPU hour.

    ``min_replicas``: the least of a range, of which ``replicas`` is the most; None: no range.
    """

    replicas: int = 1
    gpus: int = 1
    slots: int = 1
    gpu_hour: float | None = None
    min_replicas: int | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether the number of engines follows the GPUs that are there."""
        return self.min_replicas is not None

    @property
    def least(self) -> int:
        """The least number of engines; without a range, their number."""
        return self.replicas if self.min_replicas is None else self.min_replicas

    @property
    def size(self) -> str:
        """The number of engines, such as ``1 to 8``."""
        least = "" if self.min_replicas is None else f"{self.min_replicas:,} to "
        return f"{least}{self.replicas:,}"

    def paid_seconds(self, seconds: float, engine_seconds: float) -> float:
        """For how long all engines of the pool are paid for, in a run of ``seconds``.

        A fixed number of engines is paid for from start to end. Of a range, only the engines that
        are there count: ``engine_seconds``, of all of them together.
        """
        return engine_seconds / self.replicas if self.is_elastic else seconds

    def gpu_hours(self, seconds: float) -> float:
        """GPU hours of all engines in ``seconds``."""
        return seconds * self.replicas * self.gpus / 3600

    def cost(self, seconds: float) -> float | None:
        """The cost of all engines for ``seconds``; None without a price."""
        return None if self.gpu_hour is None else self.gpu_hours(seconds) * self.gpu_hour


# Keys in JSON lines that differ from our names: readers of existing records know them.
_KEYS = {"tier": "lane", "engine_pool": "fleet"}


@dataclass(frozen=True)
class Figures:
    """A run (in one tier) at one moment, ``seconds`` after it asked for its engines.

    ``tokens``: prompt, output (of ended traces), spent (all generated tokens), recomputed (after
    ``preemptions``, when a KV cache was full), drafted and accepted (by speculation), probe (of the
    spent ones, for early answers). ``think_lengths``: the number of traces by `length_bin`.
    ``engine_pool``: the engines that the run asked for. ``hung``: how many engines were killed for
    they did nothing. ``control``: the control group; None without a floor of its agreement.
    ``engine_seconds``: for how long each engine had its GPUs, all together.
    """

    at: str
    seconds: float
    rows: int
    rows_to_do: int
    tier: str = ""
    ready_seconds: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    preemptions: int = 0
    states: Mapping[str, int] = field(default_factory=dict)
    think_lengths: Mapping[int, int] = field(default_factory=dict)
    engines: Sequence[EngineFigures] = ()
    engine_pool: EnginePool = field(default_factory=EnginePool)
    hung: int = 0
    control: ControlGroup | None = None
    engine_seconds: float = 0.0

    @property
    def paid_seconds(self) -> float:
        """See `EnginePool.paid_seconds`."""
        return self.engine_pool.paid_seconds(self.seconds, self.engine_seconds)

    @property
    def slots(self) -> int:
        """The slots of all engines that the run has; of a range, only those that are ready."""
        pool = self.engine_pool
        return pool.slots * (len(self.engines) if pool.is_elastic else pool.replicas)

    @property
    def tokens_per_second(self) -> float:
        """The present rate of all engines."""
        return sum(engine.tokens_per_second for engine in self.engines)

    @property
    def running(self) -> int:
        """Sequences that run on all engines."""
        return sum(engine.running for engine in self.engines)

    @property
    def eta_seconds(self) -> float | None:
        """The time left, with its tail; None until some trace shows how long traces are.

        The tokens still to come, at the present rate; but no less than a long trace takes at the
        pace of one sequence, because some traces start with the last rows.
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
        # The traces that start last are half way, on average, when the others end.
        return max(body, longest) + min(body, longest) / 2

    @property
    def recomputed_share(self) -> float:
        """Tokens computed again, as a share of those generated."""
        return self.tokens.get("recomputed", 0) / max(1, self.tokens.get("spent", 0))

    @property
    def warnings(self) -> Iterator[tuple[str, str]]:
        """What is wrong, as far as the figures show it: each with a name that stays the same."""
        if self._full_caches is not None:
            yield "KV caches", self._full_caches
        if self.control is not None and self.control.warning is not None:
            yield "agreement", self.control.warning

    @property
    def _full_caches(self) -> str | None:
        if self.recomputed_share < THRASHING or self.tokens.get("spent", 0) < ENOUGH_TOKENS:
            return None
        return (
            f"{self.recomputed_share:.0%} of the tokens are computed again, because the KV caches "
            f"are full ({self.preemptions:,} preemptions): give each engine fewer slots (now "
            f"{self.engine_pool.slots:,}) or more GPUs"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `from_json` takes them."""
        values = asdict(self)
        bins = {str(number): count for number, count in sorted(self.think_lengths.items())}
        values |= {"think_lengths": bins, "eta_seconds": self.eta_seconds}
        if not self.engine_pool.is_elastic:
            del values["engine_pool"]["min_replicas"], values["engine_seconds"]
        return {_KEYS.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Figures":
        """The inverse of `to_json`; unknown keys are ignored."""
        names = {name: _KEYS.get(name, name) for name in cls.__dataclass_fields__}
        known = {name: values[key] for name, key in names.items() if key in values}
        bins = {int(number): count for number, count in values.get("think_lengths", {}).items()}
        control = values.get("control")
        known |= {
            "think_lengths": Counter(bins),
            "engines": tuple(EngineFigures(**engine) for engine in values.get("engines", ())),
            "engine_pool": EnginePool(**values.get("fleet", {})),
            "control": None if control is None else ControlGroup(**control),
        }
        return cls(**known)

    def lines(self) -> Iterator[str]:
        """The figures as lines of text."""
        left = "-" if self.eta_seconds is None else clock(self.eta_seconds)
        yield (
            f"{'now':<10} {self.tokens_per_second:>9,.0f} tokens/s, {self.running:,} running, "
            f"ETA {left}"
        )
        if self.engine_pool.is_elastic:
            yield f"{'engines':<10} {len(self.engines):>9,} at present, of {self.engine_pool.size}"
        for engine in self.engines:
            cache = "" if engine.kv_usage is None else f", KV cache {engine.kv_usage:.0%}"
            yield (
                f"{'engine':<10} {engine.tokens_per_second:>9,.0f} tokens/s, {engine.running:,} "
                f"running, {engine.waiting:,} waiting{cache} ({engine.name})"
            )
        if self.hung:
            yield f"{'hung':<10} {self.hung} x an engine did nothing, and was killed and restarted"
        if self.preemptions:
            yield (
                f"{'KV cache':<10} {self.preemptions:,} preemptions; {self.recomputed_share:.1%} "
                "of the tokens computed again"
            )
        if drafted := self.tokens.get("drafted", 0):
            accepted = self.tokens.get("accepted", 0)
            yield f"{'drafts':<10} {accepted / drafted:.0%} of {drafted:,} tokens accepted"
        if probe := self.tokens.get("probe", 0):
            share = probe / max(1, self.tokens.get("spent", 0))
            yield f"{'probes':<10} {share:.1%} of all generated tokens, for early answers"
        if self.think_lengths:
            low, high = (quantile(self.think_lengths, share) or 0 for share in (0.5, 0.95))
            yield (
                f"{'thinking':<10} {sparkline(self.think_lengths)} half below {low:,.0f} tokens, "
                f"95% below {high:,.0f}"
            )


def joined(figures: Sequence[Figures], rows_left: int) -> Figures:
    """The figures of several drivers at work at once, at least one, as those of one run.

    ``rows_left``: for all of them; each only guesses what it will have to do. The engines of their
    pool are as large as the largest, and have a price if it is the same for all.
    """
    pools, prices = (
        [each.engine_pool for each in figures],
        {f.engine_pool.gpu_hour for f in figures},
    )
    ready = [each.ready_seconds for each in figures if each.ready_seconds is not None]
    rows = sum(each.rows for each in figures)
    return replace(
        max(figures, key=lambda each: each.at),
        seconds=max(each.seconds for each in figures),
        rows=rows,
        rows_to_do=rows + rows_left,
        ready_seconds=min(ready, default=None),
        tokens=sum((Counter(each.tokens) for each in figures), Counter[str]()),
        preemptions=sum(each.preemptions for each in figures),
        engine_seconds=sum(each.engine_seconds for each in figures),
        states=sum((Counter(each.states) for each in figures), Counter[str]()),
        think_lengths=sum((Counter(each.think_lengths) for each in figures), Counter[int]()),
        engines=tuple(engine for each in figures for engine in each.engines),
        engine_pool=EnginePool(
            sum(pool.replicas for pool in pools),
            max(pool.gpus for pool in pools),
            max(pool.slots for pool in pools),
            prices.pop() if len(prices) == 1 else None,
        ),
        hung=sum(each.hung for each in figures),
        control=max(
            (each.control for each in figures if each.control is not None),
            key=lambda group: group.compared,
            default=None,
        ),
    )


@dataclass
class Totals:
    """Counts since the start of this run, without earlier runs in the same output.

    ``generated``: traces that ended on an engine. ``output_tokens``: of ended traces;
    ``spent_tokens``: all generated tokens; ``recomputed_tokens``: those, and prompts, that were
    computed again after a preemption; ``drafted_tokens`` and ``accepted_tokens``: see `EngineLoad`.
    ``probe_tokens``: of the spent ones, those of probes. ``engine_seconds``: see `Figures`.
    ``compared``: traces of the control group
    whose early answer was compared with the full one; ``agreeing``: of these, those that agree;
    ``compared_rows``: rows with compared traces.
    ``think_lengths``: the number of traces by `length_bin`.
    """

    rows: int = 0
    generated: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    spent_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    probe_tokens: int = 0
    compared_rows: int = 0
    compared: int = 0
    agreeing: int = 0
    engine_seconds: float = 0.0
    states: Counter[str] = field(default_factory=Counter)
    think_lengths: Counter[int] = field(default_factory=Counter)

    def add(self, other: "Totals") -> None:
        """Add the counts of ``other``."""
        self.rows += other.rows
        self.generated += other.generated
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.spent_tokens += other.spent_tokens
        self.recomputed_tokens += other.recomputed_tokens
        self.preemptions += other.preemptions
        self.drafted_tokens += other.drafted_tokens
        self.accepted_tokens += other.accepted_tokens
        self.probe_tokens += other.probe_tokens
        self.compared_rows += other.compared_rows
        self.compared += other.compared
        self.agreeing += other.agreeing
        self.engine_seconds += other.engine_seconds
        self.states.update(other.states)
        self.think_lengths.update(other.think_lengths)


@dataclass(frozen=True)
class Snapshot:
    """What the coordinator knows at one moment; ``engines``: those that are ready, by their load.

    ``rows_to_do``: in all; a worker, which claims rows a few at a time, has to guess the last ones.
    ``engine_pool``: the engines that the run asked for. ``hung``: how many were killed for they did
    nothing. ``control``: as in `Figures`.
    """

    totals: Totals
    rows_to_do: int = 0
    ready_seconds: float | None = None
    engines: tuple[EngineFigures, ...] = ()
    engine_pool: EnginePool = field(default_factory=EnginePool)
    hung: int = 0
    control: ControlGroup | None = None
