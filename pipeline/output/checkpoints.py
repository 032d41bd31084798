"""Checkpoints of running traces, from which another engine continues.

An engine keeps the token ids of its traces, running or finished, until their rows are durable. It
saves them at intervals and when it is asked to end, in one file for each part. An engine that gets
the same rows later, in this run or the next, reads all checkpoints of the part.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from io import BytesIO
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.layout import JournalEntry, checkpoint_name, ranges_of
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef
from pipeline.reasoning.policy import TraceProgress

logger = logging.getLogger(__name__)

PROBE = pa.struct(
    {"at": pa.int32(), "tokens": pa.int32(), "answer": pa.string(), "alike": pa.int32()}
)
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
        pa.field("probes", pa.list_(PROBE)),
    ]
)
RowSample = tuple[int, int]  # row and sample, in one part
Key = tuple[PartRef, int, int]  # part, row, sample


class Checkpoints:
    """One engine's traces in one pass, and those that other engines have saved.

    ``engine``: its name. ``pass_number``: 0 is the run itself. All methods may be called from
    several threads.
    """

    def __init__(self, ledger: Ledger, engine: str, pass_number: int) -> None:
        self._ledger, self._engine, self._pass_number = ledger, engine, pass_number
        self._lock = Lock()  # never held during file access, as blocks wait for it
        self._progress: dict[PartRef, dict[RowSample, TraceProgress]] = {}
        self._saving = Lock()  # one save at a time
        self._saved: set[PartRef] = set()
        self._reading = Lock()  # several blocks read a file once
        self._read: dict[tuple[str, str], pa.Table] = {}

    def start(self, keys: Sequence[Key], living: Set[str]) -> list[TraceProgress]:
        """Start the traces ``keys``, or continue each from the furthest checkpoint.

        ``living``: names of running engines. Their checkpoints are ignored, as Ray gives none of
        their rows to this engine. Returns one progress for each key, in order.
        """
        rows: dict[PartRef, set[int]] = {}
        for part, row, _ in keys:
            rows.setdefault(part, set()).add(row)
        saved, started = self._saved_by_others(rows, living), list[TraceProgress]()
        with self._lock:
            for part, row, sample in keys:
                of_part = self._progress.setdefault(part, {})
                progress = of_part.setdefault((row, sample), TraceProgress())
                other = saved.get((part, row, sample))
                if other is not None and other.is_ahead_of(progress):
                    progress = of_part[row, sample] = other
                progress.carried = progress.generated
                started.append(progress)
        return started

    def save(self) -> None:
        """Write the progress of all traces, and forget those whose rows have become durable.

        If a part can't be saved, the other parts still are; then the error is raised.
        """
        with self._saving, ExitStack() as all_tried:
            with self._lock:
                parts = {*self._progress, *self._saved}
            for part in parts:
                all_tried.callback(self._save, part)

    def _save(self, part: PartRef) -> None:
        with self._lock:
            traces = dict(self._progress.get(part, {}))
        durable = self._durable(part, traces)
        with self._lock:
            of_part = self._progress.get(part, {})
            for key in durable:
                of_part.pop(key, None)
            if not of_part:
                self._progress.pop(part, None)
        running = {k: p for k, p in traces.items() if k not in durable and p.has_begun}
        name = checkpoint_name(part, self._engine, self._pass_number)
        if running:
            sink = BytesIO()
            pq.write_table(_table(running), sink, compression="zstd", write_page_checksum=True)
            self._ledger.store.put(name, sink.getvalue())
            self._saved.add(part)
        elif part in self._saved:
            self._ledger.store.delete([name])
            self._saved.discard(part)

    def _durable(self, part: PartRef, traces: Mapping[RowSample, TraceProgress]) -> set[RowSample]:
        """The traces whose rows are durable; lists files only if some trace has finished."""
        if not any(progress.finish_reason for progress in traces.values()):
            return set()
        if self._ledger.is_done(part, self._pass_number):
            return set(traces)
        ranges = ranges_of(self._ledger.fragments(part, self._pass_number))
        rows = {row for start, stop in ranges for row in range(start, stop)}
        return {key for key in traces if key[0] in rows}

    def _saved_by_others(
        self, rows_of: Mapping[PartRef, set[int]], living: Set[str]
    ) -> dict[Key, TraceProgress]:
        """The furthest progress in the checkpoints of ended engines, for the given rows."""
        furthest: dict[Key, TraceProgress] = {}
        for part, rows in rows_of.items():
            for entry in self._ledger.checkpoints(part, self._pass_number):
                if entry.engine not in {*living, self._engine}:
                    for key, progress in self._traces(part, entry, rows):
                        if key not in furthest or progress.is_ahead_of(furthest[key]):
                            furthest[key] = progress
        return furthest

    def _traces(
        self, part: PartRef, entry: JournalEntry, rows: set[int]
    ) -> list[tuple[Key, TraceProgress]]:
        """The traces of ``rows`` in a checkpoint; none if it was removed or is unreadable."""
        version = (entry.file.name, entry.file.tag)
        with self._reading:
            if version not in self._read:
                try:
                    data = self._ledger.store.read(entry.file.name)
                    self._read[version] = pq.read_table(
                        BytesIO(data), schema=SCHEMA, page_checksum_verification=True
                    )
                except FileNotFoundError:  # its rows are durable now
                    return []
                except Exception as error:  # a damaged file can raise anything
                    _warn_of(entry, error)
                    return []
            table = self._read[version]
        chosen = table.filter(pc.is_in(table["row"], pa.array(list(rows), pa.int64())))
        try:
            return [
                ((part, trace["row"], trace["sample"]), TraceProgress.restored(trace))
                for trace in chosen.to_pylist()
            ]
        except Exception as error:
            _warn_of(entry, error)
            return []


def _warn_of(entry: JournalEntry, error: Exception) -> None:
    """Its traces start again: that costs time, never a finished row."""
    logger.warning("%s can't be read (%s): its traces start again", entry.file.name, error)


def _table(traces: Mapping[RowSample, TraceProgress]) -> pa.Table:
    """The progress of ``traces`` as a table of `SCHEMA`, without a Python object per token."""
    rows = list[dict[str, Any]]()
    for (row, sample), progress in traces.items():
        snapshot = progress.snapshot()
        token_ids = np.asarray(snapshot["token_ids"])
        probes = [probe._asdict() for probe in snapshot["probes"]] or None
        named = {"row": row, "sample": sample, "token_ids": token_ids, "probes": probes}
        rows.append({**snapshot, **named})
    return pa.Table.from_pylist(rows, SCHEMA)
