"""The functions behind `import pipeline`: plan, run, work, retry, estimate and read an output.

API.md describes them with examples. Every error is a `QwqBatchError` whose message says what to do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import console
from pipeline.config.run_config import RunConfig
from pipeline.errors import InputError, LimitReachedError
from pipeline.execution import run as execution
from pipeline.execution import work as workers
from pipeline.execution.pilot import stratified_rows
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.insight import preview
from pipeline.insight.estimate import Estimate
from pipeline.insight.estimate import estimate as project
from pipeline.insight.pilot_traces import traces_of
from pipeline.monitor import terminal
from pipeline.monitor.history import all_figures
from pipeline.monitor.limits import RunObserver
from pipeline.output.summary import Summary


@dataclass(frozen=True)
class RunPlan:
    """What a run would do. Its config, input, output and model have been checked."""

    prepared: PreparedRun

    @property
    def rows(self) -> int:
        """Input rows of the whole run."""
        return sum(part.rows for part in self.prepared.parts)

    @property
    def rows_todo(self) -> int:
        """Input rows without a durable result, by a listing of the output made now."""
        return self.prepared.plan.rows_todo

    @property
    def columns(self) -> list[str]:
        """The columns of the output: those of the input, then ours."""
        return list(self.prepared.traces.names)

    def prompts(self, count: int = 1) -> Iterator[dict[str, Any]]:
        """The first ``count`` prompts as the model will see them.

        Each is a dict with ``prompt`` and ``prompt_tokens``. A row that can't be rendered has None
        for both, and an ``error``.
        """
        return preview.prompts(self.prepared, count)

    def lines(self) -> Iterator[str]:
        """The plan as text, as `qwq-batch plan` prints it."""
        return preview.plan_lines(self.prepared)


def plan(config: RunConfig) -> RunPlan:
    """Check everything that can be checked without an engine, and plan the run."""
    return RunPlan(prepare(config))


def run(config: RunConfig, progress: bool = True) -> Summary:
    """Run the remaining rows, and summarize the whole output.

    ``progress``: print live figures to stderr. Raises `LimitReachedError` when a limit of
    ``config.limits`` ends the run. Any other end is resumed by calling it again.
    """
    return execution.run(config, _observer(progress))


def work(config: RunConfig, progress: bool = True) -> Summary:
    """Share the remaining rows with other workers, and summarize the whole output at their end.

    A worker is a driver that calls this, on any machine; it may come and go at any time. Raises as
    `run`, and `ConfigError` for settings that need a driver alone.
    """
    return workers.work(config, _observer(progress))


def retry(
    config: RunConfig,
    states: Sequence[str] = (),
    foreign: float | None = None,
    progress: bool = True,
) -> Summary:
    """Redo the traces that ended in one of ``states``, with the sampling settings of ``config``.

    ``foreign``: also redo those with more than this share (0 to 1) of letters in scripts that the
    prompt does not use.
    """
    return execution.retry(config, states, foreign, _observer(progress))


def estimate(config: RunConfig, rows: int = 200, progress: bool = True) -> Estimate:
    """Run ``rows`` rows, spread over the whole input, and project time, tokens and cost.

    The rows are part of the run: it does not generate them again.
    """
    try:
        execution.pilot(config, rows, _observer(progress))
    except LimitReachedError as error:
        console.warn(f"the pilot is incomplete: {error}")
    prepared = prepare(config)
    sample = list(traces_of(prepared, stratified_rows(prepared.parts, rows)))
    if not sample:
        raise InputError(f"there is no row of {config.input.path} to project from")
    remaining, figures = prepared.plan, all_figures(prepared.ledger.store)
    return project(config, sample, figures, remaining.rows, remaining.rows_todo)


def _observer(progress: bool) -> RunObserver:
    return terminal.watch if progress else execution.no_observer
