"""Recorded figures of runs as points over time, for the charts of a report; no I/O."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.insight.charts import Cell, line, strip
from pipeline.monitor.figures import Figures, clock

MAX_POINTS, MAX_ENGINES = 240, 64
# Figures tell whole seconds of the time of day.
AT_SECONDS = 1.0

Runs = Sequence[Sequence[Figures]]
Values = NDArray[np.float64]
NOTHING = Figures("", 0.0, 0, 0, tokens={"spent": 0})


@dataclass(frozen=True)
class Placed:
    """A run on the time axis of a report; ``begin``: in seconds."""

    begin: float
    figures: Sequence[Figures]

    @property
    def end(self) -> float:
        """Its end on the axis."""
        return self.begin + self.figures[-1].seconds

    def goes_on_at(self, new: "Placed") -> bool:
        """Whether it is ``new``, or still goes on when ``new`` begins."""
        return new is self or self.begin <= new.begin < self.end - AT_SECONDS

    @cached_property
    def times(self) -> Values:
        """Where its figures are on the axis, and its begin; shape (figures + 1,)."""
        return self.begin + np.array([0.0, *(each.seconds for each in self.figures)])

    def so_far(self, times: Values, values: Sequence[float]) -> Values:
        """The sums ``values`` of its figures at ``times``: 0 before it, its last sum after it."""
        return np.interp(times, self.times, [0.0, *values])

    def running(self, times: Values) -> Values:
        """How many sequences ran at ``times``: 0 before and after it."""
        running = np.array([each.running for each in (*self.figures, NOTHING)], np.float64)
        at = np.searchsorted(self.times[1:], times - 0.01)
        return np.where(times < self.begin, 0.0, running[at])


def placed(runs: Runs) -> list[list[Placed]]:
    """``runs`` by their begin, in groups of those that overlap; without the time between groups.

    Workers run at the same time. By the clocks of their machines, which may differ a little.
    """
    times = [datetime.fromisoformat(run[-1].at).timestamp() - run[-1].seconds for run in runs]
    groups, offset, end = list[list[Placed]](), 0.0, 0.0
    for began, run in sorted(zip(times, runs, strict=True), key=lambda each: each[0]):
        if not groups or began + offset > end - AT_SECONDS:
            groups.append([])
            offset = end - began
        groups[-1].append(Placed(began + offset, run))
        end = max(end, groups[-1][-1].end)
    return groups


class Timeline:
    """All runs on one axis, without the time between them; times in seconds.

    Runs at the same time are added up. ``rates``: (time, output tokens per second of all engines).
    ``rows``: (time, rows done). ``engines``: load over time, an entry for each of the engines that
    there were at once. ``slots_used`` and ``slots_available``: slot-seconds since the engines were
    ready. ``sizes``: how many engines were ready, over time, where their number is a range.
    """

    def __init__(self, runs: Runs) -> None:
        groups = placed(runs)
        every = [run for group in groups for run in group]
        self.runs, self.seconds = len(every), max(run.end for run in every)
        self.rows_done = sum(run.figures[-1].rows for run in every)
        self.most_at_once = max(sum(run.goes_on_at(new) for run in every) for new in every)
        self.engines: list[list[Cell]] = []
        self.slots_used = self.slots_available = 0.0
        total = sum(run.figures[-1].seconds for run in every)
        thinned = [
            Placed(
                run.begin, _thinned(run.figures, int(MAX_POINTS * run.figures[-1].seconds / total))
            )
            for run in every
        ]
        self._add_sums(thinned)
        for run in thinned:
            self._add_slots(run)
        self.tail_seconds = _tail_seconds(groups[-1])
        self.sizes = [len(now.engines) for run in runs for now in run if _is_elastic_at_work(now)]
        self.preemptions = sum(run.figures[-1].preemptions for run in every)
        self.tokens = sum((Counter(run.figures[-1].tokens) for run in every), Counter[str]())

    def _add_sums(self, runs: Sequence[Placed]) -> None:
        times = _all_times(runs)
        tokens, rows = np.zeros_like(times), np.zeros_like(times)
        for run in runs:
            tokens += run.so_far(times, [each.tokens["spent"] for each in run.figures])
            rows += run.so_far(times, [each.rows for each in run.figures])
        rates = [0.0, *(np.diff(tokens) / np.diff(times)).tolist()]
        self.rates = list(zip(times.tolist(), rates, strict=True))
        self.rows = list(zip(times.tolist(), rows.tolist(), strict=True))

    def _add_slots(self, run: Placed) -> None:
        entries: dict[str, int] = {}
        for last, now in pairwise([NOTHING, *run.figures]):
            self._add_engines(run, last, now, entries)
            if now.ready_seconds is not None:
                seconds = max(0.0, now.seconds - max(last.seconds, now.ready_seconds))
                self.slots_used += seconds * now.running
                self.slots_available += seconds * now.slots

    def _add_engines(
        self, run: Placed, last: Figures, now: Figures, entries: dict[str, int]
    ) -> None:
        """Add a cell for each engine; ``entries``: that of each engine's name in this run."""
        start, stop = run.begin + last.seconds, run.begin + now.seconds
        for engine in now.engines:
            if engine.name not in entries:
                others = {entries[each.name] for each in now.engines if each.name in entries}
                entries[engine.name] = self._free_entry(start, others)
            tooltip = f"{engine.name}: {engine.running:,} running, {engine.waiting:,} waiting"
            share = engine.running / now.engine_pool.slots
            self.engines[entries[engine.name]].append(Cell(start, stop, share, tooltip))

    def _free_entry(self, start: float, taken: Collection[int]) -> int:
        """The first entry that has no engine after ``start``, and that is not ``taken``."""
        for number, cells in enumerate(self.engines):
            if number not in taken and cells[-1].stop <= start + AT_SECONDS:
                return number
        self.engines.append([])
        return len(self.engines) - 1

    def remarks(self) -> Iterator[str]:
        """What the charts show, in words."""
        if self.slots_available:
            share = self.slots_used / self.slots_available
            yield f"{share:.0%} of all slots were in use"
        if self.sizes:
            yield f"{min(self.sizes)} to {max(self.sizes)} engines at a time"
        if self.tail_seconds:
            yield f"less than half of them in the last {clock(self.tail_seconds)}"
        if self.preemptions:
            share = self.tokens["recomputed"] / max(1, self.tokens["spent"])
            yield (
                f"KV caches were full {self.preemptions:,} times, so that {share:.1%} of the "
                "tokens were computed again"
            )
        if drafted := self.tokens["drafted"]:
            yield f"{self.tokens['accepted'] / drafted:.0%} of the drafted tokens were accepted"
        if self.most_at_once > 1:
            yield f"{self.runs:,} runs of several workers, up to {self.most_at_once:,} at once"
        elif self.runs > 1:
            yield f"{self.runs:,} runs (or tiers), one after the other"
        if len(self.engines) > MAX_ENGINES:
            yield f"only {MAX_ENGINES} of {len(self.engines):,} engines are shown"


def seconds_of(runs: Runs) -> float:
    """How long there were engines, in seconds; those at the same time count once."""
    return max((run.end for group in placed(runs) for run in group), default=0.0)


def over_time(runs: Runs) -> Mapping[str, Any] | None:
    """Charts of ``runs`` and their labels, for the report's template; None without a record."""
    if not sum(run[-1].seconds for run in runs):
        return None
    timeline = Timeline(runs)
    top, seconds = max(rate for _, rate in timeline.rates), timeline.seconds
    return {
        "rates": line(timeline.rates, seconds, top),
        "top": f"{top:,.0f}",
        "marks": [clock(0), clock(seconds / 2), clock(seconds)],
        "done": line(timeline.rows, seconds, timeline.rows_done or 1),
        "rows": f"{timeline.rows_done:,}",
        "strips": [strip(cells, seconds) for cells in timeline.engines[:MAX_ENGINES]],
        "remarks": "; ".join(timeline.remarks()),
    }


def _is_elastic_at_work(figures: Figures) -> bool:
    return figures.engine_pool.is_elastic and bool(figures.engines)


def _all_times(runs: Sequence[Placed]) -> Values:
    return np.unique(np.concatenate([run.times for run in runs]).round(2))


def _tail_seconds(runs: Sequence[Placed]) -> float:
    """Seconds at the end in which less than half of the slots ever used were in use."""
    times = _all_times(runs)
    running = np.sum([run.running(times) for run in runs], axis=0)
    busy = times[running * 2 >= max(1.0, running.max())]
    return float(times[-1] - busy[-1]) if len(busy) else 0.0


def _thinned(run: Sequence[Figures], max_points: int) -> list[Figures]:
    step = -(-len(run) // max(2, max_points))
    return [*run[:-1:step], run[-1]]
