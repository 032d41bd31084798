"""Turn the files of an input into Parquet shards, once, in a folder of the run's own.

Each file becomes one shard with the file's name, but for the ending: ``en/a.jsonl.gz`` becomes
``en/a.parquet``, with the same rows in the same order. So a run has the same seeds whatever its
rows came in. `SOURCES` in the same folder records the files, their content and their types.

Files may be added later, and have to fit the types of the first ones. A file whose shard a run has
begun with may not change. It may be removed: its shard stays.
"""

import hashlib
import logging
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from pipeline.errors import FileChangedError, InputError, OutputError
from pipeline.input.files import ENDINGS, InputFiles, named
from pipeline.local_disk import FileInfo
from pipeline.planning import PARQUET
from pipeline.storage import Storage

logger = logging.getLogger(__name__)
# Parquet readers skip names that begin with "_".
SOURCES = "_sources.yaml"
READ_BYTES = 2**20
PINNED = "hf://"  # with a commit in the URL, nothing there changes


class Format(Protocol):
    """How files of one format become shards."""

    def types(
        self, store: Storage, files: Iterable[FileInfo], fixed: pa.Schema | None
    ) -> pa.Schema | None:
        """The columns of ``files`` together; None if each file tells its own.

        ``fixed``: the columns that there are already, which the files must fit. Raises `InputError`
        that names file and line. By default none: the shards are compared as any Parquet files.
        """
        return None

    def write(self, store: Storage, name: str, schema: pa.Schema | None, shard: IO[bytes]) -> None:
        """Write the file ``name`` as Parquet, with the columns of ``schema``.

        Raises `InputError` that names file and line.
        """


@dataclass
class _Record:
    """What `SOURCES` holds.

    ``location``, ``settings``: of the conversion. ``files``: by name, with size, tag, digest and
    shard. ``schema``: the columns of all; None if each file tells its own.
    """

    location: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    schema: pa.Schema | None = None

    @classmethod
    def read(cls, shards: Storage) -> "_Record":
        try:
            data = yaml.safe_load(shards.read(SOURCES))
            types = data["types"]
            schema = None if types is None else pa.ipc.read_schema(pa.py_buffer(b64decode(types)))
            return cls(data["location"], data["settings"], data["files"], schema)
        except FileNotFoundError:
            return cls()
        except (KeyError, TypeError, ValueError, yaml.YAMLError, pa.ArrowException):
            raise OutputError(
                f"{shards.path(SOURCES)} is damaged, or of another version; choose another "
                "output.path"
            ) from None

    def write(self, shards: Storage) -> None:
        types = None if self.schema is None else b64encode(self.schema.serialize()).decode()
        data = {
            "location": self.location, "settings": self.settings, "types": types,
            "files": self.files,
        }  # fmt: skip
        shards.put(SOURCES, yaml.safe_dump(data, sort_keys=False).encode())


def convert(
    found: InputFiles,
    format_: Format,
    shards: Storage,
    begun: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> pa.Schema | None:
    """Write the shards of ``found`` that are missing in ``shards``; returns the common columns.

    ``begun``: the names of the shards that a run knows already. ``settings``: what else decides the
    shards. Raises `InputError` for files that can't be read as what they are, and `OutputError` if
    a file that the run has begun with has changed.
    """
    record = _Record.read(shards)
    settings = {"format": found.format, **(settings or {})}
    names = shard_names(found)
    known = {n: known for n, known in record.files.items() if known["shard"] in begun}
    if begun and not record.files:
        raise OutputError(
            f"the run that {shards.url} belongs to began with Parquet files, and {found.url} has "
            f"{found.format} files; set input.path back, or choose another output.path"
        )
    if known:
        _refuse_other_input(found, record, known, settings)
    location = Storage(found.url).location
    unchanged = {
        info.name: {**record.files[info.name], "tag": info.tag}
        for info in found.files
        if info.name in record.files and record.settings == settings
        if _is_same(found.store, info, record.files[info.name], record.location == location)
    }
    if changed := [n for n in names if n in known and n not in unchanged]:
        raise OutputError(
            f"{named(changed)} has changed since the run at {shards.url} began; put it back, add "
            "new rows in a file of their own beside it, or choose another output.path"
        )
    schema, files = record.schema, {**known, **unchanged}
    new = [info for info in found.files if info.name not in unchanged]
    if new or files.keys() != record.files.keys():
        fixed = record.schema if known else None
        # Types are decided by all files together; those that a run has begun with have decided.
        learned_from = [i for i in found.files if i.name not in known]
        schema = format_.types(found.store, learned_from, fixed)
        if schema != record.schema:
            files, new = {name: files[name] for name in known}, learned_from
        _remove(shards, {e["shard"] for e in record.files.values()}, files)
        files = {**files, **{i.name: _identity(found.store, i, names[i.name]) for i in new}}
    now = _Record(location, settings, files, schema)
    if now != record:
        now.write(shards)
    _write_missing(found, format_, shards, now)
    return schema


def recorded_settings(shards: Storage) -> Mapping[str, Any]:
    """The ``settings`` with which the shards there were made; empty if there are none."""
    return _Record.read(shards).settings


def _write_missing(found: InputFiles, format_: Format, shards: Storage, record: _Record) -> None:
    there = {info.name for info in shards.files()}
    missing = [i for i in found.files if record.files[i.name]["shard"] not in there]
    for number, info in enumerate(missing, 1):
        shard = record.files[info.name]["shard"]
        if shards.exists(shard):  # another worker was faster
            continue
        logger.info(
            "writing %s as Parquet (file %d of %d, %.1f MB)",
            found.store.path(info.name), number, len(missing), info.size / 1e6,
        )  # fmt: skip
        # Not over the shard of a faster worker, which may be reading it.
        with suppress(FileChangedError), shards.writing(shard, over=None) as file:
            format_.write(found.store, info.name, record.schema, file)


def _remove(shards: Storage, written: Collection[str], files: Mapping[str, Any]) -> None:
    """Remove shards that are made anew, or whose files have gone, before a run has begun."""
    kept = {entry["shard"] for entry in files.values()}
    shards.delete(sorted(set(written) - kept))


def shard_names(found: InputFiles) -> dict[str, str]:
    """The shard of each file; raises `InputError` if two files would have the same one."""
    names, sources = dict[str, str](), dict[str, str]()
    for info in found.files:
        shard = ENDINGS[found.format].sub("", info.name) + PARQUET
        if sources.setdefault(shard, info.name) != info.name:
            raise InputError(
                f"{sources[shard]} and {info.name} would both become the shard {shard}; if they "
                "hold the same rows take one away, else rename it"
            )
        names[info.name] = shard
    return names


def _refuse_other_input(
    found: InputFiles,
    record: _Record,
    known: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Raise `OutputError` for settings or files that are not those that the run began with."""
    if settings != record.settings:
        raise OutputError(
            f"the run began with its input read as {_shown(record.settings)}, and now it would be "
            f"{_shown(settings)}; set that back, or choose another output.path"
        )
    there = {info.name for info in found.files}
    if record.location != Storage(found.url).location and not known.keys() <= there:
        raise OutputError(
            f"the run began with input.path {record.location}, and {found.url} lacks files of it: "
            f"{named(sorted(known.keys() - there))}; set input.path back, or choose another "
            "output.path"
        )


def _shown(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items() if value)


def _is_same(store: Storage, info: FileInfo, known: Mapping[str, Any], same_location: bool) -> bool:
    if known["size"] != info.size:
        return False
    if same_location and info.tag and known["tag"] == info.tag:
        return True
    return bool(known["digest"] == _digest(store, info.name))


def _identity(store: Storage, info: FileInfo, shard: str) -> dict[str, Any]:
    digest = "" if store.url.startswith(PINNED) else _digest(store, info.name)
    return {"shard": shard, "size": info.size, "tag": info.tag, "digest": digest}


def _digest(store: Storage, name: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with store.open(name) as file:
        while data := file.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def write_tables(tables: Iterator[pa.Table], schema: pa.Schema, shard: IO[bytes]) -> None:
    """Write ``tables`` to the Parquet file ``shard``, each as a row group."""
    with pq.ParquetWriter(shard, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
