"""What jobs have in common: a run with a section of their own, and what they make of its traces.

A job's ``output.path`` is a folder of its own: the run's traces are in ``traces`` below it, what
the job makes of them lies beside. The same command again goes on where it stopped, and makes the
rest anew from the traces.
"""

import argparse
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import model_validator

from pipeline.cli import add_overrides, report, warn
from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.monitor.limits import Limits
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.storage import Storage

TRACES = "traces"


class Job(RunConfig):
    """A run's configuration; jobs add a section."""

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> Self:
        return self  # whether sections fit together is asked of `run`, to which the job adds some

    @property
    def run(self) -> RunConfig:
        """The run of the pipeline that the job is made of."""
        return self.as_run()

    def as_run(self, **sections: Mapping[str, Any]) -> RunConfig:
        """The run, its output in `traces`; ``sections`` are what the job decides, key by key."""
        given = self.model_dump(exclude_unset=True, include=set(RunConfig.model_fields))
        for name, settings in {"output": {"path": self.traces}, **sections}.items():
            given[name] = {**given.get(name, {}), **settings}
        return parse_config(given, "the job's run")

    def check_output(self) -> None:
        """Raise `OutputError` if ``output.path`` is itself the output of a run."""
        if Ledger(Storage(self.output.path)).manifest() is not None:
            raise OutputError(
                f"output.path {self.output.path} is the output of a run; a job's is a folder with "
                f"that in {TRACES}: choose another output.path, or move what is there into {TRACES}"
            )

    @property
    def traces(self) -> str:
        """Where the run's traces are."""
        return f"{self.output.path.rstrip('/')}/{TRACES}"


def job_parser(name: str, about: str, retries: bool = True) -> argparse.ArgumentParser:
    """The command line of ``python -m jobs.NAME CONFIG``."""
    parser = argparse.ArgumentParser(prog=f"python -m jobs.{name}", description=about)
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    add_overrides(parser)
    if retries:
        parser.add_argument(
            "--retry", default=[], metavar="STATES", type=lambda text: text.split(","),
            help="do the traces again that ended in these states, such as unparsed,failed",
        )  # fmt: skip
    return parser


def generate(
    config: RunConfig,
    retry: Sequence[str] = (),
    warned: bool = False,
    limits: Limits | None = None,
) -> None:
    """Run what is still to do, or retry, and print the report; raises if rows are missing.

    ``warned``: what is probably not meant has been said already. ``limits``: those of several runs
    together; None: of this one.
    """
    from pipeline.execution import run as flow
    from pipeline.monitor import terminal as progress

    if not warned:
        warn(config)
    started = time.monotonic()
    if retry:
        summary = flow.retry(config, retry, observer=progress.watch)
    else:
        summary = flow.run(config, progress.watch, limits)
    report(summary, config, time.monotonic() - started)


def tables(
    output: str, skip: Container[str] = ()
) -> Iterator[tuple[str, pa.Table, dict[str, str]]]:
    """Each finished part of ``output``: its name, its rows, our column: its name there.

    ``skip``: parts that are left out.
    """
    store = Storage(output)
    for name in sorted(Ledger(store).listing().finished_parts()):
        if name in skip:
            continue
        columns: dict[str, str] = part_metadata(store, name)["columns"]
        with store.open(name) as file:
            yield name, pq.read_table(file), columns
