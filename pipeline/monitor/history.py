"""The record of a run: its figures over time, kept beside its output for `status` and `report`."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby

from pipeline.errors import QwqBatchError
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import Figures, Snapshot
from pipeline.monitor.limits import RunObserver
from pipeline.output.layout import RECORD
from pipeline.storage import Storage
from pipeline.time_limits import FOLLOWER_JOIN_SECONDS, LINE_SECONDS

logger = logging.getLogger(__name__)
# A line every `LINE_SECONDS`, but more often in the first ten minutes: short runs get a record too.
FIRST_LINE_SECONDS, LINES_PER_ELAPSED = 1.0, 20
# Each line rewrites its file, so files stay short.
LINES_A_FILE = 120
LINES = ".jsonl"

# Gets the figures, and whether they are the last.
Show = Callable[[Figures, bool], None]


def figures_of(snapshot: Snapshot, rows: int, tier: str, seconds: float) -> Figures:
    """The figures ``seconds`` after the coordinator started; ``rows``: to do in this tier."""
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
            "recomputed": totals.recomputed_tokens,
            "drafted": totals.drafted_tokens,
            "accepted": totals.accepted_tokens,
            "probe": totals.probe_tokens,
        },
        preemptions=totals.preemptions,
        states=dict(totals.states),
        think_lengths=dict(totals.think_lengths),
        engines=snapshot.engines,
        engine_pool=snapshot.engine_pool,
        hung=snapshot.hung,
        control=snapshot.control,
        engine_seconds=round(totals.engine_seconds, 1),
    )


@contextmanager
def following(
    coordinator: CoordinatorClient,
    rows: int,
    tier: str,
    show: Show,
    pause: Callable[[float], float],
) -> Iterator[None]:
    """Show the coordinator's figures while the body runs, in another thread, and once at its end.

    ``pause``: from the seconds since the start, the seconds until the next look.
    """
    started, over = time.monotonic(), threading.Event()

    def follow() -> None:
        last = False
        while not last:
            last = over.wait(pause(time.monotonic() - started))
            try:
                snapshot = coordinator.snapshot()
            except Exception:  # the coordinator's node may be gone; the run goes on without figures
                logger.debug("no figures from the coordinator", exc_info=True)
            else:
                seconds = time.monotonic() - started
                show(figures_of(snapshot, rows, tier, seconds), last)

    thread = threading.Thread(target=follow, daemon=True, name="figures")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=FOLLOWER_JOIN_SECONDS)


class Recorder:
    """Writes lines of figures; a line that can't be written costs a figure, never a row."""

    def __init__(self, store: Storage) -> None:
        self._store, self._lines, self._file = store, list[str](), 0
        self._stem = f"{RECORD}/{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:4]}"

    def add(self, figures: Figures, last: bool) -> None:
        """Write a line."""
        self._lines.append(json.dumps(figures.to_json()) + "\n")
        try:
            name = f"{self._stem}.{self._file:05}{LINES}"
            self._store.put(name, "".join(self._lines).encode())
        except QwqBatchError as error:
            logger.warning("the run's figures could not be written: %s", error)
        if len(self._lines) >= LINES_A_FILE:
            self._lines, self._file = [], self._file + 1


def recorded(observer: RunObserver, store: Storage) -> RunObserver:
    """``observer``, with the figures written to ``store`` as well."""

    @contextmanager
    def observe(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
        record = Recorder(store).add
        with (
            observer(coordinator, rows, tier),
            following(coordinator, rows, tier, record, seconds_to_next_line),
        ):
            yield

    return observe


def seconds_to_next_line(seconds: float) -> float:
    """The pause before the next line, ``seconds`` after the start of a run."""
    return min(LINE_SECONDS, max(FIRST_LINE_SECONDS, seconds / LINES_PER_ELAPSED))


def last_figures(store: Storage) -> Figures | None:
    """The latest figures of an output; None if there are none."""
    names = [info.name for info in store.files(RECORD)]
    return next(reversed(list(_figures(store, names[-1:]))), None)


def all_figures(store: Storage) -> Iterator[list[Figures]]:
    """All figures of an output, by run (and tier), each in order of time."""
    names = [info.name for info in store.files(RECORD)]
    for _, files in groupby(names, key=lambda name: name.removesuffix(LINES).rpartition(".")[0]):
        if figures := list(_figures(store, files)):
            yield figures


def _figures(store: Storage, names: Iterable[str]) -> Iterator[Figures]:
    """The figures in files; lines that can't be read are skipped."""
    for data in store.read_all(names):
        for line in data.decode(errors="replace").splitlines():
            try:
                yield Figures.from_json(json.loads(line))
            except (ValueError, TypeError, KeyError):
                continue
