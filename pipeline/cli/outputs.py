"""The commands that read an output."""

from pathlib import Path

import click

import pipeline
from pipeline import console
from pipeline.cli.arguments import as_json, output_folder, print_result, traces_in
from pipeline.printing import print_text


@click.command()
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


@click.command()
@output_folder
@as_json
def status(output: str, as_json: bool) -> None:
    """Print where a run stands, from its output alone."""
    for name, traces in traces_in(output).items():
        print_result(pipeline.status(traces), as_json, name)


@click.command()
@output_folder
@click.option(
    "--to", "target", metavar="FILE", default="report.html", show_default=True, help="The page."
)
def report(output: str, target: str) -> None:
    """Write what came out as one HTML page."""
    from pipeline.insight.html_report import write_page

    for name, traces in traces_in(output).items():
        page = Path(target).with_stem(f"{Path(target).stem}-{name}") if name else Path(target)
        write_page(traces, str(page))
        print_text(page)


@click.command()
@output_folder
@click.option("--reference", required=True, metavar="COLUMN", help="The right answers.")
@click.option("--as-qwen", is_flag=True, help="Score by the rules of Qwen's own evaluation.")
def evaluate(output: str, reference: str, as_qwen: bool) -> int:
    """Score an output against reference answers, as Qwen reports AIME."""
    from jobs.evaluate import evaluate

    return evaluate(output, reference, as_qwen)


@click.command()
@output_folder
@click.argument("target", metavar="hf://datasets/ORG/NAME")
def push(output: str, target: str) -> None:
    """Send finished parts and a card to a data set on the Hugging Face hub, each once."""
    from jobs.push import push_and_report

    push_and_report(output, target)


@click.command()
@output_folder
@click.option("--catalog", required=True, metavar="NAME", help="A catalog that pyiceberg knows.")
@click.option("--table", required=True, metavar="NAMESPACE.TABLE", help="Made if need be.")
def register(output: str, catalog: str, table: str) -> None:
    """Add finished parts to an Iceberg table without rewriting them, each once."""
    from jobs.register import register

    done = register(output, catalog, table)
    replaced = f", {done.replaced:,} replaced" if done.replaced else ""
    print_text(f"{done.added:,} parts added{replaced}, {done.there:,} were there: {table}")


@click.command()
@output_folder
@click.argument("target", metavar="FILE")
def export(output: str, target: str) -> None:
    """Write the rows of finished parts as JSON lines, to FILE.jsonl, .jsonl.gz or .jsonl.zst."""
    from jobs.json_lines import export

    print_text(f"{export(output, target):,} rows: {target}")
