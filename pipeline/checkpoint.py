"""What running traces have so far, saved so that the next engine goes on from there.

An engine keeps the token ids of its traces, running and finished, until their rows are durable.
At intervals and when it is told to end it writes them, a file for each part; whoever gets the same
rows afterwards, another engine or another run, reads all such files of the part.
"""

import threading
from collections.abc import Mapping, Sequence, Set
from io import BytesIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import QwqBatchError
from pipeline.journal import Entry, Extent, covered_by
from pipeline.ledger import Ledger
from pipeline.policy import Progress

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
Key = tuple[Extent, int, int]  # part, row, sample


class Checkpoints:
    """One engine's traces in one pass, and what other engines have saved of them."""

    def __init__(self, ledger: Ledger, engine: str, number: int) -> None:
        self._ledger, self._engine, self._number = ledger, engine, number
        self._lock = threading.Lock()
        self._progress: dict[Key, Progress] = {}
        self._saved: set[Extent] = set()
        self._read: dict[tuple[str, str], pa.Table] = {}

    def start(self, keys: Sequence[Key], living: Set[str]) -> list[Progress]:
        """Begin, or go on with, the traces ``keys``: the furthest that was saved of each.

        What the engines ``living`` save is passed over: none of their rows comes here.
        """
        with self._lock:
            rows: dict[Extent, set[int]] = {}
            for extent, row, _ in keys:
                rows.setdefault(extent, set()).add(row)
            found = self._saved_by_others(rows, living)
            for key in keys:
                mine = self._progress.setdefault(key, Progress())
                other = found.get(key)
                if other is not None and other.is_further(mine):
                    self._progress[key] = other
                self._progress[key].carried = self._progress[key].generated
            return [self._progress[key] for key in keys]

    def save(self) -> None:
        """Write what all traces have, but for those whose rows have become durable."""
        with self._lock:
            for extent in {key[0] for key in self._progress} | self._saved:
                self._save(extent)

    def _save(self, extent: Extent) -> None:
        name = extent.running(self._engine, self._number)
        self._forget_durable(extent)
        rows = [
            {"row": row, "sample": sample, **progress.snapshot()}
            for (part, row, sample), progress in list(self._progress.items())
            if part == extent and progress.has_begun
        ]
        if rows:
            sink = BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), sink, compression="zstd")
            self._ledger.store.put(name, sink.getvalue())
            self._saved.add(extent)
        elif extent in self._saved:
            self._ledger.store.delete([name])
            self._saved.discard(extent)

    def _forget_durable(self, extent: Extent) -> None:
        mine = [key for key in list(self._progress) if key[0] == extent]
        if not any(self._progress[key].finish_reason for key in mine):
            return
        spans = [(extent.start, extent.stop)]
        if not self._ledger.is_done(extent, self._number):
            spans = covered_by(self._ledger.fragments(extent, self._number))
        for key in mine:
            if any(start <= key[1] < stop for start, stop in spans):
                del self._progress[key]

    def _saved_by_others(
        self, wanted: Mapping[Extent, set[int]], living: Set[str]
    ) -> dict[Key, Progress]:
        found: dict[Key, Progress] = {}
        for extent, rows in wanted.items():
            for entry in self._ledger.checkpoints(extent, self._number):
                if entry.engine not in {*living, self._engine}:
                    for key, progress in self._traces(extent, entry, rows):
                        if key not in found or progress.is_further(found[key]):
                            found[key] = progress
        return found

    def _traces(self, extent: Extent, entry: Entry, rows: set[int]) -> list[tuple[Key, Progress]]:
        """The traces of ``rows`` in one checkpoint file; none if it is gone or unreadable."""
        version = (entry.file.name, entry.file.tag)
        if version not in self._read:
            try:
                data = self._ledger.store.read(entry.file.name)
                self._read[version] = pq.read_table(BytesIO(data), schema=SCHEMA)
            except (FileNotFoundError, pa.ArrowException, QwqBatchError):
                # Its rows are durable by now, or its traces begin again: nothing finished is lost.
                return []
        table = self._read[version]
        mine = table.filter(pc.is_in(table["row"], pa.array(list(rows), pa.int64())))
        return [
            ((extent, row["row"], row["sample"]), Progress.restored(row))
            for row in mine.to_pylist()
        ]
