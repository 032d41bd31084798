"""Figures of a run: lengths by bins, the time that is left, what a log line holds."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitor.figures import (
    EngineFigures,
    EnginePool,
    Figures,
    bin_floor,
    length_bin,
    quantile,
    sparkline,
)
from pipeline.reasoning.early_answer import ControlGroup

LENGTHS = st.lists(st.integers(0, 40_000), min_size=1)


@given(st.integers(1, 131_072))
def test_a_bin_holds_its_lengths(tokens: int) -> None:
    number = length_bin(tokens)
    assert bin_floor(number) <= tokens * 1.0001
    assert tokens < bin_floor(number + 1) * 1.0001


@given(LENGTHS, st.sampled_from([0.5, 0.95, 0.99]))
def test_quantiles_are_right_to_a_bin(lengths: list[int], share: float) -> None:
    bins = Counter(map(length_bin, lengths))
    true = sorted(lengths)[min(len(lengths) - 1, max(0, -int(-share * len(lengths) // 1) - 1))]
    found = quantile(bins, share)
    assert found is not None
    assert found == pytest.approx(max(1, true), rel=0.42)
    assert quantile({}, share) is None


def test_sparkline_shows_gaps_and_the_most() -> None:
    assert sparkline({}) == ""
    assert sparkline({3: 1, 5: 8}) == "▁ █"


def figures(**given: object) -> Figures:
    engines = (EngineFigures("a", 40, 10, 0.5, 1000.0), EngineFigures("b", 24, 0, None, 600.0))
    found: dict[str, object] = {
        "at": "2026-01-01T00:00:00+00:00", "seconds": 100.0, "rows": 100, "rows_to_do": 1000,
        "tokens": {"prompt": 1, "output": 500_000, "spent": 640_000}, "states": {"finished": 100},
        "think_lengths": {length_bin(5000): 98, length_bin(20_000): 2}, "engines": engines, **given,
    }  # fmt: skip
    return Figures(**found)  # type: ignore[arg-type]


def test_time_left_has_the_tail_in_it() -> None:
    body = (900 * 5000 - 140_000) / 1600
    longest = (quantile(figures().think_lengths, 0.99) or 0) / (1600 / 64)
    assert figures().eta_seconds == pytest.approx(body + longest / 2)
    # The last row: all tokens are nearly there, the trace is not.
    last = figures(rows=999, engines=(EngineFigures("a", 1, 0, None, 25.0),))
    assert last.eta_seconds is not None
    assert last.eta_seconds >= longest * 0.99
    assert figures(rows=1000).eta_seconds == 0
    assert figures(rows=0, states={}).eta_seconds is None
    assert figures(engines=()).eta_seconds is None


def test_full_kv_caches_are_told_and_warned_of() -> None:
    few = figures(tokens={"spent": 100_000, "recomputed": 4000}, preemptions=3)
    assert "KV cache   3 preemptions; 4.0% of the tokens computed again" in few.lines()
    assert not dict(few.warnings)
    many = figures(tokens={"spent": 100_000, "recomputed": 6000}, preemptions=5)
    [(name, warning)] = many.warnings
    assert name == "KV caches"
    assert warning.startswith("6% of the tokens are computed again")
    assert not dict(figures(tokens={"spent": 100, "recomputed": 60}, preemptions=5).warnings)


def test_accepted_drafts_are_told() -> None:
    told = list(figures(tokens={"spent": 100, "drafted": 80, "accepted": 60}).lines())
    assert "drafts     75% of 80 tokens accepted" in told


def test_probes_are_told() -> None:
    told = list(figures(tokens={"spent": 2000, "probe": 62}).lines())
    assert "probes     3.1% of all generated tokens, for early answers" in told
    assert not any("probes" in line for line in figures().lines())


def test_low_agreement_of_the_control_group_is_warned_of() -> None:
    low, few = ControlGroup(20, 20, 17, 0.9), ControlGroup(19, 19, 10, 0.9)
    assert not dict(figures(control=few).warnings)
    assert not dict(figures(control=ControlGroup(20, 20, 18, 0.9)).warnings)
    [(name, warning)] = figures(control=low).warnings
    assert name == "agreement"
    assert warning.startswith("LOW AGREEMENT: only 17 of 20 early answers")
    assert warning.endswith("other rows are still closed early (thinking.early_answer.below: warn)")
    [(_, warning)] = figures(control=ControlGroup(20, 20, 17, 0.9, stops=True)).warnings
    assert warning.endswith("thinking is no longer closed early")
    both = figures(control=low, tokens={"spent": 100_000, "recomputed": 6000})
    assert list(dict(both.warnings)) == ["KV caches", "agreement"]


@pytest.mark.parametrize("control", [None, ControlGroup(30, 30, 29, 0.9, stops=True)])
def test_a_line_is_read_back(control: ControlGroup | None) -> None:
    line = json.loads(json.dumps(figures(control=control).to_json()))
    assert line["eta_seconds"] == figures().eta_seconds
    assert Figures.from_json({**line, "new": 1}) == figures(control=control)
    del line["control"]  # as older versions wrote it
    assert Figures.from_json(line) == figures()


def test_range_of_engines_is_shown_recorded_and_paid_for_by_what_is_there() -> None:
    pool = EnginePool(8, 4, 64, 2.0, 1)
    some = figures(engine_pool=pool, engine_seconds=720.0)
    assert "engines            2 at present, of 1 to 8" in some.lines()
    assert some.slots == 2 * 64
    assert pool.gpu_hours(some.paid_seconds) == pytest.approx(0.8)
    assert pool.cost(some.paid_seconds) == pytest.approx(1.6)
    again = Figures.from_json(json.loads(json.dumps(some.to_json())))
    assert (again.engine_pool, again.engine_seconds) == (pool, 720)


def test_fixed_number_of_engines_is_shown_recorded_and_paid_for_as_ever() -> None:
    pool = EnginePool(8, 4, 64, 2.0)
    some = figures(engine_pool=pool, engine_seconds=720.0)
    assert not [line for line in some.lines() if "at present" in line]
    assert some.slots == 8 * 64
    assert some.paid_seconds == some.seconds
    told = some.to_json()
    assert told["fleet"] == {"replicas": 8, "gpus": 4, "slots": 64, "gpu_hour": 2.0}
    assert "engine_seconds" not in told
