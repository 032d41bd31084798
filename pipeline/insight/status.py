"""The progress of a run, read from its output alone, from any machine."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import OutputError
from pipeline.monitor.figures import Figures, clock, joined
from pipeline.monitor.history import latest_figures
from pipeline.output import engine_starts
from pipeline.output.claims import rows_held
from pipeline.output.engine_starts import EngineStart
from pipeline.output.lease import Holder, holder
from pipeline.output.ledger import Ledger
from pipeline.output.parts import SAMPLES
from pipeline.output.passes import plan_pass, plan_run
from pipeline.output.processes import SeenProcess
from pipeline.output.summary import Summary, recorded_parts, summarize
from pipeline.output.workers import present
from pipeline.planning import Pass
from pipeline.storage import Storage
from pipeline.time_limits import FRESH_SECONDS


@dataclass(frozen=True)
class WorkerStatus:
    """One of several drivers that share an output; ``rows``: that it has claimed and not done."""

    process: SeenProcess
    rows: int

    def __str__(self) -> str:
        seen = clock(self.process.silent_seconds)
        state = (
            "at work" if self.process.is_at_work else f"silent, its last sign of life {seen} ago"
        )
        return f"{self.process}: {state}, has {self.rows:,} rows"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self.process), "rows": self.rows}


@dataclass(frozen=True)
class Status:
    """A run as its output shows it.

    ``rows`` and ``rows_durable``: of the input, and of these the rows in finished parts and blocks.
    ``open_passes``: retries and additional samples that are not finished. ``summary``: of the
    finished parts. ``figures``: the last recorded ones, those of all workers together, None if
    older than `FRESH_SECONDS`. ``age_seconds``: age of the last recorded figures, None if there are
    none. ``starts``: those of engines since the last driver, or the first living worker, began.
    ``workers``: by name.
    """

    url: str
    settings: dict[str, Any]
    holder: Holder | None
    rows: int
    rows_durable: int
    parts: int
    parts_done: int
    open_passes: tuple[Pass, ...]
    summary: Summary
    figures: Figures | None
    age_seconds: float | None
    starts: tuple[EngineStart, ...] = ()
    workers: Mapping[str, WorkerStatus] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether a driver seems to hold the output, or workers to share it."""
        return self._is_shared or (self.holder is not None and self.holder.is_at_work)

    @property
    def _is_shared(self) -> bool:
        return any(worker.process.is_at_work for worker in self.workers.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        early = self.summary.early
        return {
            "output": self.url,
            "model": self.settings.get("model.path"),
            "running": self.is_running,
            "workers": [worker.to_json() for worker in self.workers.values()],
            "rows": self.rows,
            "rows_durable": self.rows_durable,
            "parts": self.parts,
            "parts_done": self.parts_done,
            "open_passes": [run_pass.number for run_pass in self.open_passes],
            "states": dict(self.summary.states),
            **({} if early is None else {"early_answers": early.to_json()}),
            "figures": None if self.figures is None else self.figures.to_json(),
            "figures_age_seconds": self.age_seconds,
            "engine_starts": [asdict(start) for start in self.starts],
        }

    def lines(self) -> Iterator[str]:
        """The status as a person reads it."""
        yield f"{'output':<10} {self.url}"
        yield f"{'model':<10} {self.settings.get('model.path')}"
        yield f"{'driver':<10} {self._driver()}"
        for worker in self.workers.values():
            yield f"{'worker':<10} {worker}"
        share = self.rows_durable / max(1, self.rows)
        yield (
            f"{'rows':<10} {self.rows_durable:>9,} of {self.rows:,} are durable ({share:.1%}), "
            f"{self.parts_done:,} of {self.parts:,} parts finished"
        )
        for run_pass in self.open_passes:
            yield f"{'pass':<10} {run_pass.number:>9} is not finished: {_purpose(run_pass)}"
        yield from self.summary.lines()
        if self.figures is not None and self.is_running:
            yield from self.figures.lines()
        yield from self._engine_lines()
        told = self.summary.early is not None and self.summary.early.warning is not None
        for name, warning in () if self.figures is None else self.figures.warnings:
            if name != "agreement" or not told:
                yield f"{'warning':<10} {warning}"

    def _engine_lines(self) -> Iterator[str]:
        """The engines that started, those that found the same together, and those that did not."""
        alike = Counter(start.summary for start in self.starts if start.reason is None)
        for summary, count in alike.items():
            yield f"{'started':<10} {count} x {summary}"
        failed = Counter((s.host, s.reason) for s in self.starts if s.reason is not None)
        for (host, reason), count in failed.items():
            last = next(s.at for s in reversed(self.starts) if (s.host, s.reason) == (host, reason))
            told = str(reason).replace("\n", f"\n{'':<11}")
            yield f"{'no start':<10} {count} x on {host}, the last at {last}: {told}"

    def _driver(self) -> str:
        if self._is_shared:
            return "none alone: workers share the output"
        if self.holder is None:
            return "none at work"
        if self.holder.released:
            return f"not running; the last one, {self.holder}, has ended"
        if not self.holder.is_at_work:
            silent = clock(self.holder.silent_seconds)
            return (
                f"not running; the last one, {self.holder}, gave its last sign of life {silent} ago"
            )
        return f"running: {self.holder}"


def _purpose(run_pass: Pass) -> str:
    if not run_pass.is_retry:
        return "more samples"
    foreign = ["foreign scripts"] if run_pass.foreign else []
    return f"a retry of {', '.join([*run_pass.states, *foreign])}"


def status(url: str) -> Status:
    """The status of the output at ``url``; raises `OutputError` if no run has written it."""
    store = Storage(url)
    ledger = Ledger(store)
    manifest = ledger.manifest()
    if manifest is None:
        raise OutputError(f"{url} is not the output of a run (it has no manifest)")
    settings = manifest["settings"]
    parts = recorded_parts(ledger, settings["output.rows_per_part"])
    plan, listing = plan_run(ledger, parts), ledger.listing()
    finished = listing.finished_parts()
    driver, working = holder(store), _workers(store)
    open_passes = tuple(p for p in ledger.passes(listing) if p.number not in listing.closed)
    more = (plan_pass(ledger, parts, p) for p in open_passes if not p.is_retry)
    last = _last_figures(store, working, plan.rows_todo or sum(each.rows_todo for each in more))
    age = None if last is None else _age(last)
    return Status(
        store.url,
        settings,
        driver,
        plan.rows,
        plan.rows - plan.rows_todo,
        len(parts),
        plan.parts_done,
        open_passes,
        summarize(
            store,
            [p for p in parts if p.name in finished],
            settings[SAMPLES],
            floor=None if last is None else last.control,
        ),
        last if age is not None and age < FRESH_SECONDS else None,
        age,
        tuple(_since(_began(driver, working.values()), engine_starts.read(store))),
        working,
    )


def _workers(store: Storage) -> dict[str, WorkerStatus]:
    rows = rows_held(store)
    return {name: WorkerStatus(each, rows[name]) for name, each in present(store).items()}


def _last_figures(
    store: Storage, working: Mapping[str, WorkerStatus], rows_left: int
) -> Figures | None:
    """The last figures; while there are living workers, the fresh ones of these together."""
    latest = latest_figures(store)
    living = {name for name, worker in working.items() if worker.process.is_at_work}
    theirs = [f for name, f in latest.items() if name in living and _age(f) < FRESH_SECONDS]
    return joined(theirs, rows_left) if theirs else next(reversed(latest.values()), None)


def _age(figures: Figures) -> float:
    return time.time() - datetime.fromisoformat(figures.at).timestamp()


def _began(driver: Holder | None, working: Iterable[WorkerStatus]) -> datetime:
    """When the first living worker began, else the last driver; long ago if there was none."""
    began = [_time(worker.process.since) for worker in working if worker.process.is_at_work]
    return min(began) if began else _time("" if driver is None else driver.since)


def _since(began: datetime, starts: Iterable[EngineStart]) -> Iterator[EngineStart]:
    return (start for start in starts if _time(start.at) >= began)


def _time(text: str) -> datetime:
    """A time that a file tells; long ago if the file is damaged."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)
