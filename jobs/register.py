"""Add the finished parts of an output to an Iceberg table, as they are, each once.

    qwq-batch register OUTPUT --catalog NAME --table NAMESPACE.TABLE

It may be repeated while the run goes on. The table's own list of files says which parts it has. A
part that a retry or a top-up has replaced takes the place of the old one, in the same commit.

What the table says of a part (rows, bounds of columns, by which readers leave files out) is of the
file that was there when it was added. So `REGISTERED` records the tag of that file, as the storage
lists it, and a part with another one is added anew. One without a record is too, which is always
right and costs the reading of a footer.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.errors import OutputError, QwqBatchError, StorageError, first_line
from pipeline.local_disk import FileInfo
from pipeline.output.layout import BOOKKEEPING, parse_listing
from pipeline.output.reader import open_output
from pipeline.storage import Storage

if TYPE_CHECKING:
    from pyiceberg.table import Table

# In the output, by the table's own id: the snapshot and the tags of the parts in it.
REGISTERED = f"{BOOKKEEPING}/registered"


@dataclass(frozen=True)
class Registered:
    """What `register` did, in parts: ``added``, ``replaced``, and ``there`` before."""

    added: int
    replaced: int
    there: int


def register(output: str, catalog: str, table: str) -> Registered:
    """Add the parts of the run at ``output`` that ``table`` lacks.

    ``catalog``: a name in pyiceberg's own configuration. ``table``: with its namespace; it is made
    if it does not exist. Raises `OutputError` if there is no run or no finished part, and
    `StorageError` if the catalog can't be used, the columns do not fit the table, or another
    process has changed it meanwhile.
    """
    store = open_output(output).store
    listed = {info.name: info for info in store.files()}
    finished = sorted(parse_listing(listed.values()).finished_parts())
    if not finished:
        raise OutputError(f"{output} has no finished part yet; register it later")
    parts = {_address(store, name): listed[name] for name in finished}
    with _errors(catalog, table):
        opened = _open_table(catalog, table, store, finished[0])
        record = f"{REGISTERED}/{opened.metadata.table_uuid}.json"
        done = _add(opened, parts, _recorded_tags(opened, store, record))
        if done.added or done.replaced:
            _record_tags(opened, store, record, parts.values())
        return done


def _recorded_tags(table: "Table", store: Storage, record: str) -> dict[str, str]:
    """The tags of the parts that were registered, by name; none of a snapshot that was undone."""
    from pyiceberg.table.snapshots import ancestors_of

    try:
        data = json.loads(store.read(record))
        snapshot, tags = data["snapshot"], dict(data["tags"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    history = ancestors_of(table.current_snapshot(), table.metadata)
    return tags if any(each.snapshot_id == snapshot for each in history) else {}


def _record_tags(table: "Table", store: Storage, record: str, parts: Iterable[FileInfo]) -> None:
    snapshot = table.current_snapshot()
    assert snapshot is not None
    tags = {info.name: info.tag for info in parts}
    store.put(record, json.dumps({"snapshot": snapshot.snapshot_id, "tags": tags}).encode())


def _address(store: Storage, name: str) -> str:
    """The address of a part, the same however the output is named."""
    path = f"{store.location}/{name}"
    return os.path.realpath(path) if store.is_local else path


def _open_table(catalog: str, table: str, store: Storage, part: str) -> "Table":
    """The table, made with the columns of ``part`` if need be."""
    from pyiceberg.catalog import load_catalog

    loaded = load_catalog(catalog)
    namespace = table.rpartition(".")[0]
    if not namespace:
        raise OutputError(f"--table {table} has no namespace; write it as NAMESPACE.TABLE")
    loaded.create_namespace_if_not_exists(namespace)
    with store.open(part) as file:
        schema = pq.read_schema(file).remove_metadata()
    return loaded.create_table_if_not_exists(table, schema)


def _add(table: "Table", parts: Mapping[str, FileInfo], tags: Mapping[str, str]) -> Registered:
    """Bring the entries of ``parts``, by address, up to date in one commit.

    ``tags``: of the files that the entries were made of, by name.
    """
    from pyiceberg.io.pyarrow import parquet_files_to_data_files
    from pyiceberg.table import TableProperties

    entries = {task.file.file_path: task.file for task in table.scan().plan_files()}
    replaced = [
        entry
        for path, entry in entries.items()
        if path in parts and tags.get(parts[path].name) != parts[path].tag
    ]
    new = [path for path in parts if path not in entries]
    changed = [*new, *(entry.file_path for entry in replaced)]
    done = Registered(len(new), len(replaced), len(parts) - len(changed))
    if not changed:
        return done
    with table.transaction() as transaction:
        if table.name_mapping() is None:  # the files name their columns, and do not number them
            mapping = table.schema().name_mapping.model_dump_json()
            transaction.set_properties({TableProperties.DEFAULT_NAME_MAPPING: mapping})
        snapshot = transaction.update_snapshot()
        with snapshot.overwrite() if replaced else snapshot.fast_append() as update:
            for entry in replaced:
                update.delete_data_file(entry)
            files = parquet_files_to_data_files(table.io, transaction.table_metadata, iter(changed))
            for file in files:
                update.append_data_file(file)
    return done


@contextmanager
def _errors(catalog: str, table: str) -> Iterator[None]:
    """Errors of pyiceberg and of its catalogs, with what to do."""
    try:
        yield
    except QwqBatchError:
        raise
    except ImportError as error:
        if "iceberg" not in str(error):
            raise
        raise OutputError("this needs pyiceberg; pip install 'qwq-batch[iceberg]'") from None
    except Exception as error:
        kind: Any = type(error)
        if kind.__name__ == "CommitFailedException":
            message = "another process has changed the table; the same command goes on"
        elif kind.__module__.startswith("pyiceberg") or isinstance(error, (ValueError, TypeError)):
            message = first_line(error)
        elif kind.__module__.startswith(("sqlalchemy", "botocore", "requests")):
            message = f"the catalog failed ({kind.__name__})"  # its text may have the credentials
        else:
            raise
        raise StorageError(
            f"can't register in table {table} of catalog {catalog}: {message}"
        ) from None
