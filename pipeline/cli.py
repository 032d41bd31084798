"""The command ``qwq-batch``: each function below is one of its commands.

Exit codes: 0 every row is accounted for; 1 the run ended without some, or at a limit, or all rows
failed; 2 the command, the config, the input or the output can't be used as given; 143 ended by
SIGTERM, 130 by Ctrl-C, 129 by SIGHUP, with running traces saved.

Commands import what they need when they run: ``--help``, ``init`` and completion stay quick.
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import pipeline
from pipeline import console
from pipeline.printing import json_text, print_error, print_text
from pipeline.starters import STARTERS, write_starter

if TYPE_CHECKING:
    from jobs.stages import Stages
    from pipeline.config.run_config import RunConfig
    from pipeline.insight.findings import Finding

EPILOG = (
    "Exit codes: 0 every row is accounted for; 1 the run ended without some, or at a limit, or all "
    "rows failed; 2 the command, the config, the input or the output can't be used; 143, 130 and "
    "129 ended by SIGTERM, Ctrl-C or SIGHUP, and the same command resumes."
)
# The arguments and options that several commands have.
config_file = click.argument("config", metavar="CONFIG", type=click.Path())
output_folder = click.argument("output", metavar="OUTPUT", type=click.Path())
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, such as sampling.n=4; may be repeated.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")


def _refuse_nan(
    _context: click.Context, _option: click.Parameter, value: float | None
) -> float | None:
    if value is not None and math.isnan(value):  # it compares with no bound, so no range refuses it
        raise click.BadParameter("nan is not a share from 0 to below 1")
    return value


def _split(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    return value.split(",") if value else []


retried = click.option(
    "--retry",
    "states",
    metavar="STATES",
    callback=_split,
    help="Redo the traces that ended in these states, such as unparsed,failed.",
)


class Commands(click.Group):
    """A group whose help lists the commands in the order of this file."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the commands."""
        return list(self.commands)


@click.group(
    cls=Commands,
    epilog=EPILOG,
    no_args_is_help=False,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="qwq-batch", message="%(package)s %(version)s")
def qwq_batch() -> None:
    """Distributed batch generation with QwQ-32B and QwQ-32B-Preview."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line (by default the process's own) and exit with the command's code."""
    console.exit_with(lambda: _invoke(arguments))


def _invoke(arguments: Sequence[str] | None) -> int:
    try:
        code = qwq_batch.main(arguments, prog_name="qwq-batch", standalone_mode=False)
    except click.UsageError as error:
        if error.ctx is not None:
            print_error(error.ctx.get_usage())
        print_error(f"error: {error.format_message()}")
        return 2
    except click.Abort:
        raise KeyboardInterrupt from None
    return int(code or 0)


@qwq_batch.command()
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


@qwq_batch.command()
@config_file
@overrides
def run(config: str, overrides: tuple[str, ...]) -> None:
    """Run the remaining rows, then print a summary."""
    console.run_and_report(_load(config, overrides))


@qwq_batch.command()
@config_file
@overrides
@click.option(
    "--state",
    "states",
    metavar="STATES",
    callback=_split,
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
    console.retry_and_report(_load(config, overrides), states, foreign)


@qwq_batch.command()
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
    loaded = _load_run_or_stages(config, overrides)
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


@qwq_batch.command()
@config_file
@overrides
def doctor(config: str, overrides: tuple[str, ...]) -> int:
    """Print what would go wrong, and what to do. Starts no engine."""
    from pipeline.insight.doctor import examine

    loaded = _load_run_or_stages(config, overrides)
    if isinstance(loaded, pipeline.RunConfig):
        return _print_findings(examine(loaded))
    code = 0
    for stage in loaded.stages:
        _name_stage(stage.name)
        with stage.named():
            waits_for = stage.waits_for
            code = max(code, _print_findings(examine(stage.run, has_input=waits_for is None)))
        if waits_for is not None:
            print_text(f"its input is not checked: it waits for {waits_for}")
    return code


@qwq_batch.command()
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
    loaded = _load_run_or_stages(config, overrides)
    if isinstance(loaded, pipeline.RunConfig):
        console.warn_about(loaded)
        _print(pipeline.estimate(loaded, rows), as_json)
        return
    for stage, found in loaded.estimates(rows):
        if found is not None:
            _print(found, as_json, stage.name)
        elif not as_json:
            _name_stage(stage.name)
            print_text(f"waits for {stage.waits_for}")


@qwq_batch.command()
@output_folder
@click.option(
    "--rows",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    metavar="N",
    help="How many traces.",
)
@click.option("--state", help="Only traces in this state, such as truncated.")
def show(output: str, rows: int, state: str | None) -> None:
    """Print some traces of an output."""
    from pipeline.insight.preview import trace_lines

    console.print_lines(trace_lines(output, rows, state))


@qwq_batch.command()
@output_folder
@as_json
def status(output: str, as_json: bool) -> None:
    """Print where a run stands, from its output alone."""
    for name, traces in _traces_in(output).items():
        _print(pipeline.status(traces), as_json, name)


@qwq_batch.command()
@output_folder
@click.option(
    "--to", "target", metavar="FILE", default="report.html", show_default=True, help="The page."
)
def report(output: str, target: str) -> None:
    """Write what came out as one HTML page."""
    from pipeline.insight.html_report import write_page

    for name, traces in _traces_in(output).items():
        page = Path(target).with_stem(f"{Path(target).stem}-{name}") if name else Path(target)
        write_page(traces, str(page))
        print_text(page)


@qwq_batch.command()
@config_file
@overrides
@retried
def label(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Label texts by a guideline, with a confidence for each."""
    from jobs.label import LabelJob, label
    from pipeline.config.load import load_as

    return label(load_as(LabelJob, config, overrides), states)


@qwq_batch.command()
@config_file
@overrides
@retried
def judge(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Judge answers by a rubric: verdicts, scores, or which of two is better."""
    from jobs.judge import JudgeJob, judge
    from pipeline.config.load import load_as

    return judge(load_as(JudgeJob, config, overrides), states)


@qwq_batch.command()
@config_file
@overrides
@retried
def synthesize(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Make training data from seeds: prompts, verified samples, chats."""
    from jobs.synthesize import synthesize
    from jobs.synthesize_config import Synthesis
    from pipeline.config.load import load_as

    return synthesize(load_as(Synthesis, config, overrides), states)


@qwq_batch.command()
@config_file
@overrides
def stages(config: str, overrides: tuple[str, ...]) -> int:
    """Run several stages in order, each from the results of an earlier one."""
    from jobs.stages import load_stages

    return load_stages(config, overrides).run()


@qwq_batch.command()
@config_file
@overrides
def nightly(config: str, overrides: tuple[str, ...]) -> int:
    """Run new rows within limits, and leave a report. For schedulers."""
    from jobs.nightly import nightly

    return nightly(_load(config, overrides))


@qwq_batch.command()
@config_file
@overrides
@retried
def openai_batch(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Run a file made for the OpenAI Batch API, and answer in its format."""
    from jobs.job import Job
    from jobs.openai_batch import openai_batch
    from pipeline.config.load import load_as

    return openai_batch(load_as(Job, config, overrides), states)


@qwq_batch.command()
@output_folder
@click.option("--reference", required=True, metavar="COLUMN", help="The right answers.")
@click.option("--as-qwen", is_flag=True, help="Score by the rules of Qwen's own evaluation.")
def evaluate(output: str, reference: str, as_qwen: bool) -> int:
    """Score an output against reference answers, as Qwen reports AIME."""
    from jobs.evaluate import evaluate

    return evaluate(output, reference, as_qwen)


def _load(path: str, overrides: Sequence[str]) -> "RunConfig":
    """The configuration of one run, with its warnings printed."""
    from jobs.stages import is_list_of_stages
    from pipeline.config.load import parse_overridden, read_yaml

    data = read_yaml(path)
    if is_list_of_stages(data):
        raise click.UsageError(f"{path} lists several stages; run it with qwq-batch stages {path}")
    config = parse_overridden(pipeline.RunConfig, data, overrides, path)
    console.warn_about(config)
    return config


def _load_run_or_stages(path: str, overrides: Sequence[str]) -> "RunConfig | Stages":
    """What the file describes: one run, or the stages that it lists."""
    from jobs.stages import is_list_of_stages, parse_stages
    from pipeline.config.load import parse_overridden, read_yaml

    data = read_yaml(path)
    if is_list_of_stages(data):
        return parse_stages(data, path, overrides)
    return parse_overridden(pipeline.RunConfig, data, overrides, path)


def _traces_in(output: str) -> dict[str, str]:
    """The traces of each stage that has begun, by its name; of a run, its own without a name."""
    from jobs.stages import listed_traces

    return listed_traces(output) or {"": output}


def _name_stage(name: str) -> None:
    print_text(f"== stage {name}")


def _print(result: "pipeline.Estimate | pipeline.Status", as_json: bool, stage: str = "") -> None:
    """Print a result; ``stage``: the name of the stage that it is of, if any."""
    if as_json:
        named = {"stage": stage} if stage else {}
        print_text(json_text({**named, **result.to_json()}))
        return
    if stage:
        _name_stage(stage)
    console.print_lines(result.lines())


def _print_findings(findings: "Iterable[Finding]") -> int:
    """Print what the doctor found; 2 if there is an error, else 0."""
    code = 0
    for finding in findings:
        print_text(finding)
        code = max(code, 2 if finding.level == "error" else 0)
    return code
