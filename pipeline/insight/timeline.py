"""Recorded figures of runs as points over time, for the charts of a report; no I/O."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from pipeline.insight.charts import Cell, line, strip
from pipeline.monitor.figures import Figures, clock

MAX_POINTS, MAX_ENGINES = 240, 64

Runs = Sequence[Sequence[Figures]]


class Timeline:
    """All runs joined end to end, without the time between them; times in seconds.

    ``rates``: (time, output tokens per second of all engines). ``rows``: (time, rows done).
    ``engines``: load over time, an entry for each engine of the largest run. ``slots_used`` and
    ``slots_available``: slot-seconds since the engines were ready. ``sizes``: how many engines were
    ready, over time, where their number is a range.
    """

    def __init__(self, runs: Runs) -> None:
        self.runs = len(runs)
        self.seconds, self.rows_done = 0.0, 0
        self.rates, self.rows = list[tuple[float, float]](), list[tuple[float, float]]()
        self.engines: list[list[Cell]] = []
        self.slots_used = self.slots_available = 0.0
        total = sum(run[-1].seconds for run in runs)
        for run in runs:
            self._add(_thinned(run, max(2, int(MAX_POINTS * run[-1].seconds / total))))
        self.tail_seconds = _tail_seconds(runs[-1])
        self.sizes = [len(now.engines) for run in runs for now in run if _is_elastic_at_work(now)]
        self.preemptions = sum(run[-1].preemptions for run in runs)
        self.tokens = sum((Counter(run[-1].tokens) for run in runs), Counter[str]())

    def _add(self, run: Sequence[Figures]) -> None:
        numbers: dict[str, int] = {}
        self.rates.append((self.seconds, 0.0))
        for last, now in pairwise([Figures("", 0.0, 0, 0), *run]):
            at = self.seconds + now.seconds
            tokens = now.tokens["spent"] - last.tokens.get("spent", 0)
            self.rates.append((at, tokens / max(1e-9, now.seconds - last.seconds)))
            self.rows.append((at, self.rows_done + now.rows))
            self._add_engines(last, now, numbers)
            if now.ready_seconds is not None:
                seconds = max(0.0, now.seconds - max(last.seconds, now.ready_seconds))
                self.slots_used += seconds * now.running
                self.slots_available += seconds * now.slots
        self.seconds += run[-1].seconds
        self.rows_done += run[-1].rows

    def _add_engines(self, last: Figures, now: Figures, numbers: dict[str, int]) -> None:
        """Add a cell for each engine; ``numbers``: the entry of each engine's name in this run."""
        for engine in now.engines:
            number = numbers.setdefault(engine.name, len(numbers))
            if number == len(self.engines):
                self.engines.append([])
            tooltip = f"{engine.name}: {engine.running:,} running, {engine.waiting:,} waiting"
            share = engine.running / now.engine_pool.slots
            start, stop = self.seconds + last.seconds, self.seconds + now.seconds
            self.engines[number].append(Cell(start, stop, share, tooltip))

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
        if self.runs > 1:
            yield f"{self.runs:,} runs (or tiers), one after the other"
        if len(self.engines) > MAX_ENGINES:
            yield f"only {MAX_ENGINES} of {len(self.engines):,} engines are shown"


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


def _tail_seconds(run: Sequence[Figures]) -> float:
    """Seconds at the end of ``run`` in which less than half of the slots ever used were in use."""
    most = max(figures.running for figures in run)
    busy = [figures.seconds for figures in run if figures.running * 2 >= most > 0]
    return run[-1].seconds - busy[-1] if busy else 0.0


def _thinned(run: Sequence[Figures], max_points: int) -> list[Figures]:
    step = -(-len(run) // max_points)
    return [*run[:-1:step], run[-1]]
