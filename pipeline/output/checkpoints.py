"""What running traces have so far, saved so that the next engine goes on from there.

An engine keeps the token ids of its traces, running and finished, until their rows are durable.
At intervals and when it is told to end it writes them, a file for each part; whoever gets the same
rows afterwards, another engine or another run, reads all such files of the part.
"""

from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from io import BytesIO
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import QwqBatchError
from pipeline.output.layout import JournalEntry, checkpoint_name, covered_by
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef
from pipeline.reasoning.policy import TraceProgress

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("finish_reason", pa.string()),
        pa.field("closed_at", pa.int32()),
        pa.field("closing_tokens", pa.int32(), nullable=False),
        pa.field("closed_by", pa.string()),
        pa.field("tries", pa.int32(), nullable=False),
        pa.field("wasted_tokens", pa.int32(), nullable=False),
    ]
)
RowSample = tuple[int, int]  # of one part
Key = tuple[PartRef, int, int]  # part, row, sample


class Checkpoints:
    """One engine's traces in one pass, and what other engines have saved of them."""

    def __init__(self, ledger: Ledger, engine: str, number: int) -> None:
        self._ledger, self._engine, self._number = ledger, engine, number
        self._lock = Lock()  # never held while files are read or written: blocks wait for it
        self._progress: dict[PartRef, dict[RowSample, TraceProgress]] = {}
        self._saving = Lock()  # one save at a time
        self._saved: set[PartRef] = set()
        self._reading = Lock()  # of many blocks one reads a file
        self._read: dict[tuple[str, str], pa.Table] = {}

    def start(self, keys: Sequence[Key], living: Set[str]) -> list[TraceProgress]:
        """Begin, or go on with, the traces ``keys``: the furthest that was saved of each.

        What the engines ``living`` save is passed over: none of their rows comes here.
        """
        rows: dict[PartRef, set[int]] = {}
        for ref, row, _ in keys:
            rows.setdefault(ref, set()).add(row)
        found, started = self._saved_by_others(rows, living), list[TraceProgress]()
        with self._lock:
            for ref, row, sample in keys:
                mine = self._progress.setdefault(ref, {})
                progress = mine.setdefault((row, sample), TraceProgress())
                other = found.get((ref, row, sample))
                if other is not None and other.is_ahead_of(progress):
                    progress = mine[row, sample] = other
                progress.carried = progress.generated
                started.append(progress)
        return started

    def save(self) -> None:
        """Write what all traces have, but for those whose rows have become durable.

        Where those of one part can't be, those of the others are all the same; then it raises.
        """
        with self._saving, ExitStack() as all_tried:
            with self._lock:
                refs = {*self._progress, *self._saved}
            for ref in refs:
                all_tried.callback(self._save, ref)

    def _save(self, ref: PartRef) -> None:
        with self._lock:
            traces = dict(self._progress.get(ref, {}))
        durable = self._durable(ref, traces)
        with self._lock:
            mine = self._progress.get(ref, {})
            for key in durable:
                mine.pop(key, None)
            if not mine:
                self._progress.pop(ref, None)
        running = {k: p for k, p in traces.items() if k not in durable and p.has_begun}
        name = checkpoint_name(ref, self._engine, self._number)
        if running:
            sink = BytesIO()
            pq.write_table(_table(running), sink, compression="zstd")
            self._ledger.store.put(name, sink.getvalue())
            self._saved.add(ref)
        elif ref in self._saved:
            self._ledger.store.delete([name])
            self._saved.discard(ref)

    def _durable(self, ref: PartRef, traces: Mapping[RowSample, TraceProgress]) -> set[RowSample]:
        """Those of ``traces`` whose rows are on disk; looked for only if some have ended."""
        if not any(progress.finish_reason for progress in traces.values()):
            return set()
        if self._ledger.is_done(ref, self._number):
            return set(traces)
        spans = covered_by(self._ledger.fragments(ref, self._number))
        rows = {row for start, stop in spans for row in range(start, stop)}
        return {key for key in traces if key[0] in rows}

    def _saved_by_others(
        self, wanted: Mapping[PartRef, set[int]], living: Set[str]
    ) -> dict[Key, TraceProgress]:
        found: dict[Key, TraceProgress] = {}
        for ref, rows in wanted.items():
            for entry in self._ledger.checkpoints(ref, self._number):
                if entry.engine not in {*living, self._engine}:
                    for key, progress in self._traces(ref, entry, rows):
                        if key not in found or progress.is_ahead_of(found[key]):
                            found[key] = progress
        return found

    def _traces(
        self, ref: PartRef, entry: JournalEntry, rows: set[int]
    ) -> list[tuple[Key, TraceProgress]]:
        """The traces of ``rows`` in one checkpoint file; none if it is gone or unreadable."""
        version = (entry.file.name, entry.file.tag)
        with self._reading:
            if version not in self._read:
                try:
                    data = self._ledger.store.read(entry.file.name)
                    self._read[version] = pq.read_table(BytesIO(data), schema=SCHEMA)
                except (FileNotFoundError, pa.ArrowException, QwqBatchError):
                    # Its rows are durable by now, or its traces begin again: nothing finished is
                    # lost.
                    return []
            table = self._read[version]
        mine = table.filter(pc.is_in(table["row"], pa.array(list(rows), pa.int64())))
        return [
            ((ref, row["row"], row["sample"]), TraceProgress.restored(row))
            for row in mine.to_pylist()
        ]


def _table(traces: Mapping[RowSample, TraceProgress]) -> pa.Table:
    """What ``traces`` have, as a table of `SCHEMA`; their tokens never become Python objects."""
    rows = list[dict[str, Any]]()
    for (row, sample), progress in traces.items():
        snapshot = progress.snapshot()
        token_ids = np.asarray(snapshot["token_ids"])
        rows.append({"row": row, "sample": sample, **snapshot, "token_ids": token_ids})
    return pa.Table.from_pylist(rows, SCHEMA)
