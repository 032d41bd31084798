"""Read the finished parts of an output, one after the other."""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.reasoning.think_format import State
from pipeline.schema import OUR_COLUMNS, plain_rows
from pipeline.storage import Storage

BATCH_ROWS = 1024


@dataclass(frozen=True)
class FinishedPart:
    """One finished part; ``names`` maps our columns to their names in this run."""

    store: Storage
    name: str
    names: dict[str, str]

    @contextmanager
    def open(self) -> Iterator[pq.ParquetFile]:
        """The Parquet file."""
        with self.store.open(self.name) as file:
            yield pq.ParquetFile(file)

    @property
    def columns(self) -> list[str]:
        """The names of all its columns."""
        with self.open() as file:
            return list(file.schema_arrow.names)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All its rows, or only ``columns`` of them, in that order."""
        with self.open() as file:
            return file.read() if columns is None else file.read(columns).select(columns)


def finished_parts(output: str, skip: Container[str] = ()) -> Iterator[FinishedPart]:
    """The finished parts of the run at ``output`` in order of their names, without ``skip``.

    Raises `OutputError` if there is no run at ``output``.
    """
    ledger = open_output(output)
    for name in sorted(ledger.listing().finished_parts()):
        if name not in skip:
            yield FinishedPart(ledger.store, name, part_metadata(ledger.store, name)["columns"])


def open_output(output: str) -> Ledger:
    """The ledger of the run at ``output``; raises `OutputError` if there is none."""
    ledger = Ledger(Storage(output))
    if ledger.manifest() is None:
        raise OutputError(f"{output} is not the output of a run (it has no manifest)")
    return ledger


def read_traces(
    output: str, columns: Iterable[str] | None = None, state: str | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of all finished parts, each as a dict, a small batch in memory at a time.

    ``columns``: only these, by the names that they have in this run. ``state``: only traces that
    ended in it. Raises `OutputError` if there is no run at ``output``, or for a column or a state
    that does not exist.
    """
    if state is not None and state not in tuple(State):
        raise OutputError(f"there is no state {state}; states are {', '.join(State)}")
    wanted = None if columns is None else list(columns)
    schema = open_output(output).known_shards().schema
    known = set(schema.names) if schema is not None else set()
    return _rows(finished_parts(output), wanted, known, state)


def _rows(
    parts: Iterable[FinishedPart], wanted: list[str] | None, known: set[str], state: str | None
) -> Iterator[dict[str, Any]]:
    for part in parts:
        with part.open() as file:
            present = file.schema_arrow.names
            missing = [] if wanted is None else [name for name in wanted if name not in present]
            # A part can lack an input column that only later shards have, or a column of ours that
            # an older version did not write.
            ours = {*part.names.values(), *OUR_COLUMNS}
            known_here = (known | ours) - {part.names["raw"]}
            if unknown := [name for name in missing if name not in known_here]:
                raise OutputError(
                    f"there is no column {unknown[0]} in the output; its columns are "
                    f"{', '.join(present)}"
                )
            for batch in _batches(file, wanted, part.names["state"], state):
                for row in plain_rows(batch):
                    yield row if wanted is None else {name: row.get(name) for name in wanted}


def _batches(
    file: pq.ParquetFile, wanted: list[str] | None, state_column: str, state: str | None
) -> Iterator[pa.RecordBatch]:
    columns = wanted
    if wanted is not None and state is not None and state_column not in wanted:
        columns = [*wanted, state_column]
    for batch in file.iter_batches(BATCH_ROWS, columns=columns):
        if state is not None:
            batch = batch.filter(pc.equal(batch[state_column], state))
        yield batch
