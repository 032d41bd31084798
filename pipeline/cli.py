"""The command ``qwq-batch``: doctor, estimate, run, retry, plan, show, status, report.

Exit codes: 0 every row is accounted for; 1 the run ended without all of them, or failed; 2 the
command, the config, the input or the output can't be used as given; 143 ended by SIGTERM, 130 by
Ctrl-C, with what was running saved.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.config.load import load_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import (
    EngineError,
    IncompleteRunError,
    InputError,
    LimitReachedError,
    OutputError,
    QwqBatchError,
    StoppedError,
)

if TYPE_CHECKING:
    from pipeline.output.summary import Summary


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, run the command, exit with its code."""
    args = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = args.command
    exit_with(lambda: command(args))


def exit_with(command: Callable[[], int]) -> NoReturn:
    """Run ``command`` and exit with the code that it returns or that its error has."""
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        code = command()
        sys.stdout.flush()
    except StoppedError as error:
        print(error, file=sys.stderr)
        code = 128 + error.signal
    except QwqBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1 if isinstance(error, (IncompleteRunError, EngineError)) else 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qwq-batch", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str) -> Any:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(command=command)
        return sub

    for name, command, about in (
        ("run", _run, "run what is still to do, then report"),
        ("retry", _retry, "do traces again that ended in some state, then report"),
        ("plan", _plan, "say what would run; starts no engine"),
    ):
        sub = add(name, command, about)
        sub.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
        add_overrides(sub)
        if name == "retry":
            sub.add_argument(
                "--state", default=[], metavar="STATES", type=lambda text: text.split(","),
                help="which, such as failed,looped,truncated",
            )  # fmt: skip
            sub.add_argument(
                "--foreign", type=_share, metavar="SHARE",
                help="those with more than this share (0 to 1) of letters, in thinking or answer, "
                "in scripts that the prompt does not use",
            )  # fmt: skip
        if name == "plan":
            sub.add_argument(
                "--prompts", type=_count, metavar="N",
                help="print the first N rendered prompts with their token counts as JSON lines",
            )  # fmt: skip
    doctor = add("doctor", _doctor, "say what would go wrong, and what to do; starts no engine")
    doctor.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    add_overrides(doctor)
    estimate = add("estimate", _estimate, "do some rows first and say what all will take")
    estimate.add_argument("config", metavar="CONFIG", help="a YAML file, see configs/")
    add_overrides(estimate)
    estimate.add_argument(
        "--rows", type=_count, default=200, metavar="N",
        help="how many, from all over the run; they are part of it (default: 200)",
    )  # fmt: skip
    estimate.add_argument("--json", action="store_true", help="as one line of JSON")
    show = add("show", _show, "print some traces of an output")
    show.add_argument("output", metavar="OUTPUT", help="the output.path of a run")
    show.add_argument("--rows", type=_count, default=3, metavar="N", help="how many (default: 3)")
    show.add_argument("--state", help="only traces in this state, such as truncated")
    status = add("status", _status, "say where a run stands, from its output alone")
    status.add_argument("output", metavar="OUTPUT", help="the output.path of a run")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    report = add("report", _report, "write what came out as one HTML page")
    report.add_argument("output", metavar="OUTPUT", help="the output.path of a run")
    report.add_argument(
        "--to", metavar="FILE", default="report.html", help="the page (default: report.html)"
    )
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, as `pipeline.config.load.load_config` takes it, as ``overrides``."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a setting, such as sampling.n=4; may be repeated",
    )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to below 1, not {text!r}")
    return share


def _load(args: argparse.Namespace) -> RunConfig:
    config = load_config(args.config, args.overrides)
    warn(config)
    return config


def warn(config: RunConfig) -> None:
    """Print what is allowed but probably not meant."""
    from pipeline.engines import engine_type

    engine = config.engine
    for warning in (*config.warnings, *engine_type(engine).warnings(engine)):
        print(f"warning: {warning}", file=sys.stderr)


def _run(args: argparse.Namespace) -> int:
    from pipeline.execution import run as flow
    from pipeline.monitor import terminal as progress

    config, started = _load(args), time.monotonic()
    return report(flow.run(config, progress.watch), config, time.monotonic() - started)


def _retry(args: argparse.Namespace) -> int:
    from pipeline.execution import run as flow
    from pipeline.monitor import terminal as progress

    config, started = _load(args), time.monotonic()
    summary = flow.retry(config, args.state, args.foreign, progress.watch)
    return report(summary, config, time.monotonic() - started)


def report(summary: "Summary", config: RunConfig, seconds: float) -> int:
    """Print what came out; raises `IncompleteRunError` if not every row is there."""
    whole = f"{summary.traces:,} of {summary.expected:,} traces"
    if summary.agree is not None:
        whole = f"{summary.traces:,} traces of {summary.rows:,} of {summary.expected_rows:,} rows"
    print(f"\n{whole} in {config.output.path}")
    for line in summary.lines():
        print(f"  {line}")
    print(f"  {'time':<10} {seconds:>9,.0f} s from start to end")
    if not summary.is_complete:
        raise IncompleteRunError(
            f"{len(summary.missing_parts)} parts are not finished (the first: "
            f"{summary.missing_parts[0]}); run the same command again to go on"
            if summary.missing_parts
            else f"{summary.expected} traces were expected"
        )
    return 0


def _plan(args: argparse.Namespace) -> int:
    from pipeline.execution.prepare import prepare
    from pipeline.insight import preview

    prepared = prepare(_load(args))
    if args.prompts is not None:
        for prompt in preview.prompts(prepared, args.prompts):
            print(json.dumps(prompt, ensure_ascii=False))
        return 0
    _print(preview.plan_lines(prepared))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from pipeline.insight.doctor import examine

    worst = 0
    for finding in examine(load_config(args.config, args.overrides)):
        print(finding, flush=True)
        worst = max(worst, 2 if finding.level == "error" else 0)
    return worst


def _estimate(args: argparse.Namespace) -> int:
    from pipeline.execution import run as flow
    from pipeline.execution.pilot import stratified_rows
    from pipeline.execution.prepare import prepare
    from pipeline.insight.estimate import estimate
    from pipeline.insight.pilot_traces import traces_of
    from pipeline.monitor import terminal as progress
    from pipeline.monitor.history import all_figures

    config = _load(args)
    try:
        flow.pilot(config, args.rows, progress.watch)
    except LimitReachedError as error:
        print(f"the pilot is not whole: {error}", file=sys.stderr)
    prepared = prepare(config)
    sample = list(traces_of(prepared, stratified_rows(prepared.parts, args.rows)))
    if not sample:
        raise InputError(f"there is no row of {config.input.path} to project from")
    plan, runs = prepared.plan, all_figures(prepared.ledger.store)
    found = estimate(config, sample, runs, plan.rows, plan.rows_todo)
    _print(iter([json.dumps(found.to_json())]) if args.json else found.lines())
    return 0


def _show(args: argparse.Namespace) -> int:
    from pipeline.insight import preview

    _print(preview.trace_lines(args.output, args.rows, args.state))
    return 0


def _status(args: argparse.Namespace) -> int:
    from pipeline.insight.status import status

    found = status(args.output)
    _print(iter([json.dumps(found.to_json())]) if args.json else found.lines())
    return 0


def _report(args: argparse.Namespace) -> int:
    from pipeline.insight.html_report import page
    from pipeline.storage import Storage

    data = page(args.output).encode()
    if "://" in args.to:
        folder, _, name = args.to.rpartition("/")
        Storage(folder).put(name, data)
    else:
        try:
            Path(args.to).write_bytes(data)
        except OSError as error:
            raise OutputError(f"can't write {args.to}: {error.strerror}") from None
    print(args.to)
    return 0


def _print(lines: Iterator[str]) -> None:
    for line in lines:
        print(line)
