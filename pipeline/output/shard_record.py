"""The record of a run's shards in its output: what they are, and what was selected of them."""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from pipeline.errors import FileChangedError, OutputError
from pipeline.output.layout import SHARDS
from pipeline.output.yaml_files import read_yaml, to_yaml
from pipeline.planning import KnownShards, Shard
from pipeline.storage import Storage

COMMON = "_schema"  # a key beside shard names, which never begin with an underscore
MOST_NAMED = 20


def read_shards(store: Storage) -> KnownShards:
    """The shards as recorded in the output ``store``; none if there is no record.

    Raises `OutputError` if the file is damaged.
    """
    recorded = read_yaml(store, SHARDS) or {}
    common = recorded.pop(COMMON, None) or {}
    schema, deciding = (_schema(common.get(key)) for key in ("arrow", "deciding"))
    lineage = tuple(common.get("lineage", ()))
    return KnownShards(recorded, schema, common.get("input"), lineage, deciding)


def _schema(text: str | None) -> pa.Schema | None:
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(b64decode(text)))


def identities(shards: Iterable[Shard]) -> dict[str, dict[str, int | str]]:
    """The identity of each shard, by its name."""
    return {shard.name: shard.identity for shard in shards}


def write_shards(store: Storage, shards: KnownShards) -> None:
    """Record ``shards`` in the output ``store``, beside those that are recorded.

    Also beside those that another worker records at the same time.
    """
    while True:
        version, recorded = store.version(SHARDS), read_yaml(store, SHARDS) or {}
        record = _with_shards(recorded, shards)
        if record == recorded:
            return
        with suppress(FileChangedError), store.writing(SHARDS, version) as file:
            file.write(to_yaml(record, flow=None))


def _with_shards(recorded: Mapping[str, Any], shards: KnownShards) -> dict[str, Any]:
    names = {name: known for name, known in recorded.items() if name != COMMON}
    names |= shards.identities
    common: dict[str, Any] = {
        "input": shards.location,
        "shards": len(names),
        "arrow": b64encode(shards.schema.serialize()).decode(),
    }
    if shards.lineage:
        common["lineage"] = [dict(run) for run in shards.lineage]
    if shards.deciding is not None:
        common["deciding"] = b64encode(shards.deciding.serialize()).decode()
    return {COMMON: common, **names}


def refuse_changed_shards(store: Storage, shards: Iterable[Shard]) -> None:
    """Raise `OutputError` if one of ``shards`` is not as recorded in the output ``store``."""
    recorded = read_shards(store)
    changed = [
        f"  {shard.name}: {_changes(known, shard.identity)}"
        for shard in shards
        if (known := recorded.identities.get(shard.name)) and not shard.is_unchanged(known)
    ]
    if changed:
        remedy = _REPLACED if recorded.lineage else _REWRITTEN
        more = len(changed) - MOST_NAMED
        raise OutputError(
            f"input shards have changed since the run at {store.url} first saw them:\n"
            + "\n".join(changed[:MOST_NAMED])
            + (f"\n  and {more} more" if more > 0 else "")
            + f"\n{remedy} {store.path(SHARDS)}"
        )


def _changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    keys = [key for key in known if key != "bits" and now.get(key) != known[key]]
    return ", ".join(f"{key} {known[key]}, now {now.get(key)}" for key in keys)


_REWRITTEN = (
    "restore the old files, or give the new ones new names, or choose another output.path; if "
    "their rows are the same (a damaged file that was repaired, say), remove their lines from"
)
_REPLACED = (
    "an earlier run wrote these files, and a retry or a top-up has replaced traces in them. Choose "
    "another output.path (of a stage, another name) to do all rows with the new traces. Or, to do "
    "only the rows of these files again, remove this run's output files that are named after them, "
    "and their lines from"
)
