"""The record of a run: its figures over time, kept beside its output for `status` and `report`."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby

from pipeline.errors import QwqBatchError
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import Figures, Snapshot
from pipeline.monitor.limits import RunObserver
from pipeline.output.layout import RECORD
from pipeline.storage import Storage
from pipeline.time_limits import FOLLOWER_JOIN_SECONDS, FRESH_SECONDS, LINE_SECONDS

logger = logging.getLogger(__name__)
# A line every `LINE_SECONDS`, but more often in the first ten minutes: short runs get a record too.
FIRST_LINE_SECONDS, LINES_PER_ELAPSED = 1.0, 20
# Each line rewrites its file, so files stay short.
LINES_A_FILE = 120
LINES = ".jsonl"
ID_CHARACTERS = 8

# Gets the figures, and whether they are the last.
Show = Callable[[Figures, bool], None]


def figures_of(snapshot: Snapshot, tier: str, seconds: float) -> Figures:
    """The figures ``seconds`` after the coordinator of ``tier`` started."""
    totals = snapshot.totals
    return Figures(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
        rows=totals.rows,
        rows_to_do=snapshot.rows_to_do,
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
    coordinator: CoordinatorClient, tier: str, show: Show, pause: Callable[[float], float]
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
                show(figures_of(snapshot, tier, seconds), last)

    thread = threading.Thread(target=follow, daemon=True, name="figures")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=FOLLOWER_JOIN_SECONDS)


class Recorder:
    """Writes lines of figures; a line that can't be written costs a figure, never a row.

    ``driver``: whose they are, a short id.
    """

    def __init__(self, store: Storage, driver: str) -> None:
        self._store, self._lines, self._file = store, list[str](), 0
        self._stem = f"{RECORD}/{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{driver}"

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


def recorded(observer: RunObserver, store: Storage, driver: str | None = None) -> RunObserver:
    """``observer``, with the figures written to ``store`` as well; ``driver``: see `Recorder`."""
    driver = driver or uuid.uuid4().hex[:ID_CHARACTERS]

    @contextmanager
    def observe(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
        record = Recorder(store, driver).add
        with (
            observer(coordinator, rows, tier),
            following(coordinator, tier, record, seconds_to_next_line),
        ):
            yield

    return observe


def seconds_to_next_line(seconds: float) -> float:
    """The pause before the next line, ``seconds`` after the start of a run."""
    return min(LINE_SECONDS, max(FIRST_LINE_SECONDS, seconds / LINES_PER_ELAPSED))


def latest_figures(store: Storage) -> dict[str, Figures]:
    """The latest figures of each driver, by its id; of the last to begin come last.

    Without the drivers that wrote none any more when others did, by the clock of ``store``.
    """
    files = store.files(RECORD)
    oldest = max((info.created for info in files), default=0) - FRESH_SECONDS * 1e9
    names = [info.name for info in files if info.created >= oldest]
    latest = dict[str, Figures]()
    for name, data in zip(names, store.read_all(names), strict=True):
        if lines := list(_figures(data)):
            driver = _run_of(name).rpartition("-")[2]
            latest.pop(driver, None)
            latest[driver] = lines[-1]
    return latest


def all_figures(store: Storage) -> Iterator[list[Figures]]:
    """All figures of an output, by run (and tier), each in order of time."""
    names = [info.name for info in store.files(RECORD)]
    for _, files in groupby(names, key=_run_of):
        if figures := [line for data in store.read_all(files) for line in _figures(data)]:
            yield figures


def _run_of(name: str) -> str:
    """The beginning that the files of one run (and tier) have in common."""
    return name.removesuffix(LINES).rpartition(".")[0]


def _figures(data: bytes) -> Iterator[Figures]:
    """The figures in a file; lines that can't be read are skipped."""
    for line in data.decode(errors="replace").splitlines():
        try:
            yield Figures.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
