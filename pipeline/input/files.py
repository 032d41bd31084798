"""Which files an input has, in which format, and how their bytes and lines are read."""

import glob
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import pyarrow as pa

from pipeline.errors import InputError, first_line
from pipeline.local_disk import FileInfo
from pipeline.storage import Storage

MAX_NAMED = 5
READ_BYTES = 2**20
PARQUET_FORMAT, JSON_FORMAT, CSV_FORMAT, ARROW_FORMAT = "Parquet", "JSON", "CSV", "Arrow"
_COMPRESSED = r"(\.(gz|gzip|zst|zstd|bz2))?$"
# The endings of Parquet files, also with the codec behind it, as pandas' documentation has them.
PARQUET_NAMES = re.compile(
    r"\.(parquet|parq|pq)(\.(gzip|gz|snappy|zstd|zst|brotli|br|lz4))?$", re.IGNORECASE
)
# By format, the endings of its files; without them, a file's name is that of its shard.
ENDINGS = {
    PARQUET_FORMAT: PARQUET_NAMES,
    JSON_FORMAT: re.compile(rf"\.(jsonl|ndjson|json){_COMPRESSED}", re.IGNORECASE),
    CSV_FORMAT: re.compile(rf"\.(csv|tsv){_COMPRESSED}", re.IGNORECASE),
    ARROW_FORMAT: re.compile(r"\.(arrow|feather)$", re.IGNORECASE),
}
# What libraries write beside their data; no rows are in there.
_DESCRIPTIONS = re.compile(
    r"(^|/)(dataset_infos?|dataset_dict|state|metadata|config)\.json$|\.schema\.json$"
)
_CODECS = {"gz": "gzip", "gzip": "gzip", "zst": "zstd", "zstd": "zstd", "bz2": "bz2"}


@dataclass(frozen=True)
class InputFiles:
    """The files of an input, all of one ``format``, sorted by name.

    ``url``: as configured. ``store``: where their names start from. ``left_out``: the names of
    other files there.
    """

    url: str
    store: Storage
    format: str
    files: Sequence[FileInfo]
    left_out: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """What people should know: which files are not read."""
        if not self.left_out:
            return []
        if self.format == PARQUET_FORMAT:
            rule = "the names of Parquet files must end in .parquet or .pq"
        else:
            rule = f"{self.format} files are read"
        return [
            f"{len(self.left_out):,} files or links are not read: {named(self.left_out)}; {rule}"
        ]


def list_input(url: str, names_url: str | None = None) -> InputFiles:
    """The files at ``url`` (folder, file or glob) that are read.

    Of a folder these are its Parquet files; without any, those of the one other format that it
    has. A file of unknown ending is taken for Parquet if it is named, or matches a glob.
    ``names_url``: a text file that names them, one a line, as they are called below ``url``. Raises
    `InputError` if the files are of several formats, or one that is named is missing.
    """
    left_out = list[str]()
    store, files = find_files(url, re.compile(""), left_out)
    if names_url is not None:
        listed = _listed(files, names_url, url)
        return of_one_format(InputFiles(url, store, "", listed), is_folder=False)
    return of_one_format(InputFiles(url, store, "", files, left_out), Storage(url).is_folder())


def _listed(files: Sequence[FileInfo], names_url: str, url: str) -> list[FileInfo]:
    """Those of ``files`` that the text file ``names_url`` names; raises `InputError`."""
    folder, slash, name = names_url.rpartition("/")
    try:
        text = Storage(folder + slash if slash else ".").read(name).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        what = "is not there" if isinstance(error, FileNotFoundError) else "is not UTF-8"
        raise InputError(f"input.files {names_url} {what}; it is a list of file names") from None
    present = {info.name: info for info in files}
    chosen = dict[str, FileInfo]()
    for number, line in enumerate(text.splitlines(), 1):
        if not (wanted := line.strip()):
            continue
        if wanted not in present:
            raise InputError(
                f"{names_url}:{number}: {wanted} is no file below input.path {url}; names are "
                "relative to that"
            )
        chosen[wanted] = present[wanted]
    if not chosen:
        raise InputError(f"input.files {names_url} names no file")
    return list(chosen.values())


def of_one_format(found: InputFiles, is_folder: bool) -> InputFiles:
    """Those files of ``found`` that are read, with their format; raises as `list_input`."""
    by_format, unknown = defaultdict[str, list[FileInfo]](list), list[FileInfo]()
    for info in found.files:
        format_ = format_of(info.name)
        (unknown if format_ is None else by_format[format_]).append(info)
    left_out = list(found.left_out)
    if is_folder:
        left_out += [info.name for info in unknown]
    elif unknown:  # a Parquet file may have any name
        by_format[PARQUET_FORMAT] += unknown
    if len(by_format) > 1 and not (is_folder and PARQUET_FORMAT in by_format):
        examples = ", ".join(f"{each[0].name} ({name})" for name, each in by_format.items())
        raise InputError(
            f"input.path {found.url} has files of several formats: {examples}; choose one with a "
            f"glob such as {_glob(found.url)}"
        )
    is_parquet = PARQUET_FORMAT in by_format or not by_format
    chosen = PARQUET_FORMAT if is_parquet else next(iter(by_format))
    left_out += [i.name for name, each in by_format.items() if name != chosen for i in each]
    taken = sorted(by_format.get(chosen, []), key=lambda info: info.name)
    return InputFiles(found.url, found.store, chosen, taken, sorted(left_out))


def _glob(url: str) -> str:
    folder = url.rstrip("/") if Storage(url).is_folder() else url.rpartition("/")[0]
    return f"{folder}/**/*.jsonl"


def format_of(name: str) -> str | None:
    """The format of a file by the ending of its name; None if it is none of ours."""
    if _DESCRIPTIONS.search(name):
        return None
    return next((format_ for format_, ending in ENDINGS.items() if ending.search(name)), None)


def find_files(
    url: str, names: re.Pattern[str], left_out: list[str] | None = None
) -> tuple[Storage, list[FileInfo]]:
    """The files at ``url`` (folder, file or glob), and the folder that their names start from.

    ``names``: what the file names must have, if ``url`` is a folder. ``left_out`` gets the names of
    the others. Names that begin with ``_`` or ``.`` are ignored, as all Parquet readers do.
    """
    left_out = [] if left_out is None else left_out
    segments = url.rstrip("/").split("/")
    wildcards = [i for i, segment in enumerate(segments) if set(segment) & set("*?[")]
    if Storage(url).is_file():
        folder, pattern = "/".join(segments[:-1]), glob.escape(segments[-1])
    elif wildcards and not Storage(url).is_folder():
        folder, pattern = "/".join(segments[: wildcards[0]]), "/".join(segments[wildcards[0] :])
    else:
        folder, pattern = url, ""
    store = Storage(folder or ("/" if url.startswith("/") else "."))
    files = store.glob(pattern, left_out) if pattern else store.files(left_out=left_out)
    files = [info for info in files if not _hidden(info.name)]
    left_out[:] = [name for name in left_out if not _hidden(name)]
    if not pattern:
        left_out += [info.name for info in files if not names.search(info.name)]
        files = [info for info in files if names.search(info.name)]
    for info in files:
        if any("\ud800" <= character <= "\udfff" for character in info.name):
            raise InputError(f"{info.name!r}: the name of this file is not UTF-8; rename it")
    return store, files


def named(names: Sequence[str], most: int = MAX_NAMED) -> str:
    """``names`` for a message; of many, the first ones."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _hidden(name: str) -> bool:
    return any(segment.startswith(("_", ".")) for segment in name.split("/"))


@contextmanager
def opened(store: Storage, name: str) -> Iterator[IO[bytes]]:
    """The file ``name`` for reading from its start, decompressed if its ending says so.

    Raises `InputError` if the compressed data are damaged.
    """
    codec = _CODECS.get(name.rpartition(".")[2].lower())
    with store.open(name) as file:
        raw = file
        if codec is not None:
            raw = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)
        try:
            # Some of fsspec's files are slow or wrong at reading lines.
            yield io.BufferedReader(raw, READ_BYTES)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # of the disk or the network, not of the file
                raise
            raise InputError(f"{store.path(name)} can't be read: {first_line(error)}") from None


def lines(store: Storage, name: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, each with its number, from 1; raises as `opened`."""
    with opened(store, name) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line
