"""The ledger of finished work: files in the output location, whose existence means done.

`pipeline.output.layout` names the files. A resume lists names and reads no rows. Every write is
atomic and repeatable. Durable rows are never rewritten, overlapping fragments are merged row by
row, and a part that is written twice holds the same rows.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.answers.references import REFERENCES
from pipeline.config.load import fingerprint_of
from pipeline.errors import FileChangedError, OutputError, PassOpenedError
from pipeline.output.layout import (
    BOOKKEEPING,
    CLOSED,
    MANIFEST,
    YAML,
    JournalEntry,
    OutputListing,
    checkpoint_folder,
    contiguous,
    done_name,
    fragment_name,
    journal_folder,
    parse_journal_name,
    parse_listing,
    pass_name,
    ranges_of,
)
from pipeline.output.made_by import (
    ENGINES,
    EngineMark,
    engines_of,
    noting_engines,
    with_marks_aside,
)
from pipeline.output.merge import (
    fragment_tables,
    interleaved,
    merged,
    outside,
    part_groups,
    with_spans,
)
from pipeline.output.parts import AGREE, SAMPLES, Tables, holds_pass, part_metadata, write_part
from pipeline.output.shard_record import (
    identities,
    read_shards,
    refuse_changed_shards,
    write_shards,
)
from pipeline.output.yaml_files import read_yaml, to_yaml
from pipeline.planning import KnownShards, Lineage, PartRef, Pass, Shard, gaps
from pipeline.schema import (
    PART_COLUMN,
    ROW_COLUMN,
    START_COLUMN,
    STOP_COLUMN,
)
from pipeline.storage import Storage

INPUT = "input.path"
# Settings that no retry changes: how many samples a row has, and which columns the output has.
FIXED = (AGREE, "thinking.early_answer.")


class Ledger:
    """The files of one output location."""

    def __init__(self, store: Storage) -> None:
        self.store = store

    # The run that owns the output

    def check_run(self, settings: Mapping[str, Any], may_change: Iterable[str] = ()) -> None:
        """Raise `OutputError` if the output belongs to a run with other settings, or to no run.

        ``settings``: as `pipeline.output.manifest` makes them. ``may_change``: prefixes of settings
        that may differ. ``sampling.n`` may always be higher than in the output.
        """
        manifest = self.manifest()
        if manifest is None:
            self.refuse_other_files()
            return
        prefixes = tuple(may_change)
        existing = {REFERENCES: settings.get(REFERENCES), **manifest["settings"]}
        changes = [
            f"  {key}: there {existing.get(key)!r}, now {now!r}"
            for key, now in differences(existing, settings)
            if not (prefixes and key.startswith(prefixes) and not key.startswith(FIXED))
            and not (key == SAMPLES and now > existing[key])
        ]
        if changes:
            raise OutputError(
                f"output.path {self.store.url} holds a run with other settings:\n"
                + "\n".join(changes)
                + "\nset these back to continue that run, or choose another output.path"
            )

    def refuse_other_files(self) -> None:
        """Raise `OutputError` if the output has files, though no run has begun in it."""
        names = [info.name for info in self.store.files()]
        foreign = [name for name in names if not name.startswith(f"{BOOKKEEPING}/")]
        if foreign:
            raise OutputError(
                f"output.path {self.store.url} is not empty and not the output of a run (it "
                f"has {foreign[0]}); choose another folder or empty this one"
            )

    def open_run(self, settings: Mapping[str, Any], versions: Mapping[str, str]) -> None:
        """Write the manifest of a run, unless the output belongs to this run already.

        ``versions``: of the software, by package. Raises `OutputError` as `check_run` does.
        """
        self.check_run(settings)
        manifest = {
            "fingerprint": fingerprint_of(settings),
            "settings": dict(settings),
            "versions": dict(versions),
            "created": _now(),
        }
        if not self.store.create(MANIFEST, to_yaml(manifest)):
            self.check_run(settings)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest: fingerprint, settings, versions, created; None if there is no run.

        Raises `OutputError` if it is damaged.
        """
        manifest = read_yaml(self.store, MANIFEST)
        if manifest is not None and not isinstance(manifest.get("settings"), dict):
            raise OutputError(f"{self.store.path(MANIFEST)} is damaged: it has no settings")
        return manifest

    def first_samples(self) -> int:
        """The samples of each row before any top-up."""
        manifest = self.manifest()
        assert manifest is not None
        return int(manifest["settings"][SAMPLES])

    def check_shards(self, shards: Iterable[Shard]) -> None:
        """Raise `OutputError` if a shard has changed since the run recorded it."""
        refuse_changed_shards(self.store, shards)

    def known_shards(self) -> KnownShards:
        """The shards as the run recorded them; raises `OutputError` if the file is damaged."""
        return read_shards(self.store)

    def record_shards(
        self,
        shards: Iterable[Shard],
        schema: pa.Schema,
        location: str,
        lineage: Lineage = (),
        deciding: pa.Schema | None = None,
    ) -> None:
        """Record the shards as `KnownShards` describes them."""
        known = KnownShards(identities(shards), schema, location, lineage, deciding)
        write_shards(self.store, known)

    # Finished work

    def listing(self) -> OutputListing:
        """List all files of the output; reads none."""
        return parse_listing(self.store.files())

    def passes(self, listing: OutputListing) -> list[Pass]:
        """The retries and top-ups, open and closed, in the order of their numbers."""
        passes = []
        for number in sorted(listing.passes):
            data = read_yaml(self.store, pass_name(number) + YAML) or {}
            first, stop = data["samples"]
            changed = tuple(sorted(data["changed"].items()))
            states = tuple(data["states"])
            passes.append(Pass(number, first, stop, states, changed, data["foreign"]))
        return passes

    def open_pass(self, run_pass: Pass) -> None:
        """Record the start of ``run_pass``; or raise `PassOpenedError` if it was recorded."""
        data = {
            "states": list(run_pass.states),
            "foreign": run_pass.foreign,
            "samples": [run_pass.first, run_pass.stop],
            "changed": dict(run_pass.changed),
            "opened": _now(),
        }
        if not self.store.create(pass_name(run_pass.number) + YAML, to_yaml(data)):
            raise PassOpenedError(
                f"another driver has opened pass {run_pass.number}; run the command again"
            )

    def close_pass(self, run_pass: Pass) -> None:
        """Record that all parts have finished ``run_pass``, and remove its files."""
        self.store.create(pass_name(run_pass.number) + CLOSED, _now().encode())
        self.remove_closed(self.listing())

    def remove_closed(self, listing: OutputListing) -> None:
        """Remove the marks, fragments and checkpoints that closed passes have left."""
        names = [
            entry.file.name
            for number in listing.closed
            for entries in listing.journal.get(number, {}).values()
            for entry in entries
        ]
        folders = {name.rpartition("/")[0] for name in names}
        for folder in map(pass_name, listing.closed & listing.done.keys()):
            names += [info.name for info in self.store.files(folder)]
            folders.add(folder)
        self.store.delete(names)
        for folder in folders:
            self.store.prune(folder)

    def fragments(self, part: PartRef, pass_number: int) -> list[JournalEntry]:
        """The fragments of a part in a pass, by name."""
        return self._entries(journal_folder(part), part, pass_number)

    def checkpoints(self, part: PartRef, pass_number: int) -> list[JournalEntry]:
        """The checkpoints of all engines for a part in a pass, by name."""
        return self._entries(checkpoint_folder(part), part, pass_number)

    def _entries(self, folder: str, part: PartRef, pass_number: int) -> list[JournalEntry]:
        # Shard names can nest the folders of two parts, so that the listing has both parts' files.
        entries = (parse_journal_name(info) for info in self.store.files(folder))
        return [e for e in entries if e and e.part == part.name and e.pass_number == pass_number]

    def is_done(self, part: PartRef, pass_number: int) -> bool:
        """Whether the part has finished the pass."""
        return self.store.exists(done_name(part, pass_number))

    def is_closed(self, run_pass: Pass) -> bool:
        """Whether all parts have finished a retry or top-up, so that its marks are removed."""
        return run_pass.number > 0 and self.store.exists(pass_name(run_pass.number) + CLOSED)

    # Writing

    def write_block(self, block: pa.Table, pass_number: int = 0) -> set[PartRef]:
        """Make the traces of ``block`` durable, as fragments; returns the parts they belong to.

        ``block``: traces with the provenance columns, all samples of a row together. Rows that are
        durable already, from a repeated task or another driver, stay unchanged.
        """
        parts = set()
        for key in pc.unique(block[PART_COLUMN]).to_pylist():
            part = PartRef.parse(key)
            parts.add(part)
            if self.is_done(part, pass_number):
                continue
            rows = block.filter(pc.equal(block[PART_COLUMN], key)).sort_by(ROW_COLUMN)
            if pc.max(rows[STOP_COLUMN]).as_py() - pc.min(rows[START_COLUMN]).as_py() > 1:
                # A single row needs no listing: `create` refuses its name if it is durable.
                rows = rows.filter(outside(rows, ranges_of(self.fragments(part, pass_number))))
            rows, spans = with_spans(rows)
            for low, high in contiguous(spans):
                name = fragment_name(part, spans[low][0], spans[high - 1][1], pass_number)
                self.store.create(name, _parquet(with_marks_aside(rows.slice(low, high - low))))
        return parts

    def commit(
        self,
        part: PartRef,
        run_pass: Pass,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
        copies: pa.Table | None = None,
    ) -> bool:
        """Merge the fragments of a part into its file, if they hold all its rows.

        ``schema``, ``metadata``: of the part's file. ``copies``: traces that skip the journal, in
        row order with the provenance columns. Concurrent calls are safe. Returns whether the part
        has finished the pass. Raises `OutputError` if rows or samples are missing.
        """
        if self.is_done(part, run_pass.number):
            self.discard(part, run_pass.number)
            return True
        fragments = self.fragments(part, run_pass.number)
        durable = ranges_of(fragments)
        engines = list[EngineMark]()  # filled while the fragments are read
        metadata = {**metadata, ENGINES: engines}
        tables = noting_engines(fragment_tables(fragments, self.store.read_all), engines)
        if copies is not None:
            new_copies, spans = with_spans(copies.filter(outside(copies, durable)))
            durable, tables = durable + spans, interleaved(tables, new_copies)
        if any(True for _ in gaps(part.start, part.stop, durable)):
            return False
        try:
            if run_pass.number:
                self._update(part, run_pass, tables, schema, metadata)
            else:
                self._write(part, run_pass, tables, schema, metadata)
        except FileNotFoundError:  # another committer was faster and has removed the fragments
            return self.is_done(part, run_pass.number)
        except FileChangedError:  # another committer has written the part meanwhile: look again
            return self.commit(part, run_pass, schema, metadata, copies)
        self.finish(part, run_pass.number)
        return True

    def finish(self, part: PartRef, pass_number: int) -> None:
        """Mark a part, whose file holds the traces of the pass, as finished."""
        if pass_number:
            self.store.put(done_name(part, pass_number), b"")
        self.discard(part, pass_number)

    def _write(
        self,
        part: PartRef,
        run_pass: Pass,
        tables: Tables,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
    ) -> None:
        """Write the part of a run, unless it exists.

        Rows may have as few samples as the manifest says: a driver that had slept may have closed a
        top-up while another had such rows in the journal. Another top-up will complete them.
        """
        with self.store.writing(part.name, over=None) as file:
            counts = write_part(file, tables, schema, metadata)
            fewest, agree = run_pass.stop, metadata["settings"].get(AGREE)
            if agree is not None:
                fewest = min(agree, fewest)
            elif counts["traces"] < part.rows * fewest:
                fewest = self.first_samples()
            self._check_counts(part, counts, part.rows * fewest, part.rows * run_pass.stop)

    def _update(
        self,
        part: PartRef,
        run_pass: Pass,
        updates: Tables,
        schema: pa.Schema,
        new: Mapping[str, Any],
    ) -> None:
        """Merge the traces of a retry or top-up into a finished part, unless it holds them.

        ``new``: their metadata. A part that holds them may have changed since then, in a later
        pass.
        """
        version, columns = self.store.version(part.name), new["columns"]
        before = part_metadata(self.store, part.name)
        if holds_pass(before, run_pass):
            return
        new[ENGINES].extend(engines_of(before))
        metadata = {**before, "columns": dict(columns), ENGINES: new[ENGINES]}
        this_pass = {
            "number": run_pass.number,
            "states": run_pass.states,
            "foreign": run_pass.foreign,
            "changed": dict(run_pass.changed),
        }
        metadata["passes"] = [*metadata.get("passes", []), this_pass]
        if not run_pass.is_retry:
            metadata["settings"][SAMPLES] = run_pass.stop
        with self.store.open(part.name) as old, self.store.writing(part.name, version) as file:
            groups = part_groups(old, part, schema, columns["sample"])
            tables = merged(groups, updates, columns["sample"], run_pass.is_retry)
            counts = write_part(file, tables, schema, metadata)
            traces = pq.ParquetFile(old).metadata.num_rows
            expected = traces if run_pass.is_retry else part.rows * run_pass.stop
            self._check_counts(part, counts, expected, expected)

    def _check_counts(
        self, part: PartRef, counts: Mapping[str, int], least: int, most: int
    ) -> None:
        """Raise `OutputError` unless a part has all its rows, and ``least`` to ``most`` traces."""
        rows, traces = counts["rows"], counts["traces"]
        if rows != part.rows or not least <= traces <= most:
            raise OutputError(
                f"the fragments in {self.store.path(journal_folder(part))} make {traces} traces of "
                f"{rows} rows, not {most} of {part.rows}; remove that folder to do these rows again"
            )

    def discard(self, part: PartRef, pass_number: int) -> None:
        """Remove the fragments and checkpoints of a part that has finished the pass."""
        entries = [*self.fragments(part, pass_number), *self.checkpoints(part, pass_number)]
        self.store.delete([entry.file.name for entry in entries])
        for folder in (journal_folder(part), checkpoint_folder(part)):
            self.store.prune(folder)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The keys whose values differ, sorted, with their values in ``new``."""
    keys = sorted({*old, *new})
    return [(key, new.get(key)) for key in keys if old.get(key) != new.get(key)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parquet(table: pa.Table) -> bytes:
    sink = BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()
