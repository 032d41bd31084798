"""The progress of a run, for people: live figures on a terminal, lines of JSON in a log."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import Figures
from pipeline.monitor.history import Show, following
from pipeline.printing import json_text, print_error, printable
from pipeline.time_limits import LINE_SECONDS

REFRESH_SECONDS = 0.5
LOUD = "bold red"


@contextmanager
def watch(
    coordinator: CoordinatorClient,
    rows: int,  # noqa: ARG001 (the coordinator's own number goes with the time)
    tier: str,
) -> Iterator[None]:
    """Show the coordinator's figures while the body runs."""
    console = Console(stderr=True)
    with _live(console) if console.is_terminal else _lines() as show:  # noqa: SIM117 (show)
        with following(coordinator, tier, show, lambda _: REFRESH_SECONDS):
            yield


@contextmanager
def _live(console: Console) -> Iterator[Show]:
    with Live(console=console, refresh_per_second=1 / REFRESH_SECONDS) as live:
        yield lambda figures, _last: live.update(panel(figures))


@contextmanager
def _lines() -> Iterator[Show]:
    printed, warned = float("-inf"), set[str]()

    def show(figures: Figures, last: bool) -> None:
        nonlocal printed
        for name, warning in figures.warnings:
            if name not in warned:
                warned.add(name)
                print_error(f"warning: {warning}")
        if last or figures.seconds - printed >= LINE_SECONDS:
            printed = figures.seconds
            print_error(json_text(figures.to_json()))

    yield show


def panel(figures: Figures) -> Group:
    """The figures as a terminal shows them."""
    label = f"rows ({figures.tier})" if figures.tier else "rows"
    head = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=max(1, figures.rows_to_do), completed=figures.rows, width=40)
    head.add_row(printable(f"{label:<10}"), bar, f"{figures.rows:,}/{figures.rows_to_do:,}")
    if figures.ready_seconds is None:
        return Group(head, Text("starting engines"))
    states = ", ".join(f"{count:,} {state}" for state, count in sorted(figures.states.items()))
    lines = [*figures.lines(), f"{'states':<10} {states or '-'}"]
    warnings = [f"{'warning':<10} {warning}" for _, warning in figures.warnings]
    texts = Text(printable("\n".join(lines))), Text(printable("\n".join(warnings)), LOUD)
    return Group(head, *texts[: 2 if warnings else 1])
