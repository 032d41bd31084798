"""Project a pilot to the whole run: tokens, time, GPU-hours and money, with ranges; no I/O."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import PricesConfig
from pipeline.engines import engine_type
from pipeline.insight.engine_speed import Speed, measure_speed
from pipeline.insight.projection import (
    BOOTSTRAP_DRAWS,
    Array,
    Interval,
    Projection,
    bootstrap_means,
    bootstrap_total,
)
from pipeline.insight.text import error_kind
from pipeline.monitor.figures import EnginePool, Figures
from pipeline.monitor.limits import pool_of
from pipeline.reasoning.early_answer import ENOUGH_COMPARED
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State

TOKEN_COLUMNS = (
    "prompt_tokens", "think_tokens", "answer_tokens", "wasted_tokens", "asked_tokens",
    "probe_tokens",
)  # fmt: skip
LENGTH_QUANTILES = (0.5, 0.95, 0.99)
# Shares of all traces from which on advice is given.
NOTABLE_SHARE, LARGE_SHARE = 0.03, 0.1

Trace = dict[str, Any]


@dataclass(frozen=True)
class WithoutEarly:
    """What the whole run would take without early answers, from the control group of the pilot.

    ``rows``: of the control group. ``whole`` and ``saving``, the share of the tokens that closing
    thinking early saves: None if these are too few.
    """

    rows: int
    whole: Projection | None = None
    saving: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "control_rows": self.rows,
            "whole": self.whole and self.whole.to_json(),
            "saving": self.saving and vars(self.saving),
        }

    def lines(self, engine_pool: EnginePool) -> Iterator[str]:
        """The projection as a person reads it."""
        if self.whole is None or self.saving is None:
            yield (
                f"\nwithout early answers: no projection from {self.rows:,} control rows "
                f"({ENOUGH_COMPARED} are enough: a larger pilot has more)"
            )
            return
        yield (
            f"\nwithout early answers: {self.whole.rows:,} rows, projected from {self.rows:,} "
            "control rows, which think to their end"
        )
        yield from self.whole.lines(engine_pool)
        mid, low, high = (
            f"{100 * share:.0f}" for share in (self.saving.mid, self.saving.low, self.saving.high)
        )
        yield f"  {'saving':<10} closing early saves {mid}% ({low} to {high}%) of a row's tokens"


@dataclass(frozen=True)
class Estimate:
    """A pilot's outcome and its projections.

    ``rows`` and ``traces``: size of the pilot. ``lengths``: tokens at each of `LENGTH_QUANTILES`,
    by kind (think, answer). ``whole`` and ``left``: projections for all rows and those left.
    ``without_early``: None if the run has no early answers.
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
    without_early: WithoutEarly | None = None

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
        } | (
            {}
            if self.without_early is None
            else {"without_early_answers": self.without_early.to_json()}
        )

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
        if self.without_early is not None:
            yield from self.without_early.lines(self.engine_pool)
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
        _without_early(config, engine_pool, sample, speed, rows),
    )


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
    prompt, think, answer, wasted, asked, probes = np.array(sums, float).T
    generated = think + answer + wasted + asked + probes
    seconds = gpu_hours = cost = with_fewest = None
    if speed is not None:
        seconds = _seconds(config.sampling.n, engine_pool, sample, speed, rows)
        if engine_pool.is_elastic:
            fewest = replace(engine_pool, replicas=engine_pool.least)
            with_fewest = _seconds(config.sampling.n, fewest, sample, speed, rows)
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
        with_fewest,
    )


def _without_early(
    config: RunConfig,
    engine_pool: EnginePool,
    sample: Sequence[Sequence[Trace]],
    speed: Speed | None,
    rows: int,
) -> WithoutEarly | None:
    """What ``rows`` rows take without early answers; None if the run has none."""
    if config.thinking.early_answer is None:
        return None
    control = [row for row in sample if any(trace["control"] for trace in row)]
    if len(control) < ENOUGH_COMPARED:
        return WithoutEarly(len(control))
    full = [[{**trace, "probe_tokens": 0} for trace in row] for row in control]
    of_full, of_early = (
        np.array([sum(map(tokens, row)) for row in each], float)
        for each, tokens in ((full, _generated_tokens), (control, _tokens_if_closed))
    )
    chosen = np.random.default_rng(0).integers(0, len(control), (BOOTSTRAP_DRAWS, len(control)))
    draws = 1 - of_early[chosen].sum(axis=1) / np.maximum(1, of_full[chosen].sum(axis=1))
    saving = 1 - float(of_early.sum()) / max(1.0, float(of_full.sum()))
    return WithoutEarly(
        len(control),
        _project(config, engine_pool, full, speed, rows),
        Interval.from_draws(saving, draws, draws),
    )


def _tokens_if_closed(trace: Trace) -> int:
    """What a trace of the control group would take if its thinking were closed early."""
    early = trace["early_tokens"]
    saved = 0 if early is None else max(0, trace["think_tokens"] - early)
    return _generated_tokens(trace) - saved


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
        column = config.input.sampling_column
        own = "" if column is None else f", or what rows set in column {column}"
        yield (
            f"{cut:.0%} of the traces run out of tokens: raise sampling.max_tokens "
            f"({config.sampling.max_tokens:,}{own}) or thinking.budget_tokens ({budget})"
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
