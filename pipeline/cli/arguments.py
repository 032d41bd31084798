"""The arguments, options and results that several commands have."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

import pipeline
from pipeline import console
from pipeline.printing import json_text, print_text

if TYPE_CHECKING:
    from jobs.stages import Stages
    from pipeline.config.run_config import RunConfig

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


def split_names(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    """The names in a list with commas."""
    return value.split(",") if value else []


retried = click.option(
    "--retry",
    "states",
    metavar="STATES",
    callback=split_names,
    help="Redo the traces that ended in these states, such as unparsed,failed.",
)


def load_run(path: str, overrides: Sequence[str]) -> "RunConfig":
    """The configuration of one run, with its warnings printed."""
    from jobs.stages import is_list_of_stages
    from pipeline.config.load import parse_overridden, read_yaml

    data = read_yaml(path)
    if is_list_of_stages(data):
        raise click.UsageError(f"{path} lists several stages; run it with qwq-batch stages {path}")
    config = parse_overridden(pipeline.RunConfig, data, overrides, path)
    console.warn_about(config)
    return config


def load_run_or_stages(path: str, overrides: Sequence[str]) -> "RunConfig | Stages":
    """What the file describes: one run, or the stages that it lists."""
    from jobs.stages import is_list_of_stages, parse_stages
    from pipeline.config.load import parse_overridden, read_yaml

    data = read_yaml(path)
    if is_list_of_stages(data):
        return parse_stages(data, path, overrides)
    return parse_overridden(pipeline.RunConfig, data, overrides, path)


def traces_in(output: str) -> dict[str, str]:
    """The traces of each stage that has begun, by its name; of a run, its own without a name."""
    from jobs.stages import listed_traces

    return listed_traces(output) or {"": output}


def name_stage(name: str) -> None:
    """Print the headline of a stage."""
    print_text(f"== stage {name}")


def print_result(
    result: "pipeline.Estimate | pipeline.Status", as_json: bool, stage: str = ""
) -> None:
    """Print a result; ``stage``: the name of the stage that it is of, if any."""
    if as_json:
        named = {"stage": stage} if stage else {}
        print_text(json_text({**named, **result.to_json()}))
        return
    if stage:
        name_stage(stage)
    console.print_lines(result.lines())
