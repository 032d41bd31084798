"""Project a pilot to the whole run: tokens, time, GPU-hours and money, with ranges; no I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import PricesConfig
from pipeline.engines import engine_type
from pipeline.insight.engine_speed import Speed, measure_speed
from pipeline.insight.text import error_kind, three_digits
from pipeline.monitor.figures import EnginePool, Figures, clock
from pipeline.monitor.limits import pool_of
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State

BOOTSTRAP_DRAWS = 2000
CONFIDENCE = 0.95
TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens", "wasted_tokens", "asked_tokens")
LENGTH_QUANTILES = (0.5, 0.95, 0.99)
# Shares of all traces from which on advice is given.
NOTABLE_SHARE, LARGE_SHARE = 0.03, 0.1

Array = NDArray[np.float64]
Trace = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """A best estimate (``mid``) and its 95 % range, ``low`` to ``high``."""

    mid: float
    low: float
    high: float

    @classmethod
    def from_draws(cls, mid: float, low_draws: Array, high_draws: Array) -> "Interval":
        """``mid`` with the lower end of ``low_draws`` and the upper end of ``high_draws``.

        Draws are bootstrap values of the same figure (shape: draws).
        """
        low = float(np.quantile(low_draws, (1 - CONFIDENCE) / 2))
        high = float(np.quantile(high_draws, (1 + CONFIDENCE) / 2))
        return cls(mid, min(mid, low), max(mid, high))

    def scaled(self, factor: float) -> "Interval":
        """All three values multiplied by ``factor``."""
        return Interval(self.mid * factor, self.low * factor, self.high * factor)

    def contains(self, value: float) -> bool:
        """Whether ``value`` is in the range."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Projection:
    """What generating ``rows`` rows takes.

    ``output_tokens``: all generated tokens, including those of abandoned attempts. ``seconds``:
    wall time from the request for engines to their end; ``gpu_hours``: of all engines. Both are
    None if no engine speed is recorded. ``cost`` and ``api_cost``: in the currency of ``prices``;
    None without a price.
    """

    rows: int
    prompt_tokens: Interval
    output_tokens: Interval
    seconds: Interval | None = None
    gpu_hours: Interval | None = None
    cost: Interval | None = None
    api_cost: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            name: vars(value) if isinstance(value, Interval) else value
            for name, value in vars(self).items()
        }

    def lines(self, engine_pool: EnginePool) -> Iterator[str]:
        """The projection as a person reads it."""
        yield f"  {'prompt':<10} {_range(self.prompt_tokens.scaled(1e-6))} million tokens"
        yield f"  {'output':<10} {_range(self.output_tokens.scaled(1e-6))} million tokens"
        if self.seconds is not None and self.gpu_hours is not None:
            times = (self.seconds.mid, self.seconds.low, self.seconds.high)
            mid, low, high = map(clock, times)
            several = engine_pool.replicas > 1
            engines = f"{engine_pool.replicas:,} engines" if several else "one engine"
            yield f"  {'time':<10} {mid} ({low} to {high}) with {engines}"
            yield f"  {'GPU-hours':<10} {_range(self.gpu_hours)}"
        if self.cost is not None:
            yield f"  {'cost':<10} {_range(self.cost)} at {engine_pool.gpu_hour:,} per GPU-hour"
        if self.api_cost is not None:
            yield f"  {'API':<10} {_range(self.api_cost)} at the API's prices"


@dataclass(frozen=True)
class Estimate:
    """A pilot's outcome and its projections.

    ``rows`` and ``traces``: size of the pilot. ``lengths``: tokens at each of `LENGTH_QUANTILES`,
    by kind (think, answer). ``whole`` and ``left``: projections for all rows and those left.
    """

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
        return {
            "pilot": {"rows": self.rows, "traces": self.traces, "states": dict(self.states)},
            "lengths": {
                kind: {f"p{share * 100:.0f}": tokens for share, tokens in _by_share(quantiles)}
                for kind, quantiles in self.lengths.items()
            },
            "tokens_per_second_of_an_engine": self.speed and self.speed.tokens_per_second,
            "whole": self.whole.to_json(),
            "left": self.left.to_json(),
            "advice": list(self.advice),
        }

    def lines(self) -> Iterator[str]:
        """The estimate as a person reads it."""
        yield f"{'pilot':<10} {self.rows:>9,} rows, {self.traces:,} traces; part of the run"
        for state in State:
            if count := self.states.get(state, 0):
                yield f"{state:<10} {count:>9,} traces  {count / self.traces:>6.1%}"
        for kind, quantiles in self.lengths.items():
            lengths = [f"P{share * 100:.0f} {n:,.0f}" for share, n in _by_share(quantiles)]
            yield f"{kind:<10} {', '.join(lengths)} tokens"
        if self.speed is not None:
            yield (
                f"{'an engine':<10} {self.speed.tokens_per_second:>9,.0f} tokens/s with "
                f"{self.speed.running:,.0f} of {self.engine_pool.slots:,} slots in use, "
                f"ready after {self.speed.ready_seconds:,.0f} s"
            )
        for name, projection in (("the whole run", self.whole), ("still to do", self.left)):
            yield f"\n{name}: {projection.rows:,} rows"
            yield from projection.lines(self.engine_pool)
        for advice in self.advice:
            yield f"\nadvice: {advice}"


def estimate(
    config: RunConfig,
    sample: Sequence[Sequence[Trace]],
    runs: Iterable[Sequence[Figures]],
    rows: int,
    rows_left: int,
) -> Estimate:
    """Project a pilot to all ``rows`` of the input and to the ``rows_left``.

    ``sample``: the traces of each row of the pilot, at least one row. ``runs``: recorded figures of
    each run, for the engines' speed. Ranges come from resampled rows, because samples of one row
    are not independent.
    """
    runs = list(runs)
    engine_pool = _pool(config, runs)
    traces = [trace for row in sample for trace in row]
    speed = measure_speed(runs, engine_pool)
    lengths = {kind: _length_quantiles(traces, f"{kind}_tokens") for kind in ("think", "answer")}
    return Estimate(
        len(sample),
        len(traces),
        Counter(trace["state"] for trace in traces),
        {kind: quantiles for kind, quantiles in lengths.items() if quantiles},
        speed,
        engine_pool,
        _project(config, engine_pool, sample, speed, rows),
        _project(config, engine_pool, sample, speed, rows_left),
        tuple(_advice(config, traces)),
    )


def bootstrap_means(values: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Bootstrap means of ``values`` (shape: rows), for the lower and upper end of a range.

    Both have the shape (draws,). The second includes one more row as long as the longest: long
    traces are rare and weigh much, and a sample with too few of them underestimates the mean. With
    it, ranges reach nearly their nominal coverage for lengths like QwQ's (tested). A behaviour
    absent from 200 rows can still affect 1.5 % of all.
    """

    def resampled(values: Array) -> Array:
        chosen = rng.integers(0, len(values), (BOOTSTRAP_DRAWS, len(values)))
        return np.asarray(values[chosen].mean(axis=1))

    return resampled(values), resampled(np.append(values, values.max()))


def bootstrap_total(values: Array, rows: int) -> Interval:
    """The sum over ``rows`` rows, estimated from the ``values`` of some of them."""
    low, high = bootstrap_means(values, np.random.default_rng(0))
    return Interval.from_draws(float(values.mean()), low, high).scaled(rows)


def _pool(config: RunConfig, runs: Sequence[Sequence[Figures]]) -> EnginePool:
    """The engines of ``config``, with the slots that the last of ``runs`` gave them.

    Slots that are not set follow from the GPUs' memory, which only the cluster knows.
    """
    pool = pool_of(config)
    pools = [run[-1].engine_pool for run in runs if run and run[-1].engine_pool.slots > 0]
    if engine_type(config.engine).has_slots(config.engine) or not pools:
        return pool
    return replace(pool, slots=pools[-1].slots)


def _project(
    config: RunConfig,
    engine_pool: EnginePool,
    sample: Sequence[Sequence[Trace]],
    speed: Speed | None,
    rows: int,
) -> Projection:
    sums = [[sum(t.get(name) or 0 for t in row) for name in TOKEN_COLUMNS] for row in sample]
    prompt, think, answer, wasted, asked = np.array(sums, float).T
    generated = think + answer + wasted + asked
    seconds = gpu_hours = cost = None
    if speed is not None:
        seconds = _seconds(config.sampling.n, engine_pool, sample, speed, rows)
        gpu_hours = seconds.scaled(engine_pool.gpu_hours(1))
        cost = gpu_hours.scaled(engine_pool.gpu_hour) if engine_pool.gpu_hour is not None else None
    return Projection(
        rows,
        bootstrap_total(prompt, rows),
        bootstrap_total(generated, rows),
        seconds,
        gpu_hours,
        cost,
        _api_cost(config.prices, prompt, think + answer, rows),
    )


def _api_cost(prices: PricesConfig, prompt: Array, output: Array, rows: int) -> Interval | None:
    """Price of ``rows`` rows at an API; ``prompt`` and ``output``: tokens of the pilot's rows."""
    if prices.million_input_tokens is None or prices.million_output_tokens is None:
        return None
    input_cost = prompt * prices.million_input_tokens / 1e6
    output_cost = output * prices.million_output_tokens / 1e6
    return bootstrap_total(input_cost + output_cost, rows)


def _seconds(
    samples: int,
    engine_pool: EnginePool,
    sample: Sequence[Sequence[Trace]],
    speed: Speed,
    rows: int,
) -> Interval:
    """Wall time of ``rows`` rows with ``samples`` each on all engines of the pool."""
    rng = np.random.default_rng(0)
    by_row = np.array([sum(map(_generated_tokens, row)) for row in sample], float)
    rates = speed.resample(BOOTSTRAP_DRAWS, rng)
    # More sequences make an engine faster, at most in proportion to their number.
    possible = min(engine_pool.slots, rows * samples / engine_pool.replicas)
    speedups = rng.uniform(1, max(1.0, possible / speed.running), BOOTSTRAP_DRAWS)
    longest = float(np.quantile([_generated_tokens(t) for row in sample for t in row], 0.99))

    def seconds(mean: Any, rate: Any, speedup: Any) -> Any:  # of scalars or of arrays of draws
        body = rows * mean / (rate * speedup * engine_pool.replicas)
        tail = longest * speed.running / rate  # more sequences make none of them faster
        took = speed.ready_seconds + np.maximum(body, tail) + np.minimum(body, tail) / 2
        return took * bool(rows)

    mid = float(seconds(by_row.mean(), speed.tokens_per_second, speedups.mean()))
    low, high = (seconds(mean, rates, speedups) for mean in bootstrap_means(by_row, rng))
    return Interval.from_draws(mid, low, high)


def _generated_tokens(trace: Trace) -> int:
    return sum(trace.get(name) or 0 for name in TOKEN_COLUMNS[1:])


def _length_quantiles(traces: Sequence[Trace], column: str) -> tuple[float, ...]:
    lengths = [trace[column] for trace in traces if trace["state"] != State.FAILED]
    return tuple(np.quantile(lengths, LENGTH_QUANTILES).tolist()) if lengths else ()


def _by_share(quantiles: tuple[float, ...]) -> Iterable[tuple[float, float]]:
    return zip(LENGTH_QUANTILES, quantiles, strict=True)


def _advice(config: RunConfig, traces: Sequence[Trace]) -> Iterator[str]:
    states = Counter(trace["state"] for trace in traces)
    changes = list(_settings_advice(config, traces))
    yield from changes
    if changes:
        yield (
            "a run keeps the settings it started with: to change them, choose another output.path, "
            "or retry these traces at the end"
        )
    if states[State.FAILED]:
        errors = Counter(error_kind(t["error"]) for t in traces if t["error"])
        [(most_common, _)] = errors.most_common(1)
        yield f"{states[State.FAILED] / len(traces):.1%} failed, most of them with: {most_common}"
    if config.input.dedupe:
        yield (
            "the projection ignores input.dedupe: rows with the same prompt are generated once, so "
            "the run will take less"
        )


def _settings_advice(config: RunConfig, traces: Sequence[Trace]) -> Iterator[str]:
    def share(state: State, closed_by: ClosedBy | None = None) -> float:
        matches = (
            t["state"] == state or (closed_by and t["closed_by"] == closed_by) for t in traces
        )
        return sum(map(bool, matches)) / len(traces)

    cut = share(State.TRUNCATED, ClosedBy.BUDGET)
    looped = share(State.LOOPED, ClosedBy.LOOP)
    unparsed = share(State.UNPARSED)
    if cut > NOTABLE_SHARE:
        budget = config.thinking.budget_tokens or "as much as max_tokens leaves"
        yield (
            f"{cut:.0%} of the traces run out of tokens: raise sampling.max_tokens "
            f"({config.sampling.max_tokens:,}) or thinking.budget_tokens ({budget})"
        )
    if looped > NOTABLE_SHARE:
        yield (
            f"{looped:.0%} of the traces still loop at the end: raise thinking.loop_retries or "
            "sampling.presence_penalty to free more of them"
        )
    if unparsed > LARGE_SHARE:
        yield (
            f"{unparsed:.0%} of the answers are not in answer.format {config.answer.format}: check "
            "that the prompts, or prompt.suffix, ask for it"
            + ("" if config.answer.ask_again else ", or set answer.ask_again")
        )


def _range(interval: Interval) -> str:
    mid, low, high = map(three_digits, (interval.mid, interval.low, interval.high))
    return f"{mid} ({low} to {high})"
