"""Find prompt shards: their files, their rows as the footers count them, and their columns."""

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, first_line
from pipeline.input.column_types import fit, plain, unify
from pipeline.input.earlier_run import EarlierRun, carried_columns, the_run
from pipeline.input.files import PARQUET_FORMAT, InputFiles, list_input, named
from pipeline.input.hive import TEXT, folder_types, with_folder_columns
from pipeline.input.query import ALL, InputQuery, RowSelector
from pipeline.input.source_rows import refuse_other_types
from pipeline.local_disk import FileInfo
from pipeline.planning import NONE_KNOWN, KnownShards, Shard
from pipeline.schema import SOURCE_ROW, cast
from pipeline.storage import Storage, map_in_threads

# The first read of a file's end: enough for nearly all footers, and little to fetch. Shards are
# recognized by a digest of it, so another value would take all shards for changed.
FOOTER_BYTES = 65_536
# What the output of a run has: the name in `pipeline.output.layout`, which stands further on.
MANIFEST = "__qwq/manifest.yaml"
ROWS_A_CHECK = 65_536


@dataclass(frozen=True)
class Input:
    """The shards of an input, in the order of their names, and their common `schema`.

    ``url``: where they are read from. ``source``: what they were made of, by which it is recorded;
    a data set of the hub with its commit.

    ``notes``: what people should know, such as files that were left out. ``run``: the one that
    wrote the files, if any did; None if only known shards are there. ``stage``: its number in its
    chain; 0 for none. ``deciding``: the schema of the columns that decide which rows are taken.
    """

    url: str
    shards: list[Shard]
    schema: pa.Schema
    notes: tuple[str, ...] = ()
    run: EarlierRun | None = None
    stage: int = 0
    deciding: pa.Schema | None = None
    source: str = ""

    @property
    def carried(self) -> dict[str, str]:
        """From the names in the files to those in `schema`, where a run's columns are carried."""
        return carried_columns(self.stage, self.schema.names)

    @property
    def folder_keys(self) -> dict[str, str]:
        """The keys of folders such as ``lang=en``, each with an example of such a folder."""
        folders = (folder for shard in self.shards for folder in shard.name.split("/")[:-1])
        return {folder.partition("=")[0]: folder for folder in folders if "=" in folder}


class _Footer(NamedTuple):
    rows: int
    digest: str
    schema: pa.Schema
    run: EarlierRun | None


def find_shards(
    source: str | InputFiles, known: KnownShards = NONE_KNOWN, query: InputQuery = ALL
) -> Input:
    """The Parquet files at ``source`` (folder, file or glob), sorted by name, and their rows.

    If ``known`` has a schema, that is the schema, and new shards have to fit it; otherwise it is
    `unify` of all shards. ``query`` says what is taken of them. Footers and rows of known shards
    are not read again while the listing shows these unchanged. Files and folders that begin with
    ``_`` or ``.`` are ignored, as all Parquet readers do. Raises `InputError` if there are no
    files, one can't be read, their columns clash, or ``query`` does not fit.
    """
    found = list_input(source) if isinstance(source, str) else source
    _refuse_other_files(found)
    url, store, files = found.url, found.store, found.files
    location = Storage(url).location
    identities = {info.name: known.unchanged(location, info) for info in files}
    new = [info for info in files if identities[info.name] is None]
    footers = {
        info.name: footer
        for info, footer in zip(new, map_in_threads(partial(_footer, store), new), strict=True)
    }
    types = _folder_types([info.name for info in files], known)
    carried = {key: type_ for key, type_ in types.items() if type_ == TEXT}
    for name, footer in footers.items():
        schema = with_folder_columns(footer.schema, name, carried)
        footers[name] = footer._replace(schema=schema)
    shards = []
    for info in files:
        rows, digest = (
            (identity["rows"], identity["digest"])
            if (identity := identities[info.name]) is not None
            else footers[info.name][:2]
        )
        path = store.path(info.name)
        shards.append(Shard(info.name, path, rows, info.size, info.tag, digest))
    run, stage = _written_by(footers, known)
    schema, notes = _common_schema(store, footers, known, query, run)
    deciding = known.deciding
    if query.selects_rows:
        schemas = [(n, with_folder_columns(f.schema, n, types)) for n, f in footers.items()]
        check = partial(_misfit, store)
        selector = partial(RowSelector, query, schemas, run, check, known.deciding)
        shards, deciding = _selected(url, shards, known, footers, selector)
        taken, rows = sum(s.rows for s in shards), sum(s.file_rows for s in shards)
        notes.append(f"{taken:,} of {rows:,} rows are taken, by input.where and input.unit")
    notes += found.notes
    return Input(url, shards, schema, tuple(notes), run, stage, deciding, url)


def _folder_types(names: Sequence[str], known: KnownShards) -> dict[str, pa.DataType]:
    """The keys of folders that are columns; of a run that has begun, those that it has."""
    types = folder_types(names)
    if known.schema is None:
        return types
    deciding = () if known.deciding is None else known.deciding.names
    return {key: t for key, t in types.items() if key in (*known.schema.names, *deciding)}


def _written_by(
    footers: Mapping[str, _Footer], known: KnownShards
) -> tuple[EarlierRun | None, int]:
    """The run that wrote the files, and its stage; raises `InputError` as `the_run`.

    A run that began on an output before there were stages goes on with that as with any files.
    """
    if known.schema is not None and not known.lineage:
        return None, 0
    stage = len(known.lineage) or None
    run = the_run({name: footer.run for name, footer in footers.items()}, stage)
    return run, stage or (0 if run is None else run.stage)


def _common_schema(
    store: Storage,
    footers: Mapping[str, _Footer],
    known: KnownShards,
    query: InputQuery,
    run: EarlierRun | None,
) -> tuple[pa.Schema, list[str]]:
    """The columns that are carried of all files, and notes as `unify` makes them."""
    schemas = [(name, query.carried(footer.schema, run)) for name, footer in footers.items()]
    if run is not None:
        for name, footer in footers.items():
            refuse_other_types(name, footer.schema)
    originals = {} if run is None else {v: k for k, v in run.carried(run.names.values()).items()}

    def check(shard: str, column: str, type_: pa.DataType) -> str | None:
        return _misfit(store, shard, originals.get(column, column), type_)

    if known.schema is not None:
        schema = plain(known.schema)
        return schema, fit(schemas, schema, check)
    query.check_columns(
        dict.fromkeys(name for footer in footers.values() for name in footer.schema.names)
    )
    schema, notes = unify(schemas, check)
    if (run is not None or query.selects_rows) and SOURCE_ROW not in schema.names:
        schema = schema.append(pa.field(SOURCE_ROW, pa.string()))
    return schema, notes


def _selected(
    url: str,
    shards: Iterable[Shard],
    known: KnownShards,
    new: Container[str],
    selector: Callable[[], RowSelector],
) -> tuple[list[Shard], pa.Schema | None]:
    """``shards``, each with its selection: the recorded one, or of ``new`` shards one made now.

    And the schema of the columns that decide.
    """
    deciding = known.deciding
    recorded = {
        shard.name: shard.selecting_as(identity)
        for shard in shards
        if "bits" in (identity := known.identities.get(shard.name, {}))
        and shard.is_unchanged(identity)
    }
    to_select = [shard for shard in shards if shard.name in new and shard.name not in recorded]
    if to_select:
        select = selector()
        deciding = select.schema
        selections = map_in_threads(partial(select.select, url), to_select)
        for shard, selection in zip(to_select, selections, strict=True):
            recorded[shard.name] = shard.selecting(selection)
    return [recorded.get(shard.name, shard) for shard in shards], deciding


def _refuse_other_files(found: InputFiles) -> None:
    """Raise `InputError` if there is no Parquet file, or one of another format was named."""
    if not found.files:
        there = f", but {named(found.left_out)}" if found.left_out else ""
        if not found.left_out and found.store.exists(MANIFEST):
            there = "; it is the output of a run that has not finished a part yet"
        raise InputError(f"input.path {found.url}: no {_ACCEPTED} files there{there}")
    if found.format != PARQUET_FORMAT:
        raise InputError(
            f"input.path {found.url}: {found.files[0].name} is not a Parquet file, and only these "
            "are read here"
        )


_ACCEPTED = "Parquet, JSON lines, CSV or Arrow"


def _footer(store: Storage, info: FileInfo) -> _Footer:
    try:
        end = store.read_end(info, FOOTER_BYTES)
        size = int.from_bytes(end[-8:-4], "little") + 8  # the format: footer length, PAR1
        if end.endswith(b"PAR1") and len(end) < size <= info.size:
            end = store.read_end(info, size)
        footer = pq.read_metadata(BytesIO(end))
        schema = plain(footer.schema.to_arrow_schema())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"{store.path(info.name)} is not a readable Parquet file: {first_line(error)}; replace "
            "or remove it"
        ) from None
    digest = hashlib.blake2b(end, digest_size=8).hexdigest()
    return _Footer(footer.num_rows, digest, schema, EarlierRun.of(footer))


def _misfit(store: Storage, shard: str, column: str, type_: pa.DataType) -> str | None:
    """Why a value in the ``column`` of a shard would not survive a cast; None if all do."""
    with store.open(shard) as file:
        try:
            parquet = pq.ParquetFile(file)
            for batch in parquet.iter_batches(ROWS_A_CHECK, columns=[column]):
                try:
                    cast(batch[column], type_)
                except (pa.ArrowException, UnicodeDecodeError) as error:
                    return first_line(error)
        except (pa.ArrowException, OSError):  # the rows that can't be read will say so
            return None
    return None
