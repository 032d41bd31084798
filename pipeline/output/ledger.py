"""What is done, as files in the output location; existence means done.

`pipeline.output.layout` names them. A resume lists names and reads no rows. Every write is atomic and
can be repeated: rows that are durable are not written again, fragments that overlap are merged row
by row, a part written twice holds the same rows.
"""

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipeline.config.load import fingerprint_of
from pipeline.errors import OutputError
from pipeline.output.layout import (
    BOOKKEEPING,
    CLOSED,
    MANIFEST,
    SHARDS,
    YAML,
    JournalEntry,
    OutputListing,
    checkpoint_folder,
    covered_by,
    done_name,
    fragment_name,
    journal_entry,
    journal_folder,
    pass_name,
    runs,
    sort_listing,
)
from pipeline.output.parts import (
    fragment_tables,
    interleaved,
    part_metadata,
    with_updates,
    write_part,
)
from pipeline.planning import KnownShards, PartRef, Pass, Shard, missing
from pipeline.schema import (
    ORIGIN_COLUMNS,
    PART_COLUMN,
    ROW_COLUMN,
    START_COLUMN,
    STOP_COLUMN,
    conform,
)
from pipeline.storage import Storage

SAMPLES, AGREE = "sampling.n", "sampling.agree"
SCHEMA = "_schema"  # beside names of shards, which never begin so


class Ledger:
    """The files of one run's output."""

    def __init__(self, store: Storage) -> None:
        self.store = store

    # Whose output it is

    def check_run(self, settings: Mapping[str, Any], may_change: Iterable[str] = ()) -> None:
        """Raise `OutputError` if a run with other settings, or something else, lives here.

        More samples than there (``sampling.n``) are no other run; nor are changes in settings that
        begin as ``may_change`` says.
        """
        found = self.manifest()
        if found is None:
            names = [info.name for info in self.store.files()]
            foreign = [n for n in names if not n.startswith(f"{BOOKKEEPING}/")]
            if foreign:
                raise OutputError(
                    f"output.path {self.store.url} is not empty and not the output of a run (it "
                    f"has {foreign[0]}); choose another folder or empty this one"
                )
            return
        prefixes = tuple(may_change)
        there = found["settings"]
        changes = [
            f"  {key}: there {there.get(key)!r}, now {now!r}"
            for key, now in differences(there, settings)
            if not (prefixes and key.startswith(prefixes) and key != AGREE)
            and not (key == SAMPLES and now > there[key])
        ]
        if changes:
            raise OutputError(
                f"output.path {self.store.url} holds a run with other settings:\n"
                + "\n".join(changes)
                + "\nset these back to go on with that run, or choose another output.path"
            )

    def open_run(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Claim the location for a run with ``settings``, or find it claimed for just that run."""
        self.check_run(settings)
        manifest = {
            "fingerprint": fingerprint_of(settings),
            "settings": dict(settings),
            "versions": dict(versions),
            "created": _now(),
        }
        if not self.store.create(MANIFEST, _yaml(manifest)):
            self.check_run(settings)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the run that lives here; None if there is none."""
        found = self._read_yaml(MANIFEST)
        if found is not None and not isinstance(found.get("settings"), dict):
            raise OutputError(f"{self.store.path(MANIFEST)} is damaged: it has no settings")
        return found

    def check_shards(self, shards: Iterable[Shard]) -> None:
        """Raise `OutputError` if a shard is not what it was when rows of it were first planned."""
        known = self.known_shards().identities
        changed = [
            f"  {shard.name}: " + ", ".join(f"{key} {was}, now {shard.identity.get(key)}"
            for key, was in known[shard.name].items() if shard.identity.get(key) != was)
            for shard in shards
            if known.get(shard.name, shard.identity) != shard.identity
        ]  # fmt: skip
        if changed:
            raise OutputError(
                f"input shards have changed since the run at {self.store.url} first saw them:\n"
                + "\n".join(changed[:20])
                + (f"\n  and {len(changed) - 20} more" if len(changed) > 20 else "")
                + "\nput the old files back, or give new ones new names, or choose another "
                f"output.path; if their rows are the same, remove their lines from "
                f"{self.store.path(SHARDS)}"
            )

    def known_shards(self) -> KnownShards:
        """The shards as they were when rows of them were first planned."""
        found = self._read_yaml(SHARDS) or {}
        all_fit, schema = found.pop(SCHEMA, None) or {}, None
        if all_fit.get("shards") == len(found):  # none has been taken out by hand
            schema = pa.ipc.read_schema(pa.py_buffer(b64decode(all_fit["arrow"])))
        return KnownShards(found, schema, all_fit.get("input"))

    def record_shards(self, shards: Iterable[Shard], schema: pa.Schema, location: str) -> None:
        """Note what the shards at ``location`` are now, and the schema that all fit."""
        known = self._read_yaml(SHARDS) or {}
        names = {name: identity for name, identity in known.items() if name != SCHEMA}
        names |= {shard.name: shard.identity for shard in shards}
        arrow = b64encode(schema.serialize()).decode()
        wanted = {SCHEMA: {"input": location, "shards": len(names), "arrow": arrow}, **names}
        if wanted != known:
            self.store.put(SHARDS, _yaml(wanted, flow=None))

    def _read_yaml(self, name: str) -> dict[str, Any] | None:
        try:
            found = yaml.load(self.store.read(name), Loader=_Loader)  # noqa: S506 (a safe loader)
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise OutputError(f"{self.store.path(name)} is damaged: it is not YAML") from None
        if not isinstance(found, dict):
            raise OutputError(f"{self.store.path(name)} is damaged: it is not a mapping")
        return found

    # What is done

    def listing(self) -> OutputListing:
        """List what is done, without reading it."""
        return sort_listing(self.store.files())

    def passes(self, listing: OutputListing) -> list[Pass]:
        """The retries and top-ups, by number."""
        found = []
        for number in sorted(listing.passes):
            data = self._read_yaml(pass_name(number) + YAML) or {}
            first, stop = data["samples"]
            changed = tuple(sorted(data["changed"].items()))
            found.append(Pass(number, first, stop, tuple(data["states"]), changed, data["foreign"]))
        return found

    def open_pass(self, run_pass: Pass) -> None:
        """Record that ``run_pass`` has begun."""
        data = {
            "states": list(run_pass.states),
            "foreign": run_pass.foreign,
            "samples": [run_pass.first, run_pass.stop],
            "changed": dict(run_pass.changed),
            "opened": _now(),
        }
        if not self.store.create(pass_name(run_pass.number) + YAML, _yaml(data)):
            raise OutputError(
                f"pass {run_pass.number} has been opened by another driver; run again"
            )

    def close_pass(self, run_pass: Pass) -> None:
        """Record that all parts have been through ``run_pass``; their marks are needed no more."""
        self.store.create(pass_name(run_pass.number) + CLOSED, _now().encode())
        folder = pass_name(run_pass.number)
        self.store.delete([info.name for info in self.store.files(folder)])
        self.store.prune(folder)

    def fragments(self, ref: PartRef, number: int) -> list[JournalEntry]:
        """A part's finished blocks of one pass."""
        return self._entries(journal_folder(ref), ref, number)

    def checkpoints(self, ref: PartRef, number: int) -> list[JournalEntry]:
        """What engines have saved of a part's running traces in one pass."""
        return self._entries(checkpoint_folder(ref), ref, number)

    def _entries(self, folder: str, ref: PartRef, number: int) -> list[JournalEntry]:
        # A shard's name may make one such folder lie in another; a part's own are direct children.
        found = (journal_entry(info) for info in self.store.files(folder))
        return [e for e in found if e and e.part == ref.name and e.number == number]

    def is_done(self, ref: PartRef, number: int) -> bool:
        """Whether the part has been through pass ``number``."""
        return self.store.exists(done_name(ref, number))

    # What makes it so

    def write_block(self, block: pa.Table, number: int = 0) -> set[PartRef]:
        """Make the traces of ``block`` durable; returns the parts that they belong to.

        Rows that are durable already, by a repeated task or another driver, stay as they are.
        """
        refs = set()
        for key in pc.unique(block[PART_COLUMN]).to_pylist():
            ref = PartRef.parse(key)
            refs.add(ref)
            if self.is_done(ref, number):
                continue
            rows = block.filter(pc.equal(block[PART_COLUMN], key)).sort_by(ROW_COLUMN)
            if pc.max(rows[STOP_COLUMN]).as_py() - pc.min(rows[START_COLUMN]).as_py() > 1:
                # One row by itself overlaps nothing but its own name: it need not be looked for.
                rows = rows.filter(_outside(rows, covered_by(self.fragments(ref, number))))
            rows, spans = _with_spans(rows)
            for low, high in runs(spans):
                name = fragment_name(ref, spans[low][0], spans[high - 1][1], number)
                self.store.create(name, _parquet(rows.slice(low, high - low)))
        return refs

    def commit(
        self,
        ref: PartRef,
        run_pass: Pass,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
        copies: pa.Table | None = None,
    ) -> bool:
        """Turn the fragments of a part into its file, if they hold all its rows.

        ``copies``: traces in order that go into the file without being fragments first. Safe to
        call from several places at once. Returns whether the part is through ``run_pass``.
        """
        fragments = self.fragments(ref, run_pass.number)
        covered = covered_by(fragments)
        if copies is not None:
            copies, spans = _with_spans(copies.filter(_outside(copies, covered)))
            covered += spans
        if any(True for _ in missing(ref.start, ref.stop, covered)):
            return False
        try:
            tables = fragment_tables(fragments, ref.start, self.store.read_all)
            if copies is not None:
                tables = interleaved(tables, copies)
            if run_pass.number == 0:
                data, found_there = write_part(tables, schema, metadata)
                expected = ref.rows * run_pass.stop
            else:
                # Fragments of different runs may have other types: a new shard can widen a column.
                updates = pa.concat_tables(tables, promote_options="permissive")
                columns = metadata["columns"]
                data, found_there, expected = self._update(ref, run_pass, updates, schema, columns)
        except FileNotFoundError:  # another committer was faster and has removed them
            return self.is_done(ref, run_pass.number)
        rows, traces = found_there["rows"], found_there["traces"]
        agree, least = metadata["settings"].get(AGREE), expected
        if agree is not None and run_pass.number == 0:
            least = ref.rows * min(agree, run_pass.stop)
        if rows != ref.rows or not least <= traces <= expected:
            raise OutputError(
                f"the fragments in {self.store.path(journal_folder(ref))} make {traces} traces of "
                f"{rows} rows, not {expected} of {ref.rows}; remove that folder to do these "
                "rows again"
            )
        self.store.put(ref.name, data)
        if run_pass.number:
            self.store.put(done_name(ref, run_pass.number), b"")
        self.discard(ref, run_pass.number)
        return True

    def _update(
        self,
        ref: PartRef,
        run_pass: Pass,
        updates: pa.Table,
        schema: pa.Schema,
        columns: Mapping[str, str],
    ) -> tuple[bytes, dict[str, Any], int]:
        """A finished part with a later pass's traces in it; its counts, the traces it needs."""
        with self.store.open(ref.name) as file:
            old = conform(pq.read_table(file), schema)  # it may be of a version with fewer columns
        metadata = {**part_metadata(self.store, ref.name), "columns": dict(columns)}
        expected = old.num_rows if run_pass.is_retry else ref.rows * run_pass.stop
        metadata["passes"] = [
            p for p in metadata.get("passes", []) if p["number"] != run_pass.number
        ]
        metadata["passes"].append(
            {
                "number": run_pass.number,
                "states": run_pass.states,
                "foreign": run_pass.foreign,
                "changed": dict(run_pass.changed),
            }
        )
        if not run_pass.is_retry:
            metadata["settings"][SAMPLES] = run_pass.stop
        table = with_updates(old, updates, ref.start, metadata["columns"]["sample"])
        return *write_part([table], schema, metadata), expected

    def discard(self, ref: PartRef, number: int) -> None:
        """Remove the fragments and checkpoints of a part that is through pass ``number``."""
        entries = [*self.fragments(ref, number), *self.checkpoints(ref, number)]
        self.store.delete([entry.file.name for entry in entries])
        for folder in (journal_folder(ref), checkpoint_folder(ref)):
            self.store.prune(folder)


def _with_spans(rows: pa.Table) -> tuple[pa.Table, list[tuple[int, int]]]:
    """``rows`` as a fragment has them, and the span of rows that each stands for."""
    spans = list(zip(rows[START_COLUMN].to_pylist(), rows[STOP_COLUMN].to_pylist(), strict=True))
    return rows.drop_columns([name for name in ORIGIN_COLUMNS if name != ROW_COLUMN]), spans


def _outside(rows: pa.Table, covered: Iterable[tuple[int, int]]) -> pa.BooleanArray:
    """Which of ``rows`` are not ``covered``."""
    numbers = rows[ROW_COLUMN].to_numpy()
    new = np.ones(len(numbers), bool)
    for start, stop in covered:
        new &= (numbers < start) | (numbers >= stop)
    return pa.array(new)


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys whose values differ, with the values of ``now``."""
    keys = sorted({*there, *now})
    return [(key, now.get(key)) for key in keys if there.get(key) != now.get(key)]


# The C parser and emitter are ten times as fast, where PyYAML has them.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _yaml(data: Mapping[str, Any], flow: bool | None = False) -> bytes:
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=flow, allow_unicode=True
    )
    return text.encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
