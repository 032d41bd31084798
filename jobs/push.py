"""Push an output to a data set on the Hugging Face hub: its finished parts, and a card.

    qwq-batch push OUTPUT hf://datasets/ORG/NAME

It may be repeated while the run goes on, and sends each file once. ``OUTPUT`` is a run's, or an
export with a card of its own, such as that of `qwq-batch synthesize`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from jobs.card import Provenance, provenance_lines, size_category
from jobs.hub import CARD, Pushed, dataset_of, push_files
from jobs.markdown import table_lines
from pipeline import console
from pipeline.errors import OutputError
from pipeline.output.layout import parse_listing
from pipeline.output.ledger import Ledger
from pipeline.output.summary import Summary, recorded_summary
from pipeline.printing import print_text
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage

# The folder of a run's parts in the data set: `datasets` would take some folder names for splits.
FOLDER = "data"


def push_and_report(output: str, target: str) -> None:
    """Push as `push`, and print what was done."""
    pushed = push(output, target, print_text)
    print_text(f"{pushed.sent:,} files sent, {pushed.there:,} were there: {target}")
    for note in pushed.notes:
        console.warn(note)


def push(output: str, target: str, report: Callable[[str], None]) -> Pushed:
    """Send what ``target``, a data set on the hub, does not have yet of ``output``.

    ``report`` gets lines for people. Raises `OutputError` if ``output`` is neither a run's nor an
    export, or has nothing yet, and as `push_files` does.
    """
    dataset_of(target)
    store = Storage(output)
    listed = {info.name: info for info in store.files()}
    ledger = Ledger(store)
    manifest = ledger.manifest()
    if manifest is None and CARD in listed:
        files = {
            name: info for name, info in listed.items() if not _is_hidden(name) and name != CARD
        }
        return push_files(store, files, store.read(CARD), target, report)
    if manifest is None:
        raise OutputError(
            f"{output} is neither the output of a run nor an export with a card; of a job, push "
            f"{output}/traces, or of a synthesis {output}/export"
        )
    finished = parse_listing(listed.values()).finished_parts()
    if not finished:
        raise OutputError(f"{output} has no finished part yet; push it later")
    files = {f"{FOLDER}/{name}": listed[name] for name in sorted(finished)}
    return push_files(store, files, _card(ledger, manifest), target, report)


def _is_hidden(name: str) -> bool:
    return any(segment.startswith(("_", ".")) for segment in name.split("/"))


def _card(ledger: Ledger, manifest: Mapping[str, Any]) -> bytes:
    """The card of a run's output, as far as it is."""
    settings, summary = manifest["settings"], recorded_summary(ledger)
    head = {
        "tags": ["synthetic", "reasoning"],
        "size_categories": [size_category(summary.traces)],
        "configs": [{"config_name": "default", "data_files": f"{FOLDER}/**/*.parquet"}],
    }
    front = yaml.safe_dump(head, sort_keys=False)
    retries = [each for each in ledger.passes(ledger.listing()) if each.is_retry]
    lines = [
        *_content_lines(summary),
        *provenance_lines(Provenance(settings, summary.engines, retries)),
    ]
    return (f"---\n{front}---\n" + "\n".join(lines) + "\n").encode()


def _content_lines(summary: Summary) -> Iterator[str]:
    yield from ("# Reasoning traces", "")
    whole = "" if summary.is_complete else f" of {summary.expected_rows:,}: the run goes on"
    yield (
        f"{summary.traces:,} traces of {summary.rows:,} rows{whole}. Thinking and answer have "
        "their own columns."
    )
    yield ""
    counts = ((state, summary.states.get(state, 0)) for state in State)
    rows = [[f"`{state}`", f"{count:,}"] for state, count in counts if count]
    yield from table_lines(["state", "traces"], rows, "---:")
    yield ""
    yield (
        f"- Tokens: {summary.prompt_tokens:,} prompt, {summary.think_tokens:,} thinking, "
        f"{summary.answer_tokens:,} answers"
    )
    yield "- License: unknown: fill in"
