"""The shards of a run: the files of its input, or what is made of them below its output."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pyarrow as pa

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import InputConfig
from pipeline.errors import InputError
from pipeline.input.arrow_rows import ArrowFiles
from pipeline.input.converted import Format, convert
from pipeline.input.csv_rows import CsvFiles
from pipeline.input.files import (
    ARROW_FORMAT,
    CSV_FORMAT,
    JSON_FORMAT,
    PARQUET_FORMAT,
    InputFiles,
    list_input,
)
from pipeline.input.json_rows import JsonFiles
from pipeline.input.shards import Input, find_shards
from pipeline.output.layout import INPUT_SHARDS
from pipeline.output.ledger import Ledger
from pipeline.planning import NONE_KNOWN, KnownShards
from pipeline.storage import Storage

FORMATS: dict[str, Callable[[Mapping[str, str]], Format]] = {
    JSON_FORMAT: JsonFiles, CSV_FORMAT: CsvFiles, ARROW_FORMAT: lambda _: ArrowFiles(),
}  # fmt: skip
TYPED = (JSON_FORMAT, CSV_FORMAT)
SHOWN_TYPE = 40  # characters


def find_input(config: RunConfig) -> Input:
    """The shards of ``config``; of files that are not Parquet they are written, unless they exist.

    Raises `InputError` and `OutputError` as `find_shards` and `convert` do, and `OutputError`
    if the output has files that are not of a run.
    """
    ledger = Ledger(Storage(config.output.path))
    known, found = ledger.known_shards(), list_input(config.input.path)
    if ledger.manifest() is None and found.format != PARQUET_FORMAT:
        ledger.refuse_other_files()
    shards = Storage(f"{config.output.path.rstrip('/')}/{INPUT_SHARDS}")
    return find_shards_of(found, config.input, shards, known)


def find_shards_of(
    found: InputFiles, section: InputConfig, shards: Storage, known: KnownShards = NONE_KNOWN
) -> Input:
    """As `find_input`, of the files ``found`` for ``section``, with what is made in ``shards``."""
    if section.types and found.format not in TYPED:
        raise InputError(
            f"input.types is for JSON and CSV; {found.format} files tell the types of their "
            "columns, so leave it out"
        )
    if found.format == PARQUET_FORMAT:
        return find_shards(found, known, section.query)
    types = {"types": section.types} if section.types else {}
    format_ = FORMATS[found.format](section.types)
    schema = convert(found, format_, shards, known.identities, types)
    made = find_shards(shards.url, known, section.query)
    notes = [*found.notes, *made.notes]
    if schema is not None and not known.identities:
        notes.append(f"{found.format} is read as Parquet with {_columns(schema)}; see input.types")
    return replace(made, notes=tuple(notes))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {str(field.type)[:SHOWN_TYPE]}" for field in schema)
