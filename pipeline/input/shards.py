"""Prompt shards: found, counted from their footers, and read as a Ray Data source."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.planning import NONE_KNOWN, PARQUET, KnownShards, PartRef, Range, Shard
from pipeline.schema import ORIGIN_COLUMNS, ORIGIN_FIELDS, conform, unify
from pipeline.storage import FileInfo, Storage

# Of a file's end: enough for nearly all footers, and little to fetch.
FOOTER_BYTES = 65_536
FOOTER_THREADS = 32
# One read task's rows. Small enough to start soon; large enough that a shard's big row groups
# are not fetched again for every few rows.
ROWS_A_READ_TASK = 32_768
ROWS_A_BATCH = 1024


def find_shards(url: str, known: KnownShards = NONE_KNOWN) -> tuple[list[Shard], pa.Schema]:
    """The Parquet files at ``url`` (folder, file or glob), by name, and the schema all fit.

    Of those ``known`` no footer is read, as long as the listing shows them unchanged.

    Files and folders that begin with ``_`` or ``.`` are left out, as all Parquet readers do.
    Raises `InputError` if there are none or one can't be read.
    """
    store, files = find_files(url, PARQUET)
    if not files:
        raise InputError(f"input.path {url}: no Parquet files there")
    known = known.among(Storage(url).location, files)
    rows = {name: identity["rows"] for name, identity in known.identities.items()}
    new = [info for info in files if info.name not in rows]
    schemas = [] if known.schema is None else [("what the other shards have", known.schema)]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        for info, footer in zip(new, pool.map(partial(_footer, store), new), strict=True):
            rows[info.name] = footer.num_rows
            schemas.append((info.name, footer.schema.to_arrow_schema()))
    shards = [
        Shard(info.name, store.path(info.name), rows[info.name], info.size, info.tag)
        for info in files
    ]
    return shards, unify(schemas)


def read_rows(input_url: str, piece: Range, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of one range, as tables of ``schema``: its columns alone, null where lacking."""
    with Storage(input_url).fs.open(piece.part.shard.path, "rb") as file:
        parquet = pq.ParquetFile(file)
        groups, position = _row_groups(parquet, piece.start, piece.stop)
        for batch in parquet.iter_batches(ROWS_A_BATCH, groups, schema.names):
            low, high = max(piece.start - position, 0), min(piece.stop - position, batch.num_rows)
            position += batch.num_rows
            if low < high:
                yield conform(pa.Table.from_batches([batch.slice(low, high - low)]), schema)
            if position >= piece.stop:
                return


def read_bundle(
    input_url: str, bundle: Sequence[Range], samples: tuple[int, ...], schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows to do of some ranges, with where they come from; see `PromptSource`."""
    prompts = pa.schema([f for f in schema if f.name not in ORIGIN_COLUMNS])
    # Neighbours of one part in one go: each time, a row group is decoded from its start.
    for part, pieces in groupby(bundle, key=lambda piece: piece.part):
        near = list(pieces)
        ref, row = str(PartRef.of(part)), near[0].start
        wanted = {key: value for piece in near for key, value in _wanted(piece, samples).items()}
        for table in read_rows(input_url, Range(part, row, near[-1].stop), prompts):
            here = [n for n in range(row, row + table.num_rows) if n in wanted]
            if here:
                kept = table.take([number - row for number in here])
                origins = zip(*((ref, number, *wanted[number]) for number in here), strict=True)
                columns = [pa.array(c, f.type) for c, f in zip(origins, ORIGIN_FIELDS, strict=True)]
                yield pa.table([*kept.columns, *columns], schema=schema)
            row += table.num_rows


def _wanted(piece: Range, samples: tuple[int, ...]) -> dict[int, tuple[tuple[int, ...], int, int]]:
    """For each row to do: its samples, and the rows from start to stop that it stands for."""
    if piece.picks is None:
        return {row: (samples, row, row + 1) for row in range(piece.start, piece.stop)}
    borders = [piece.start, *(row for row, _ in piece.picks[1:]), piece.stop]
    return {
        row: (chosen, borders[i], borders[i + 1]) for i, (row, chosen) in enumerate(piece.picks)
    }


def _row_groups(parquet: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows ``start`` to ``stop``, and the number of their first row."""
    groups: list[int] = []
    first, position = 0, 0
    for i in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(i).num_rows
        if position < stop and position + rows > start:
            first = first if groups else position
            groups.append(i)
        position += rows
    return groups, first


def find_files(url: str, ending: str) -> tuple[Storage, list[FileInfo]]:
    """The files at ``url`` (folder, file or glob) and the folder that their names are relative to.

    In a folder, those whose names end with ``ending``; never those that `find_shards` leaves out.
    """
    segments = url.split("/")
    magic = [i for i, segment in enumerate(segments) if set(segment) & set("*?[")]
    if magic and not Storage(url).is_folder():
        folder, pattern = "/".join(segments[: magic[0]]), "/".join(segments[magic[0] :])
    elif Storage(url).is_file():
        folder, pattern = "/".join(segments[:-1]), segments[-1]
    else:
        folder, pattern = url, ""
    store = Storage(folder or ("/" if url.startswith("/") else "."))
    files = (
        store.glob(pattern) if pattern else [f for f in store.files() if f.name.endswith(ending)]
    )
    return store, [info for info in files if not _hidden(info.name)]


def _hidden(name: str) -> bool:
    return any(segment.startswith(("_", ".")) for segment in name.split("/"))


def _footer(store: Storage, info: FileInfo) -> pq.FileMetaData:
    try:
        end = store.read_end(info, FOOTER_BYTES)
        size = int.from_bytes(end[-8:-4], "little") + 8  # by the format: length, then PAR1
        if end.endswith(b"PAR1") and len(end) < size <= info.size:
            end = store.read_end(info, size)
        return pq.read_metadata(BytesIO(end))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{store.path(info.name)} is not a readable Parquet file: {error}"
        ) from None
