"""What a run will take, from a pilot: tokens, time, GPU-hours and money, each with its range."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.config.run_config import RunConfig
from pipeline.engines.protocol import TOKENS_A_REPORT
from pipeline.insight.trace_statistics import reason
from pipeline.monitor.figures import EnginePool, Figures, clock
from pipeline.monitor.limits import pool_of
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State

DRAWS = 2000
TOKENS = ("prompt_tokens", "think_tokens", "answer_tokens", "wasted_tokens")
# Ranges are those in which so much of what was drawn lies.
CONFIDENCE = 0.95
LENGTHS = (0.5, 0.95, 0.99)
# An engine is as fast as where it had at least so much of the most sequences that it ever had.
NEARLY_FULL = 0.8
STRETCH_SECONDS = 10.0
# What an engine does in some minutes tells what it does in hours to within so much.
PACE_VARIES = 0.1
# A share that is worth a word of advice.
SOME, MANY = 0.03, 0.1


@dataclass(frozen=True)
class Interval:
    """A figure and its range."""

    mid: float
    low: float
    high: float

    @classmethod
    def of(cls, mid: float, low: Any, high: Any) -> "Interval":
        """``mid``, and where most of what was drawn lies: ``low`` for its lower end, ``high``."""
        ends = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
        return cls(
            mid,
            min(mid, float(np.quantile(low, ends[0]))),
            max(mid, float(np.quantile(high, ends[1]))),
        )

    def times(self, factor: float) -> "Interval":
        """All of it so many times."""
        return Interval(self.mid * factor, self.low * factor, self.high * factor)

    def holds(self, value: float) -> bool:
        """Whether ``value`` is in the range."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Speed:
    """One engine with nearly all the sequences that it had at most, in stretches of time.

    ``tokens`` and ``seconds``: of each stretch; ``running``: sequences; ``ready_seconds``: what it
    took to start.
    """

    tokens: tuple[float, ...]
    seconds: tuple[float, ...]
    running: float
    ready_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Over all stretches."""
        return sum(self.tokens) / sum(self.seconds)

    def drawn(self, rng: np.random.Generator) -> Any:
        """Tokens a second, an array of `DRAWS`: the stretches drawn anew, each draw's pace too."""
        at = rng.integers(0, len(self.tokens), (DRAWS, len(self.tokens)))
        tokens, seconds = np.array(self.tokens)[at], np.array(self.seconds)[at]
        pace = rng.uniform(1 - PACE_VARIES, 1 + PACE_VARIES, DRAWS)
        return pace * tokens.sum(axis=1) / seconds.sum(axis=1)


@dataclass(frozen=True)
class Projection:
    """What so many rows take. ``output_tokens``: all that is generated, what is given up included.

    Times are None where no engine's speed is known, money where no price is.
    """

    rows: int
    prompt_tokens: Interval
    output_tokens: Interval
    seconds: Interval | None = None
    gpu_hours: Interval | None = None
    cost: Interval | None = None
    api_cost: Interval | None = None


@dataclass(frozen=True)
class Estimate:
    """A pilot's outcome. ``lengths``: by kind (think, answer), tokens at each of `LENGTHS`."""

    rows: int
    traces: int
    states: Counter[str]
    lengths: dict[str, tuple[float, ...]]
    speed: Speed | None
    engine_pool: EnginePool
    whole: Projection
    left: Projection
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""

        def plain(projection: Projection) -> dict[str, Any]:
            return {
                name: vars(value) if isinstance(value, Interval) else value
                for name, value in vars(projection).items()
            }

        return {
            "pilot": {"rows": self.rows, "traces": self.traces, "states": dict(self.states)},
            "lengths": {
                kind: {
                    f"p{share * 100:.0f}": tokens
                    for share, tokens in zip(LENGTHS, found, strict=True)
                }
                for kind, found in self.lengths.items()
            },
            "tokens_per_second_of_an_engine": (self.speed and self.speed.tokens_per_second),
            "whole": plain(self.whole),
            "left": plain(self.left),
            "advice": list(self.advice),
        }

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        yield f"{'pilot':<10} {self.rows:>9,} rows, {self.traces:,} traces; part of the run"
        for state in State:
            if count := self.states.get(state, 0):
                yield f"{state:<10} {count:>9,} traces  {count / self.traces:>6.1%}"
        for kind, found in self.lengths.items():
            told = ", ".join(
                f"P{share * 100:.0f} {tokens:,.0f}"
                for share, tokens in zip(LENGTHS, found, strict=True)
            )
            yield f"{kind:<10} {told} tokens"
        if self.speed is not None:
            yield (
                f"{'an engine':<10} {self.speed.tokens_per_second:>9,.0f} tokens/s with "
                f"{self.speed.running:,.0f} of {self.engine_pool.slots:,} slots in use, ready after "
                f"{self.speed.ready_seconds:,.0f} s"
            )
        for name, projection in (("the whole run", self.whole), ("still to do", self.left)):
            yield f"\n{name}: {projection.rows:,} rows"
            yield from _projection_lines(projection, self.engine_pool)
        for advice in self.advice:
            yield f"\nadvice: {advice}"


def estimate(
    config: RunConfig,
    sample: Sequence[Sequence[dict[str, Any]]],
    runs: Iterable[Sequence[Figures]],
    rows: int,
    rows_left: int,
) -> Estimate:
    """Project ``sample``, the traces of each row of a pilot, to all rows and to those left.

    ``runs``: the record of what engines like these have done. Rows are drawn anew for the ranges,
    so that several samples of a row count as what they are.
    """
    engine_pool = pool_of(config)
    traces = [trace for row in sample for trace in row]
    speed = speed_of(runs, engine_pool)
    return Estimate(
        len(sample),
        len(traces),
        Counter(trace["state"] for trace in traces),
        {
            kind: found
            for kind in ("think", "answer")
            if (found := _lengths(traces, f"{kind}_tokens"))
        },
        speed,
        engine_pool,
        _project(config, sample, speed, engine_pool, rows),
        _project(config, sample, speed, engine_pool, rows_left),
        tuple(_advice(config, traces)),
    )


def speed_of(runs: Iterable[Sequence[Figures]], engine_pool: EnginePool) -> Speed | None:
    """The speed of engines like those of ``engine_pool``; None if nothing is recorded of such."""
    looks, ready = list[tuple[float, float, float]](), [0.0]
    for lines in runs:
        alike = [
            f
            for f in lines
            if (f.engine_pool.gpus, f.engine_pool.slots) == (engine_pool.gpus, engine_pool.slots)
        ]
        ready += [f.ready_seconds for f in alike[-1:] if f.ready_seconds is not None]
        untold = _untold(alike[-1]) if alike else 0.0
        for before, after in pairwise(alike):
            since = max(before.seconds, after.ready_seconds or 0)
            seconds = (after.seconds - since) * len(after.engines)
            if seconds > 0:
                least = after.running / len(after.engines)
                if before.running or before.tokens["spent"]:  # else all slots are taken at once
                    least = min(least, before.running / max(1, len(before.engines)))
                told = after.tokens["spent"] - before.tokens["spent"]
                tokens = told + untold * (after.running - before.running)
                looks.append((least, tokens, seconds))
    most = max((running for running, _, _ in looks), default=0)
    full = [look for look in looks if look[0] >= NEARLY_FULL * most > 0]
    # Many tokens are told at once: only over some time do they make a rate.
    stretches = [[0.0, 0.0]]
    for _, tokens, seconds in full:
        if stretches[-1][1] >= STRETCH_SECONDS:
            stretches.append([0.0, 0.0])
        stretches[-1][0] += tokens
        stretches[-1][1] += seconds
    if len(stretches) > 1 and stretches[-1][1] < STRETCH_SECONDS:
        tokens, seconds = stretches.pop()
        stretches[-1][0] += tokens
        stretches[-1][1] += seconds
    made, took = zip(*stretches, strict=True)
    if not sum(made):
        return None
    return Speed(made, took, float(np.mean([running for running, _, _ in full])), max(ready))


def _untold(figures: Figures) -> float:
    """Tokens that a running sequence has, on average, beyond those that were reported."""
    traces = sum(figures.states.values())
    mean = figures.tokens.get("output", 0) / traces if traces else TOKENS_A_REPORT
    return min(mean, TOKENS_A_REPORT) / 2


def means(values: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """What the mean of ``values`` (shape: rows) may be at least and at most: two arrays of `DRAWS`.

    They are means of rows drawn anew. Long traces are few and weigh much, and rows that happen to
    have too few of them know nothing of it: the second array counts one more row that is as long
    as the longest. So ranges hold the truth nearly as often as they say for lengths like QwQ's
    (tested); but what none of 200 rows does, up to 1.5 % of all may still do.
    """

    def drawn(values: Any) -> Any:
        return values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)

    return drawn(values), drawn(np.append(values, values.max()))


def of_all(values: Any, rows: int) -> Interval:
    """The sum over ``rows`` rows, of which ``values`` are some (see `means`)."""
    low, high = means(values, np.random.default_rng(0))
    return Interval.of(float(values.mean()), low, high).times(rows)


def _project(
    config: RunConfig,
    sample: Sequence[Sequence[dict[str, Any]]],
    speed: Speed | None,
    engine_pool: EnginePool,
    rows: int,
) -> Projection:
    rng = np.random.default_rng(0)
    of_rows = np.array([[sum(t[k] or 0 for t in row) for k in TOKENS] for row in sample], float)
    prompt, kept, spent = of_rows[:, 0], of_rows[:, 1:3].sum(axis=1), of_rows[:, 1:].sum(axis=1)
    prices = config.prices
    api = None
    if prices.million_input_tokens is not None and prices.million_output_tokens is not None:
        each, all_of_it = prices.million_input_tokens / 1e6, prices.million_output_tokens / 1e6
        api = of_all(prompt * each + kept * all_of_it, rows)
    found = Projection(rows, of_all(prompt, rows), of_all(spent, rows), api_cost=api)
    if speed is None:
        return found
    drawn_rates = speed.drawn(rng)
    # With more sequences an engine is faster, but not more so than there are more of them.
    could_run = min(engine_pool.slots, rows * config.policy.n / engine_pool.replicas)
    faster = rng.uniform(1, max(1.0, could_run / speed.running), DRAWS)
    longest = float(np.quantile([_spent(trace) for row in sample for trace in row], 0.99))

    def seconds(mean: Any, rate: Any, faster: Any) -> Any:
        body = rows * mean / (rate * faster * engine_pool.replicas)
        tail = longest * speed.running / rate  # no sequence is faster because more run beside it
        return (speed.ready_seconds + np.maximum(body, tail) + np.minimum(body, tail) / 2) * bool(
            rows
        )

    low, high = (seconds(mean, drawn_rates, faster) for mean in means(spent, rng))
    taken = Interval.of(
        float(seconds(spent.mean(), speed.tokens_per_second, faster.mean())), low, high
    )
    hours = taken.times(engine_pool.gpu_hours(1))
    cost = None if engine_pool.gpu_hour is None else hours.times(engine_pool.gpu_hour)
    return Projection(
        rows, found.prompt_tokens, found.output_tokens, taken, hours, cost, found.api_cost
    )


def _spent(trace: dict[str, Any]) -> int:
    return sum(trace[name] or 0 for name in TOKENS[1:])


def _lengths(traces: Sequence[dict[str, Any]], name: str) -> tuple[float, ...]:
    found = [trace[name] for trace in traces if trace["state"] != State.FAILED]
    return tuple(np.quantile(found, LENGTHS).tolist()) if found else ()


def _advice(config: RunConfig, traces: Sequence[dict[str, Any]]) -> Iterator[str]:
    def share(count: int) -> float:
        return count / len(traces)

    states = Counter(trace["state"] for trace in traces)
    cut = sum(t["state"] == State.TRUNCATED or t["closed_by"] == ClosedBy.BUDGET for t in traces)
    circles = sum(t["state"] == State.LOOPED or t["closed_by"] == ClosedBy.LOOP for t in traces)
    changes = []
    if share(cut) > SOME:
        changes.append(
            f"the budget cuts {share(cut):.0%} of the traces short: raise sampling.max_tokens "
            f"({config.policy.max_tokens:,}) or thinking.budget_tokens "
            f"({config.thinking.budget_tokens or 'what max_tokens leaves'})"
        )
    if share(circles) > SOME:
        changes.append(
            f"{share(circles):.0%} of the traces go in circles to the end: a larger "
            "thinking.loop_retries or sampling.presence_penalty gets more of them out"
        )
    if share(states[State.UNPARSED]) > MANY:
        changes.append(
            f"{share(states[State.UNPARSED]):.0%} of the answers are not in answer.format "
            f"{config.answer.format}: do the prompts, or prompt.suffix, ask for it?"
        )
    yield from changes
    if changes:
        yield (
            "with other settings take another output.path (a run keeps those that it began with), "
            "or retry such traces at the end"
        )
    if states[State.FAILED]:
        [(why, _)] = Counter(reason(t["error"]) for t in traces if t["error"]).most_common(1)
        yield f"{share(states[State.FAILED]):.1%} have failed, most of them so: {why}"
    if config.input.dedupe:
        yield (
            "rows with the same prompt are generated once (input.dedupe), which is not counted in: "
            "it will be less"
        )


def _projection_lines(found: Projection, engine_pool: EnginePool) -> Iterator[str]:
    yield f"  {'prompt':<10} {_told(found.prompt_tokens, 1e6)} million tokens"
    yield f"  {'output':<10} {_told(found.output_tokens, 1e6)} million tokens"
    if found.seconds is not None and found.gpu_hours is not None:
        times = (found.seconds.mid, found.seconds.low, found.seconds.high)
        mid, low, high = map(clock, times)
        of = f"{engine_pool.replicas:,} engines" if engine_pool.replicas > 1 else "one engine"
        yield f"  {'time':<10} {mid} ({low} to {high}) with {of}"
        yield f"  {'GPU-hours':<10} {_told(found.gpu_hours)}"
    if found.cost is not None:
        yield f"  {'cost':<10} {_told(found.cost)} at {engine_pool.gpu_hour:,} for a GPU-hour"
    if found.api_cost is not None:
        yield f"  {'API':<10} {_told(found.api_cost)} at the prices of the API"


def _told(found: Interval, unit: float = 1) -> str:
    mid, low, high = (_number(value / unit) for value in (found.mid, found.low, found.high))
    return f"{mid} ({low} to {high})"


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
