"""What jobs share: a run with a config section of their own, and what they make of its traces.

A job's ``output.path`` is a folder of its own. The run's traces are in ``traces`` below it, and
what the job makes of them beside that. The same command again resumes the run, and makes the rest
anew from the traces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pydantic import model_validator

import pipeline
from pipeline import RunConfig, console, parse_config
from pipeline.errors import OutputError
from pipeline.monitor.limits import Limits
from pipeline.output.ledger import Ledger
from pipeline.output.summary import Summary
from pipeline.storage import Storage

TRACES = "traces"


class Outcome(NamedTuple):
    """What a stage made: rows of its input, rows of its results, and tokens generated for them."""

    rows: int
    results: int
    tokens: int


@dataclass(frozen=True)
class StageKind:
    """A command as a stage of several (`jobs.stages`).

    ``config``: the class of its configuration. ``run``: runs it, and returns the exit code.
    ``results``: the folder in its output that later stages read. ``outcome``: of a stage that has
    ended. ``check(config, first, reads_run)`` raises a `QwqBatchError` for what can be refused
    before any stage starts; ``first`` is the configuration of the stage that it resumes, if any,
    and ``reads_run`` says that its input is another stage's results.
    """

    config: type[RunConfig]
    run: Callable[[Any], int]
    results: str
    outcome: Callable[[Any], Outcome]
    check: Callable[[Any, Any, bool], None] = lambda *_: None


class Job(RunConfig):
    """A run's configuration; jobs add a section."""

    @model_validator(mode="after")
    def _asks_for_what_there_is(self) -> Self:
        return self  # `run` is checked in its place: jobs add settings that this check would miss

    @property
    def run(self) -> RunConfig:
        """The run that generates the job's traces."""
        return self.as_run()

    @property
    def runs(self) -> Sequence[RunConfig]:
        """The runs that generate, in order; one unless a job says otherwise."""
        return [self.run]

    def as_run(self, **sections: Mapping[str, Any]) -> RunConfig:
        """The run, with its output in `traces`; ``sections`` override its settings key by key."""
        settings = self.model_dump(exclude_unset=True, include=set(RunConfig.model_fields))
        for name, overrides in {"output": {"path": self.traces}, **sections}.items():
            settings[name] = {**settings.get(name, {}), **overrides}
        return parse_config(settings, "the job's run")

    def check_output(self) -> None:
        """Raise `OutputError` if ``output.path`` is itself the output of a run."""
        if Ledger(Storage(self.output.path)).manifest() is not None:
            raise OutputError(
                f"output.path {self.output.path} is the output of a run, and a job has that in its "
                f"folder {TRACES}: choose another output.path, or move its files into {TRACES}"
            )

    @property
    def traces(self) -> str:
        """Where the run's traces are."""
        return self.below(TRACES)

    def below(self, folder: str) -> str:
        """The location of a folder in the job's output."""
        return f"{self.output.path.rstrip('/')}/{folder}"


def generate(config: RunConfig, retry: Sequence[str] = (), limits: Limits | None = None) -> Summary:
    """Run the remaining rows, or redo those that ended in the states ``retry``; print a summary.

    A job writes what it makes of failed rows too, and calls `console.refuse_all_failed` at its end.

    ``limits``: shared by several runs; by default those of ``config``. Raises `IncompleteRunError`
    if rows are missing at the end.
    """
    if retry:
        return console.retry_and_summarize(config, retry)
    return console.run_and_summarize(config, limits)


def outcome(config: RunConfig) -> Outcome:
    """That of a run, or of the run of a job whose results are one for each input row."""
    runs = config.runs if isinstance(config, Job) else [config]
    found = [pipeline.status(run.output.path) for run in runs]
    first = found[0].summary
    results = first.rows if isinstance(config, Job) else first.traces
    return Outcome(found[0].rows, results, sum(each.summary.output_tokens for each in found))


def _run(config: RunConfig) -> int:
    console.warn_about(config)
    console.run_and_report(config)
    return 0


RUN = StageKind(RunConfig, _run, "", outcome)
