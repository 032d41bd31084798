"""What commands print, and the exit codes that they end with."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from pipeline.errors import EngineError, IncompleteRunError, QwqBatchError, StoppedError
from pipeline.printing import PrintableFormatter, print_error, print_text

if TYPE_CHECKING:
    from pipeline.config.run_config import RunConfig
    from pipeline.monitor.limits import Limits
    from pipeline.output.summary import Summary


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run ``command`` and exit with the code that it returns, or the code of its error."""
    log = logging.StreamHandler()
    log.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(handlers=[log], level=logging.WARNING)
    try:
        code = command()
        sys.stdout.flush()
    except StoppedError as error:
        print_error(error)
        code = 128 + error.signal
    except QwqBatchError as error:
        print_error(f"error: {error}")
        code = 1 if isinstance(error, (IncompleteRunError, EngineError)) else 2
    except KeyboardInterrupt:
        print_error("interrupted; finished work is kept, the same command resumes")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception:  # a fault of ours; Python would print its texts as they are
        print_error(traceback.format_exc())
        code = 1
    sys.exit(code)


def print_lines(lines: Iterable[str]) -> None:
    """Print each line."""
    for line in lines:
        print_text(line)


def warn(message: str) -> None:
    """Print a warning to stderr."""
    print_error(f"warning: {message}")


def warn_about(config: "RunConfig") -> None:
    """Print a warning for each setting that is allowed but probably a mistake."""
    from pipeline.engines import engine_type

    engine = config.engine
    for warning in (*config.warnings, *engine_type(engine).warnings(engine)):
        warn(warning)


def run_and_report(
    config: "RunConfig", limits: "Limits | None" = None, shared: bool = False
) -> None:
    """Run the remaining rows and print the summary.

    ``limits``: shared by several runs; by default those of ``config``. ``shared``: as one of
    several workers. Raises `IncompleteRunError`
    if rows are missing at the end, or all have failed.
    """
    refuse_all_failed(run_and_summarize(config, limits, shared), config)


def retry_and_report(
    config: "RunConfig", states: Sequence[str], foreign: float | None = None
) -> None:
    """Redo traces by state or by their share of foreign letters, and print the summary.

    Raises `IncompleteRunError` as `run_and_report`.
    """
    refuse_all_failed(retry_and_summarize(config, states, foreign), config)


def run_and_summarize(
    config: "RunConfig", limits: "Limits | None" = None, shared: bool = False
) -> "Summary":
    """Run and print as `run_and_report`, but leave all failed rows to the caller."""
    from pipeline.execution.run import run
    from pipeline.execution.work import work
    from pipeline.monitor.terminal import watch

    started = time.monotonic()
    summary = (work if shared else run)(config, watch, limits)
    print_summary(summary, config, time.monotonic() - started)
    return summary


def retry_and_summarize(
    config: "RunConfig", states: Sequence[str], foreign: float | None = None
) -> "Summary":
    """Redo and print as `retry_and_report`, but leave all failed rows to the caller."""
    from pipeline.execution.run import retry
    from pipeline.monitor.terminal import watch

    started = time.monotonic()
    summary = retry(config, states, foreign, watch)
    print_summary(summary, config, time.monotonic() - started)
    return summary


def refuse_all_failed(summary: "Summary", config: "RunConfig") -> None:
    """Raise `IncompleteRunError` if all traces failed, or some because the input is damaged."""
    from pipeline.output.reader import finished_parts

    if summary.damage:
        raise IncompleteRunError(summary.damage)
    if not summary.traces or summary.states["failed"] < summary.traces:
        return
    parts = finished_parts(config.output.path)
    errors = (error for part in parts for error in part.read([part.names["error"]])[0].to_pylist())
    raise IncompleteRunError(
        f"all {summary.traces:,} traces failed (the first: {next(errors)}); correct the input or "
        "the configuration, and run into another output.path"
    )


def print_summary(summary: "Summary", config: "RunConfig", seconds: float) -> None:
    """Print the summary of an output; raises `IncompleteRunError` if rows are missing."""
    traces = f"{summary.traces:,} of {summary.expected:,} traces"
    if summary.agree is not None:
        traces = f"{summary.traces:,} traces of {summary.rows:,} of {summary.expected_rows:,} rows"
    print_text(f"\n{traces} in {config.output.path}")
    for line in summary.lines():
        print_text(f"  {line}")
    print_text(f"  {'time':<10} {seconds:>9,.0f} s from start to end")
    if summary.missing_parts:
        raise IncompleteRunError(
            f"{len(summary.missing_parts)} parts are not finished (the first: "
            f"{summary.missing_parts[0]}); run the same command again to go on"
        )
    if not summary.is_complete:
        raise IncompleteRunError(f"{summary.expected} traces were expected")
