"""Runs over time: workers at the same time are added up, others follow each other."""

from dataclasses import replace
from datetime import timedelta

import pytest

from pipeline.insight.timeline import Timeline, over_time, placed, seconds_of
from pipeline.monitor.figures import EngineFigures, EnginePool, Figures
from tests.outputs import BEGUN

Run = list[Figures]


def run(name: str, begin: float, seconds: int, slots: int = 10, busy: int | None = None) -> Run:
    """A run of one engine with 100 tokens/s and a row a second; ``busy``: until then, all of it."""
    return [
        Figures(
            at=(BEGUN + timedelta(seconds=begin + at)).isoformat(timespec="seconds"),
            seconds=float(at),
            rows=at,
            rows_to_do=seconds,
            ready_seconds=0.0,
            tokens={"spent": 100 * at},
            engines=[EngineFigures(name, slots if at <= (busy or seconds) else 1)],
            engine_pool=EnginePool(1, 1, slots),
        )
        for at in range(seconds + 1)
    ]


def test_workers_at_the_same_time_are_added_up() -> None:
    timeline = Timeline([run("a", 0, 100), run("b", 40, 100), run("c", 60, 20)])
    assert timeline.seconds == 140
    assert timeline.rows_done == timeline.rows[-1][1] == 220
    rates, rows = dict(timeline.rates), dict(timeline.rows)
    assert [rates[at] for at in (20, 50, 70, 90, 120)] == pytest.approx([100, 200, 300, 200, 100])
    assert [rows[at] for at in (40, 60, 80, 100)] == pytest.approx([40, 80, 140, 180])
    assert [cells[0].tooltip[0] for cells in timeline.engines] == ["a", "b", "c"]
    assert (timeline.engines[1][0].start, timeline.engines[1][-1].stop) == (40, 140)
    assert timeline.slots_used == timeline.slots_available == 2200
    words = "; ".join(timeline.remarks())
    assert "3 runs of several workers, up to 3 at once" in words
    assert seconds_of([run("a", 0, 100), run("b", 40, 100)]) == 140


def test_runs_one_after_the_other_are_joined_without_the_time_between() -> None:
    # The second begins in the second in which the first ends, by times of whole seconds.
    runs = [run("a", 0.7, 50), run("b", 50.1, 50), run("c", 5000, 50)]
    timeline = Timeline(runs)
    assert [len(group) for group in placed(runs)] == [1, 1, 1]
    assert timeline.seconds == seconds_of(runs) == 150
    assert dict(timeline.rates)[120] == pytest.approx(100)
    assert len(timeline.engines) == 1, "they use the same strip"
    assert "3 runs (or tiers), one after the other" in timeline.remarks()


def test_engine_of_a_worker_that_joins_later_gets_a_strip_that_is_free() -> None:
    timeline = Timeline([run("a", 0, 100), run("b", 0, 20), run("c", 30, 20), run("d", 35, 65)])
    names = [sorted({cell.tooltip[0] for cell in cells}) for cells in timeline.engines]
    assert names == [["a"], ["b", "c"], ["d"]]
    assert "4 runs of several workers, up to 3 at once" in "; ".join(timeline.remarks())


def test_tail_is_that_of_all_workers_together() -> None:
    both = [run("a", 0, 100, slots=20, busy=50), run("b", 0, 80, slots=4, busy=80)]
    assert Timeline(both).tail_seconds == 50
    both = [run("a", 0, 100, slots=10, busy=50), run("b", 0, 90, slots=10, busy=80)]
    assert Timeline(both).tail_seconds == 20, "half of all is still in use until then"


def test_a_long_record_is_thinned_and_keeps_its_sums() -> None:
    timeline = Timeline([run("a", 0, 2000), run("b", 1000, 2000)])
    assert len(timeline.rates) < 600
    assert timeline.rows_done == timeline.rows[-1][1] == 4000
    assert max(rate for _, rate in timeline.rates) == pytest.approx(200, rel=0.01)
    assert over_time([]) is None


def test_engine_that_was_replaced_leaves_its_strip_to_the_next() -> None:
    figures = run("a", 0, 50)
    for i in range(30, 51):
        figures[i] = replace(figures[i], engines=[EngineFigures("b", 10), EngineFigures("c", 10)])
    timeline = Timeline([figures])
    names = [sorted({cell.tooltip[0] for cell in cells}) for cells in timeline.engines]
    assert names == [["a", "b"], ["c"]]
