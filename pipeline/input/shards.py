"""Find prompt shards, count their rows from the footers, and read them."""

from collections.abc import Iterator, Sequence
from functools import partial
from io import BytesIO
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.planning import NONE_KNOWN, PARQUET, KnownShards, PartRef, Range, Shard
from pipeline.schema import ORIGIN_COLUMNS, ORIGIN_FIELDS, conform, unify
from pipeline.storage import FileInfo, Storage, map_in_threads

# The first read of a file's end: enough for nearly all footers, and little to fetch.
FOOTER_BYTES = 65_536
# The rows of one read task. Small enough to start soon; large enough that big row groups are not
# fetched again for every few rows.
ROWS_A_READ_TASK = 32_768
ROWS_A_BATCH = 1024


def find_shards(url: str, known: KnownShards = NONE_KNOWN) -> tuple[list[Shard], pa.Schema]:
    """The Parquet files at ``url`` (folder, file or glob), sorted by name, and their schema.

    The schema is `unify` of all shards. Footers of ``known`` shards are not read again while the
    listing shows these unchanged. Files and folders that begin with ``_`` or ``.`` are ignored, as
    all Parquet readers do. Raises `InputError` if there are no files, one can't be read, or their
    columns clash.
    """
    store, files = find_files(url, PARQUET)
    if not files:
        raise InputError(f"input.path {url}: no Parquet files there")
    known = known.if_unchanged(Storage(url).location, files)
    rows = {name: identity["rows"] for name, identity in known.identities.items()}
    new = [info for info in files if info.name not in rows]
    schemas = [] if known.schema is None else [("what the other shards have", known.schema)]
    for info, footer in zip(new, map_in_threads(partial(_footer, store), new), strict=True):
        rows[info.name] = footer.num_rows
        schemas.append((info.name, footer.schema.to_arrow_schema()))
    shards = [
        Shard(info.name, store.path(info.name), rows[info.name], info.size, info.tag)
        for info in files
    ]
    return shards, unify(schemas)


def read_rows(input_url: str, piece: Range, schema: pa.Schema) -> Iterator[pa.Table]:
    """All rows of one range, chosen or not, as tables of ``schema``; missing columns are null."""
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
    """The rows to do of ``bundle``, as tables of ``schema`` with the provenance columns.

    ``bundle``: ranges, those of one part side by side. ``samples``: those of each row, for ranges
    without picks. ``schema``: as `pipeline.schema.with_origin` makes it.
    """
    prompts = pa.schema([field for field in schema if field.name not in ORIGIN_COLUMNS])
    # All ranges of a part in one read: every read decodes its first row group from the start.
    for part, group in groupby(bundle, key=lambda piece: piece.part):
        pieces = list(group)
        part_text, row = str(PartRef.of(part)), pieces[0].start
        requested = {
            number: values
            for piece in pieces
            for number, values in _requested(piece, samples).items()
        }
        for table in read_rows(input_url, Range(part, row, pieces[-1].stop), prompts):
            numbers = [n for n in range(row, row + table.num_rows) if n in requested]
            if numbers:
                chosen = table.take([number - row for number in numbers])
                origins = zip(*((part_text, n, *requested[n]) for n in numbers), strict=True)
                columns = [pa.array(c, f.type) for c, f in zip(origins, ORIGIN_FIELDS, strict=True)]
                yield pa.table([*chosen.columns, *columns], schema=schema)
            row += table.num_rows


def _requested(
    piece: Range, samples: tuple[int, ...]
) -> dict[int, tuple[tuple[int, ...], int, int]]:
    """By row to do: its samples, and the start and stop of the rows that it accounts for."""
    if piece.picks is None:
        return {row: (samples, row, row + 1) for row in range(piece.start, piece.stop)}
    borders = [piece.start, *(row for row, _ in piece.picks[1:]), piece.stop]
    return {
        row: (chosen, borders[i], borders[i + 1]) for i, (row, chosen) in enumerate(piece.picks)
    }


def _row_groups(parquet: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups with rows ``start`` to ``stop``, and the row number of their first row."""
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
    """The files at ``url`` (folder, file or glob), and the folder that their names start from.

    ``ending``: of the file names, if ``url`` is a folder. Hidden files are ignored, as in
    `find_shards`.
    """
    segments = url.split("/")
    wildcards = [i for i, segment in enumerate(segments) if set(segment) & set("*?[")]
    if wildcards and not Storage(url).is_folder():
        folder, pattern = "/".join(segments[: wildcards[0]]), "/".join(segments[wildcards[0] :])
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
        size = int.from_bytes(end[-8:-4], "little") + 8  # the format: footer length, PAR1
        if end.endswith(b"PAR1") and len(end) < size <= info.size:
            end = store.read_end(info, size)
        return pq.read_metadata(BytesIO(end))
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{store.path(info.name)} is not a readable Parquet file: {error}; replace or remove it"
        ) from None
