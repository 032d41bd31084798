"""How a run goes, for people: a live bar on a terminal, plain lines in a log."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline.telemetry import Snapshot

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
LOG_SECONDS = 30.0


@contextmanager
def watch(board: Any, rows: int, lane: str) -> Iterator[None]:
    """Show the board's figures while the body runs; ``rows`` are to be done in ``lane``."""
    what = f"rows ({lane})" if lane else "rows"
    console = Console(stderr=True)
    with _live(console, rows, what) if console.is_terminal else _lines(rows, what) as show:
        stop = threading.Event()
        thread = threading.Thread(target=_poll, args=(board, show, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=10)


def figures(snapshot: Snapshot, rows: int, seconds: float) -> str:
    """Tokens/s, running requests and the time that is left, as one line."""
    if snapshot.ready_seconds is None:
        return "starting engines"
    working = max(1e-9, seconds - snapshot.ready_seconds)
    rate = snapshot.totals.output_tokens / working
    done = snapshot.totals.rows
    left = f"ETA {_clock(working * (rows - done) / done)}" if done else "ETA -"
    return f"{rate:,.0f} tok/s, {snapshot.running:,} running, {left}"


Show = Callable[[Snapshot, float, bool], None]


@contextmanager
def _live(console: Console, rows: int, what: str) -> Iterator[Show]:
    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"),
        console=console,
    )  # fmt: skip
    task = bar.add_task("rows", total=rows, figures="starting engines")

    def show(snapshot: Snapshot, seconds: float, _last: bool) -> None:
        line = figures(snapshot, rows, seconds)
        bar.update(task, completed=snapshot.totals.rows, figures=line)

    with bar:
        yield show


@contextmanager
def _lines(rows: int, what: str) -> Iterator[Show]:
    printed = float("-inf")

    def show(snapshot: Snapshot, seconds: float, last: bool) -> None:
        nonlocal printed
        if last or seconds - printed >= LOG_SECONDS:
            printed = seconds
            done = f"{snapshot.totals.rows:,}/{rows:,} {what}"
            print(f"{_clock(seconds)} {done}, {figures(snapshot, rows, seconds)}", file=sys.stderr)

    yield show


def _poll(board: Any, show: Show, stop: threading.Event) -> None:
    started = time.monotonic()
    last = False
    while not last:
        last = stop.wait(POLL_SECONDS)
        try:
            snapshot = ray.get(board.snapshot.remote(), timeout=5)
        except Exception:  # the board's node may be gone; the run is not the worse for it
            logger.debug("no figures from the board", exc_info=True)
        else:
            show(snapshot, time.monotonic() - started, last)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
