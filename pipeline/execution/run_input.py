"""The shards of a run: the files of its input, or what is made of them below its output."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.config.input import InputConfig
from pipeline.config.run_config import RunConfig
from pipeline.errors import InputError
from pipeline.input.arrow_rows import ArrowFiles
from pipeline.input.converted import Format, convert, recorded_settings
from pipeline.input.csv_rows import CsvFiles
from pipeline.input.files import (
    ARROW_FORMAT,
    CSV_FORMAT,
    JSON_FORMAT,
    PARQUET_FORMAT,
    InputFiles,
    list_input,
)
from pipeline.input.hub import HUB, Copies, list_data_set, pinned, pinned_revision
from pipeline.input.json_rows import JsonFiles
from pipeline.input.shards import Input, find_shards
from pipeline.output.layout import INPUT_SHARDS
from pipeline.output.ledger import Ledger
from pipeline.planning import NONE_KNOWN, KnownShards
from pipeline.storage import Storage

FORMATS: dict[str, Callable[[InputConfig], Format]] = {
    JSON_FORMAT: lambda section: JsonFiles(section.types, section.objects),
    CSV_FORMAT: lambda section: CsvFiles(section.types),
    ARROW_FORMAT: lambda _: ArrowFiles(),
    PARQUET_FORMAT: lambda _: Copies(),
}
TYPED = (JSON_FORMAT, CSV_FORMAT)
SHOWN_TYPE = 40  # characters


def find_input(config: RunConfig) -> Input:
    """The shards of ``config``; of files that are not Parquet they are written, unless they exist.

    Raises `InputError` and `OutputError` as `find_shards` and `convert` do, and `OutputError`
    if the output has files that are not of a run.
    """
    ledger = Ledger(Storage(config.output.path))
    known, is_new = ledger.known_shards(), ledger.manifest() is None
    shards = Storage(f"{config.output.path.rstrip('/')}/{INPUT_SHARDS}")
    found = list_files(config.input, shards, is_new)
    if is_new and _is_converted(found):
        ledger.refuse_other_files()
    return find_shards_of(found, config.input, shards, known)


def list_files(section: InputConfig, shards: Storage, is_new: bool) -> InputFiles:
    """The files of the input; of the hub, those of the revision with which the run began.

    ``shards``: what is made of them; ``is_new``: whether no run has begun with that.
    """
    if not section.path.startswith(HUB):
        if section.subset or section.split:
            raise InputError(
                "input.subset and input.split are for data sets of the hub (hf://), and "
                f"input.path is {section.path}; leave them out"
            )
        return list_input(section.path, section.files)
    if section.files:
        raise InputError("input.files is not for data sets of the hub; name files in input.path")
    revision = None if is_new else recorded_settings(shards).get("revision")
    return list_data_set(pinned(section.path, revision), section.subset, section.split)


def _is_converted(found: InputFiles) -> bool:
    return found.format != PARQUET_FORMAT or found.url.startswith(HUB)


def find_shards_of(
    found: InputFiles, section: InputConfig, shards: Storage, known: KnownShards = NONE_KNOWN
) -> Input:
    """As `find_input`, of the files ``found`` for ``section``, with what is made in ``shards``."""
    if section.types and found.format not in TYPED:
        raise InputError(
            f"input.types is for JSON and CSV; {found.format} files tell the types of their "
            "columns, so leave it out"
        )
    if not _is_converted(found):
        return find_shards(found, known, section.query)
    settings: dict[str, Any] = {
        "types": section.types,
        "subset": section.subset,
        "split": section.split,
    }
    if found.url.startswith(HUB):
        settings["revision"] = pinned_revision(found.url)
    if found.format == JSON_FORMAT:
        settings["as text"] = section.objects
    settings = {name: value for name, value in settings.items() if value}
    format_ = FORMATS[found.format](section)
    schema = convert(found, format_, shards, known.identities, settings)
    made = find_shards(shards.url, known, section.query)
    notes = [*found.notes, *made.notes]
    if "revision" in settings:
        notes.append(f"{section.path} is read at revision {settings['revision']}")
    if schema is not None and not known.identities:
        notes.append(f"{found.format} is read as Parquet with {_columns(schema)}; see input.types")
    return replace(made, notes=tuple(notes), source=found.url)


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {str(field.type)[:SHOWN_TYPE]}" for field in schema)
