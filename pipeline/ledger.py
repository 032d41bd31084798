"""What is done, as files in the output location; existence means done.

    en/shard-00007.00001.parquet                     a finished part
    _qwq/manifest.json                               whose output this is
    _qwq/journal/en/shard-00007.00001/4096-4112.rows a finished block (Parquet inside)

A resume lists names and reads no rows. Every write is atomic and can be repeated: fragments that
overlap are merged row by row, a part written twice holds the same rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import fingerprint_of
from pipeline.errors import OutputError
from pipeline.plan import PARQUET, Part, missing
from pipeline.schema import PART_COLUMN, ROW_COLUMN, conform
from pipeline.storage import FileInfo, Storage

BOOKKEEPING = "_qwq"
MANIFEST = f"{BOOKKEEPING}/manifest.json"
JOURNAL = f"{BOOKKEEPING}/journal"
FRAGMENT = ".rows"
METADATA_KEY = b"qwq-batch"


@dataclass(frozen=True)
class Extent:
    """A part as its rows carry it through Ray Data: its name and its rows in the shard."""

    name: str
    start: int
    stop: int

    @classmethod
    def of(cls, part: Part) -> "Extent":
        """The extent of ``part``."""
        return cls(part.name, part.start, part.stop)

    @classmethod
    def parse(cls, text: str) -> "Extent":
        """The inverse of ``str``."""
        name, start, stop = text.rsplit(":", 2)
        return cls(name, int(start), int(stop))

    def __str__(self) -> str:
        return f"{self.name}:{self.start}:{self.stop}"

    @property
    def journal(self) -> str:
        """The folder of its fragments."""
        return f"{JOURNAL}/{self.name.removesuffix(PARQUET)}"


@dataclass(frozen=True)
class Contents:
    """What an output location holds: finished parts, and row ranges with fragments by part."""

    parts: frozenset[str]
    fragments: Mapping[str, list[tuple[int, int]]]


class Ledger:
    """The files of one run's output."""

    def __init__(self, store: Storage) -> None:
        self.store = store

    def check_run(self, settings: Mapping[str, Any]) -> None:
        """Raise `OutputError` if a run with other settings, or something else, lives here."""
        found = self.manifest()
        if found is not None:
            self._refuse_other(found, settings)
            return
        foreign = [i.name for i in self.store.files() if not i.name.startswith(f"{BOOKKEEPING}/")]
        if foreign:
            raise OutputError(
                f"output.path {self.store.url} is not empty and not the output of a run (it has "
                f"{foreign[0]}); choose another folder or empty this one"
            )

    def open_run(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Claim the location for a run with ``settings``, or find it claimed for just that run."""
        manifest = {
            "fingerprint": fingerprint_of(settings),
            "settings": dict(settings),
            "versions": dict(versions),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.check_run(settings)
        if not self.store.create(MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n"):
            self.check_run(settings)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the run that lives here; None if there is none."""
        try:
            data: dict[str, Any] = json.loads(self.store.read(MANIFEST))
            return data
        except FileNotFoundError:
            return None
        except ValueError:
            raise OutputError(f"{self.store.path(MANIFEST)} is damaged: it is not JSON") from None

    def contents(self) -> Contents:
        """List what is done, without reading it."""
        parts, fragments = set(), dict[str, list[tuple[int, int]]]()
        for info in self.store.files():
            if info.name.startswith(f"{JOURNAL}/") and info.name.endswith(FRAGMENT):
                folder, _, name = info.name.removeprefix(f"{JOURNAL}/").rpartition("/")
                fragments.setdefault(folder + PARQUET, []).append(_fragment_range(name))
            elif not info.name.startswith(f"{BOOKKEEPING}/"):
                parts.add(info.name)
        return Contents(frozenset(parts), fragments)

    def write_block(self, block: pa.Table) -> set[Extent]:
        """Make the traces of ``block`` durable; returns the parts that they belong to."""
        extents = set()
        for key in pc.unique(block[PART_COLUMN]).to_pylist():
            extent = Extent.parse(key)
            extents.add(extent)
            rows = block.filter(pc.equal(block[PART_COLUMN], key)).sort_by(ROW_COLUMN)
            for start, stop, piece in _contiguous(rows.drop_columns([PART_COLUMN])):
                self.store.put(f"{extent.journal}/{start}-{stop}{FRAGMENT}", _parquet(piece))
        return extents

    def commit(self, extent: Extent, schema: pa.Schema, metadata: Mapping[str, Any]) -> bool:
        """Turn the fragments of a part into its file, if they hold all its rows.

        Safe to call from several places at once. Returns whether the part is finished.
        """
        prefix = f"{extent.journal}/"
        found = self.store.files(extent.journal)
        # A shard's name may make one journal folder lie in another; its own are direct children.
        fragments = [info for info in found if "/" not in info.name.removeprefix(prefix)]
        covered = [_fragment_range(info.name.rpartition("/")[2]) for info in fragments]
        if any(True for _ in missing(extent.start, extent.stop, covered)):
            return False
        try:
            table = self._merge(fragments, extent, schema)
        except FileNotFoundError:  # another committer was faster and has removed them
            return True
        expected = (extent.stop - extent.start) * metadata["settings"]["sampling.n"]
        if table.num_rows != expected:
            raise OutputError(
                f"the fragments in {self.store.path(extent.journal)} hold {table.num_rows} traces, "
                f"not {expected}; remove that folder to do these rows again"
            )
        self.store.put(extent.name, _parquet(_with_metadata(table, metadata)))
        self.discard(extent)
        return True

    def discard(self, extent: Extent) -> None:
        """Remove the fragments of a finished part."""
        prefix = f"{extent.journal}/"
        names = [info.name for info in self.store.files(extent.journal)]
        self.store.delete([name for name in names if "/" not in name.removeprefix(prefix)])
        self.store.prune(extent.journal)

    def _merge(self, fragments: list[FileInfo], extent: Extent, schema: pa.Schema) -> pa.Table:
        """All rows of a part in order, each once whatever overlaps."""
        tables, next_row = [schema.empty_table()], extent.start
        by_start = sorted((_fragment_range(i.name.rpartition("/")[2]), i.name) for i in fragments)
        for (_, stop), name in by_start:
            if stop <= next_row:
                continue
            table = pq.read_table(BytesIO(self.store.read(name)))
            table = table.filter(pc.greater_equal(table[ROW_COLUMN], next_row))
            tables.append(conform(table, schema))
            next_row = stop
        return pa.concat_tables(tables)

    def _refuse_other(self, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        before = found.get("settings", {})
        if found.get("fingerprint") == fingerprint_of(settings):
            return
        changed = [
            f"  {key}: there {before.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        raise OutputError(
            "\n".join(
                [
                    f"output.path {self.store.url} holds a run with other settings:",
                    *changed,
                    "set these back to go on with that run, or choose another output.path",
                ]
            )
        )


def part_summary(table: pa.Table, names: Mapping[str, str]) -> dict[str, Any]:
    """Counts of a part for reports: rows by state, and tokens. ``names``: our column: its name."""
    states = table[names["state"]].value_counts().to_pylist()
    tokens = {key: pc.sum(table[names[key]]).as_py() or 0 for key in TOKEN_COLUMNS}
    return {
        "traces": table.num_rows,
        "states": {entry["values"]: entry["counts"] for entry in states},
        **tokens,
    }


TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens")


def _fragment_range(name: str) -> tuple[int, int]:
    start, _, stop = name.removesuffix(FRAGMENT).partition("-")
    return int(start), int(stop)


def _contiguous(rows: pa.Table) -> list[tuple[int, int, pa.Table]]:
    """``rows``, sorted by row number, as (start, stop, slice) for each run without a gap."""
    numbers = rows[ROW_COLUMN].to_pylist()
    runs, begin = [], 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] > numbers[i - 1] + 1:
            runs.append((numbers[begin], numbers[i - 1] + 1, rows.slice(begin, i - begin)))
            begin = i
    return runs


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _with_metadata(table: pa.Table, metadata: Mapping[str, Any]) -> pa.Table:
    names = metadata["columns"]
    content = {**metadata, "summary": part_summary(table, names)}
    return table.replace_schema_metadata({METADATA_KEY: json.dumps(content).encode()})
