"""Merge fragments into the Parquet file of a part, and read its footer.

The footer holds, as JSON, the column names, settings and versions that made the part, and counts of
its traces.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import OutputError, StorageError, UnreadableRowError, first_line
from pipeline.output.answers import AnswerCounts
from pipeline.output.early import early_counts
from pipeline.planning import Pass
from pipeline.schema import FOOTER_KEY, OPTIONAL_FIELDS, ROW_COLUMN, TRACE_FIELDS, conform
from pipeline.storage import Storage, map_in_threads

SAMPLES, AGREE = "sampling.n", "sampling.agree"
TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens", "carried_tokens")
# The size of row groups: large enough to read efficiently, small enough to hold in memory.
GROUP_ROWS, GROUP_BYTES = 1024, 64 * 2**20

Tables = Iterable[pa.Table]


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Raise `OutputError` if reading the Parquet file ``name`` of the output finds it damaged.

    A changed byte is found by the checksums of its pages; files of older versions have none. A
    storage that does not answer raises `StorageError`.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        # Arrow has no type of its own for damage that its decoders find.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise StorageError(f"can't read {name} in the output: {first_line(error)}") from None
        raise OutputError(
            f"{name} in the output is damaged ({first_line(error)}); remove that file to do its "
            "rows again"
        ) from None


def write_part(
    file: IO[bytes], tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a part to ``file``, as Parquet; returns the counts of its traces.

    ``tables``: whole rows in order, with their row numbers. ``metadata``: for the footer, which
    also gets the counts under ``summary``, and as `SAMPLES` what the row with the fewest has. (Not
    with `AGREE`: there rows may have fewer.) One row group is in memory at a time.
    """
    summary, answers = PartSummary(metadata["columns"]), AnswerCounts(metadata)
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _groups(tables):
            table = conform(answers.with_votes(group), schema)
            writer.write_table(table)
            summary.add(table)
            answers.add(table)
        if counts := dict(+answers.counts):
            summary.counts["answers"] = counts
        if summary.fewest and metadata["settings"].get(AGREE) is None:
            metadata = {**metadata, "settings": {**metadata["settings"], SAMPLES: summary.fewest}}
        writer.add_key_value_metadata(
            {FOOTER_KEY.decode(): json.dumps({**metadata, "summary": summary.counts})}
        )
    return summary.counts


def part_metadata(store: Storage, name: str) -> dict[str, Any]:
    """The footer of a finished part: columns, settings, versions, passes and summary.

    Raises `OutputError` if qwq-batch did not write the file.
    """
    with store.open(name) as file:
        entries = pq.read_metadata(file).metadata or {}
    if FOOTER_KEY not in entries:
        raise OutputError(
            f"{store.path(name)} was not written by qwq-batch; move it out of the output folder"
        )
    metadata: dict[str, Any] = json.loads(entries[FOOTER_KEY])
    return metadata


def samples_in(metadata: Mapping[str, Any]) -> int:
    """The number of samples of each row in the part with this footer."""
    return int(metadata["settings"][SAMPLES])


def holds_pass(metadata: Mapping[str, Any], run_pass: Pass) -> bool:
    """Whether the part with this footer has all that a retry or top-up would add."""
    if any(earlier["number"] == run_pass.number for earlier in metadata.get("passes", ())):
        return True
    return not run_pass.is_retry and samples_in(metadata) >= run_pass.stop


def read_footers(store: Storage, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The `part_metadata` of each of ``names``, in order, read in threads."""
    return map_in_threads(partial(part_metadata, store), names)


def known_columns(
    file: pq.ParquetFile, names: Mapping[str, str], wanted: Sequence[str]
) -> pa.Table:
    """The columns ``wanted`` of a part or fragment, under our names.

    ``names``: the run's column name by our name. ``wanted``: our names. A column that the version
    of the writer did not have is null.
    """
    present = [key for key in wanted if names.get(key) in file.schema_arrow.names]
    table = file.read([names[key] for key in present]).select([names[key] for key in present])
    fields = [field for field in (*TRACE_FIELDS, *OPTIONAL_FIELDS) if field.name in wanted]
    return conform(table.rename_columns(present), pa.schema(fields))


class PartSummary:
    """Counts of the traces of a part; the tokens of traces copied from duplicates are omitted.

    ``names``: the run's column name by our name. ``fewest``: samples of a row; 0 without rows.
    Runs that may close thinking early have the counts of `early_counts` too.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names, self.fewest = names, 0
        self.counts: dict[str, Any] = {
            "rows": 0,
            "traces": 0,
            "states": {},
            "duplicates": 0,
            **dict.fromkeys(TOKEN_COLUMNS, 0),
        }
        if "early_answer" in names:
            self.counts["early"] = Counter[str]()

    def add(self, table: pa.Table) -> None:
        """Count the traces of ``table``, which holds whole rows."""
        states = self.counts["states"]
        begins = np.flatnonzero(table[self._names["sample"]].to_numpy() == 0)
        self.counts["traces"] += table.num_rows
        self.counts["rows"] += len(begins)
        if len(begins):
            fewest = int(np.diff(begins, append=table.num_rows).min())
            self.fewest = min(fewest, self.fewest or fewest)
        for entry in table[self._names["state"]].value_counts().to_pylist():
            states[entry["values"]] = states.get(entry["values"], 0) + entry["counts"]
        is_unreadable = pc.starts_with(table[self._names["error"]], f"{UnreadableRowError.kind}:")
        if unreadable := pc.sum(is_unreadable).as_py():
            self.counts["unreadable"] = self.counts.get("unreadable", 0) + unreadable
        originals = table[self._names["duplicate_of"]]
        generated = pc.is_null(originals)
        self.counts["duplicates"] += table.num_rows - originals.null_count
        for key in TOKEN_COLUMNS:
            self.counts[key] += pc.sum(table[self._names[key]].filter(generated)).as_py() or 0
        if "early" in self.counts:
            self.counts["early"].update(early_counts(table, self._names))


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Gather small tables into larger ones, and split larger ones, for one row group each."""
    group: list[pa.Table] = []
    rows = size = 0
    for table in chain.from_iterable(map(_pieces, tables)):
        group.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield pa.concat_tables(group, promote_options="permissive")
            group, rows, size = [], 0, 0
    if group:
        yield pa.concat_tables(group, promote_options="permissive")


def _pieces(table: pa.Table) -> Iterator[pa.Table]:
    """``table`` in pieces of whole rows, of about `GROUP_BYTES` if rows are smaller than that."""
    count = -(-table.nbytes // GROUP_BYTES)
    if count <= 1:
        yield table
        return
    begins = np.flatnonzero(np.diff(table[ROW_COLUMN].to_numpy(), prepend=-1))
    ends = [table.num_rows * i // count for i in range(1, count)]
    cuts = [0, *begins[np.searchsorted(begins, ends, side="right") - 1].tolist(), table.num_rows]
    for begin, end in pairwise(sorted(set(cuts))):
        yield table.slice(begin, end - begin)
