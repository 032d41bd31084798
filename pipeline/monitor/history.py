"""What a run was like, moment by moment, kept beside its output for `status` and the report."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import ray

from pipeline.errors import QwqBatchError
from pipeline.monitor.figures import Figures, Snapshot
from pipeline.monitor.limits import RunObserver
from pipeline.output.layout import RECORD
from pipeline.storage import Storage

logger = logging.getLogger(__name__)
# A line each half minute, but more in the first ten minutes, so that short runs have some too.
LINE_SECONDS, FIRST_SECONDS, LINES_OF_ALL = 30.0, 1.0, 20
# A file is written anew with each line.
LINES_A_FILE = 120
LINES = ".jsonl"

# Is given the figures, and whether they are the last.
Show = Callable[[Figures, bool], None]


def figures_of(snapshot: Snapshot, rows: int, tier: str, seconds: float) -> Figures:
    """The figures of the coordinator ``seconds`` after it was made; ``rows``: to do in this tier."""
    totals = snapshot.totals
    return Figures(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        rows=totals.rows,
        rows_to_do=rows,
        tier=tier,
        ready_seconds=snapshot.ready_seconds,
        tokens={
            "prompt": totals.prompt_tokens,
            "output": totals.output_tokens,
            "spent": totals.spent_tokens,
        },
        states=dict(totals.states),
        think_lengths=dict(totals.think_lengths),
        engines=snapshot.loads,
        engine_pool=snapshot.engine_pool,
    )


@contextmanager
def following(
    coordinator: Any, rows: int, tier: str, show: Show, pause: Callable[[float], float]
) -> Iterator[None]:
    """Show the coordinator's figures while the body runs, in another thread, and once at its end.

    ``pause``: how long until the next look, so many seconds after the start.
    """
    started, over = time.monotonic(), threading.Event()

    def look() -> None:
        last = False
        while not last:
            last = over.wait(pause(time.monotonic() - started))
            try:
                snapshot = ray.get(coordinator.snapshot.remote(), timeout=5)
            except Exception:  # the coordinator's node may be gone; the run is not the worse for it
                logger.debug("no figures from the coordinator", exc_info=True)
            else:
                seconds = time.monotonic() - started
                show(figures_of(snapshot, rows, tier, seconds), last)

    thread = threading.Thread(target=look, daemon=True, name="figures")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)


class Recorder:
    """Writes lines of figures; one that can't be written costs a figure, never a row."""

    def __init__(self, store: Storage) -> None:
        self._store, self._lines, self._file = store, list[str](), 0
        self._stem = f"{RECORD}/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"

    def add(self, figures: Figures, last: bool) -> None:
        """Keep a line."""
        self._lines.append(json.dumps(figures.to_json()) + "\n")
        try:
            name = f"{self._stem}.{self._file:05}{LINES}"
            self._store.put(name, "".join(self._lines).encode())
        except QwqBatchError as error:
            logger.warning("the run's figures could not be kept: %s", error)
        if len(self._lines) >= LINES_A_FILE:
            self._lines, self._file = [], self._file + 1


def recorded(watch: RunObserver, store: Storage) -> RunObserver:
    """``watch``, with the figures kept in ``store`` as well."""

    @contextmanager
    def both(coordinator: Any, rows: int, tier: str) -> Iterator[None]:
        keep = Recorder(store).add
        with watch(coordinator, rows, tier), following(coordinator, rows, tier, keep, until_next):
            yield

    return both


def until_next(seconds: float) -> float:
    """How long after ``seconds`` of a run its next line comes."""
    return min(LINE_SECONDS, max(FIRST_SECONDS, seconds / LINES_OF_ALL))


def last_figures(store: Storage) -> Figures | None:
    """The latest line of an output; None if there is none."""
    names = [info.name for info in store.files(RECORD)]
    return next(reversed(list(_figures(store, names[-1:]))), None)


def all_figures(store: Storage) -> Iterator[list[Figures]]:
    """All lines of an output, in order of time, by the run (and tier) that they are of."""
    names = [info.name for info in store.files(RECORD)]
    for _, of_run in groupby(names, key=lambda name: name.removesuffix(LINES).rpartition(".")[0]):
        if lines := list(_figures(store, of_run)):
            yield lines


def _figures(store: Storage, names: Iterable[str]) -> Iterator[Figures]:
    """The lines of files; those that can't be read are passed over."""
    for data in store.read_all(names):
        for line in data.decode(errors="replace").splitlines():
            try:
                yield Figures.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
