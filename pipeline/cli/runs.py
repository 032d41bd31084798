"""The commands that prepare and run one run, or stages of several."""

import math
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

import pipeline
from pipeline import console
from pipeline.cli.arguments import (
    as_json,
    config_file,
    load_run,
    load_run_or_stages,
    name_stage,
    overrides,
    print_result,
    split_names,
)
from pipeline.printing import json_text, print_text
from pipeline.starters import STARTERS, write_starter

if TYPE_CHECKING:
    from pipeline.insight.findings import Finding


def _refuse_nan(
    _context: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    if value is not None and math.isnan(value):  # it compares with no bound, so no range refuses it
        raise click.BadParameter("nan is not a share from 0 to below 1")
    return value


@click.command()
@click.argument("kind", type=click.Choice(STARTERS))
@click.argument("folder", metavar="FOLDER", type=click.Path())
def init(kind: str, folder: str) -> None:
    """Write a commented config into FOLDER, with a small input, to start from.

    It runs as it is on the built-in small model, without a GPU.
    """
    config, *inputs = write_starter(kind, folder)
    console.print_lines(map(str, [config, *inputs]))
    print_text("\nRun it, then put in your own input and model:")
    print_text(f"  qwq-batch {kind} {shlex.quote(str(config))}")


@click.command()
@config_file
@overrides
def run(config: str, overrides: tuple[str, ...]) -> None:
    """Run the remaining rows, then print a summary."""
    console.run_and_report(load_run(config, overrides))


@click.command()
@config_file
@overrides
def work(config: str, overrides: tuple[str, ...]) -> None:
    """Share the remaining rows with other workers, then print a summary.

    Any number of machines may do so with one output, without a common cluster, and come, go and
    die at any time.
    """
    console.run_and_report(load_run(config, overrides), shared=True)


@click.command()
@config_file
@overrides
@click.option(
    "--state",
    "states",
    metavar="STATES",
    callback=split_names,
    help="Which traces, such as failed,looped,truncated.",
)
@click.option(
    "--foreign",
    type=click.FloatRange(0, 1, max_open=True),
    callback=_refuse_nan,
    metavar="SHARE",
    help="Those with more than this share (0 to 1) of letters, in thinking or answer, in "
    "scripts that the prompt does not use.",
)
def retry(
    config: str, overrides: tuple[str, ...], states: list[str], foreign: float | None
) -> None:
    """Redo the traces that ended in some state, then print a summary."""
    console.retry_and_report(load_run(config, overrides), states, foreign)


@click.command()
@config_file
@overrides
@click.option(
    "--prompts",
    type=click.IntRange(1),
    metavar="N",
    help="Print the first N rendered prompts with their token counts as JSON lines.",
)
def plan(config: str, overrides: tuple[str, ...], prompts: int | None) -> None:
    """Print what would run. Starts no engine."""
    loaded = load_run_or_stages(config, overrides)
    if not isinstance(loaded, pipeline.RunConfig):
        if prompts is not None:
            raise click.UsageError("--prompts is for the configuration of one run")
        console.print_lines(loaded.plan_lines())
        return
    console.warn_about(loaded)
    run_plan = pipeline.plan(loaded)
    if prompts is None:
        console.print_lines(run_plan.lines())
        return
    for prompt in run_plan.prompts(prompts):
        print_text(json_text(prompt))


@click.command()
@config_file
@overrides
def doctor(config: str, overrides: tuple[str, ...]) -> int:
    """Print what would go wrong, and what to do. Starts no engine."""
    from pipeline.insight.doctor import examine

    loaded = load_run_or_stages(config, overrides)
    if isinstance(loaded, pipeline.RunConfig):
        return _print_findings(examine(loaded))
    code = 0
    for stage in loaded.stages:
        name_stage(stage.name)
        with stage.named():
            waits_for = stage.waits_for
            code = max(code, _print_findings(examine(stage.run, has_input=waits_for is None)))
        if waits_for is not None:
            print_text(f"its input is not checked: it waits for {waits_for}")
    return code


@click.command()
@config_file
@overrides
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    metavar="N",
    help="How many rows, spread over the whole run. They are part of it.",
)
@as_json
def estimate(config: str, overrides: tuple[str, ...], rows: int, as_json: bool) -> None:
    """Run some rows first, and project time, tokens and cost of all."""
    loaded = load_run_or_stages(config, overrides)
    if isinstance(loaded, pipeline.RunConfig):
        console.warn_about(loaded)
        print_result(pipeline.estimate(loaded, rows), as_json)
        return
    for stage, found in loaded.estimates(rows):
        if found is not None:
            print_result(found, as_json, stage.name)
        elif not as_json:
            name_stage(stage.name)
            print_text(f"waits for {stage.waits_for}")


def _print_findings(findings: "Iterable[Finding]") -> int:
    """Print what the doctor found; 2 if there is an error, else 0."""
    code = 0
    for finding in findings:
        print_text(finding)
        code = max(code, 2 if finding.level == "error" else 0)
    return code
