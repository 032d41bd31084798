"""Decides from a sample of rows how the references of a run are read."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.answers.base import AnswerFormat
from pipeline.answers.references import ReferenceSample, cells
from pipeline.errors import InputError
from pipeline.input.rows import file_columns
from pipeline.planning import Shard
from pipeline.storage import Storage

# The sample: so many rows, from so many row groups of shards all over the input.
SAMPLE_ROWS, SAMPLE_GROUPS = 1000, 8
# What is decoded of a row group at most.
MOST_DECODED = 8192
EXAMPLES = 5
T = TypeVar("T")


def sample_references(
    input_url: str, shards: Sequence[Shard], column: str, answer_format: AnswerFormat
) -> ReferenceSample:
    """How ``column`` of the input is read, and what a sample of it has.

    Raises `InputError` if that is not certain, or if most of it can't be read.
    """
    sample = [
        (cell, shard, row) for shard, row, cell in _sampled(Storage(input_url), shards, column)
    ]
    found = [cell for cell, _, _ in sample]
    try:
        reading = answer_format.reading(found)
    except ValueError as error:
        present = (each for each in sample if not answer_format.is_missing(each[0]))
        _, shard, row = next(present)
        raise InputError(
            f"answer.reference_column is {column}, but {error} (the first reference in the "
            f"sample is in row {row} of {shard}, counted from 0)"
        ) from None
    read = [answer_format.read_reference(cell, reading.kind) for cell in found]
    missing = sum(map(answer_format.is_missing, found))
    differing = dict[str, tuple[object, object]]()
    for pair in zip(found, read, strict=True):
        differing.setdefault(repr(pair), pair)
    return ReferenceSample(
        column, reading, len(found), missing, read.count(None) - missing,
        tuple(differing.values())[:EXAMPLES],
    )  # fmt: skip


def _sampled(
    store: Storage, shards: Sequence[Shard], column: str
) -> Iterator[tuple[str, int, object]]:
    """Shard, row (from 0) and cell of a sample; shards that can't be read are left out."""
    chosen = _spread([shard for shard in shards if shard.rows], SAMPLE_GROUPS)
    groups = -(-SAMPLE_GROUPS // max(1, len(chosen)))
    for shard in chosen:
        try:
            with store.fs.open(shard.path, "rb") as file:
                rows = list(_of_shard(pq.ParquetFile(file), shard, column, groups))
        except (pa.ArrowException, OSError):  # the run says so, and does the others
            continue
        yield from ((shard.name, row, cell) for row, cell in rows)


def _of_shard(
    file: pq.ParquetFile, shard: Shard, column: str, groups: int
) -> Iterator[tuple[int, object]]:
    """Rows, counted in the file, and cells of ``column``; only of rows that the run takes."""
    names = file_columns(file, [column])
    if not names:
        return
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    taken = np.ones(file.metadata.num_rows, bool)
    if shard.selection is not None:
        taken[:] = False
        taken[shard.selection.numbers] = True
    starts = [sum(sizes[:group]) for group in range(len(sizes))]
    with_rows = [i for i, size in enumerate(sizes) if taken[starts[i] : starts[i] + size].any()]
    chosen = _spread(with_rows, groups)
    wanted = SAMPLE_ROWS // SAMPLE_GROUPS * max(1, groups // max(1, len(chosen)))
    for group in chosen:
        start = starts[group]
        for batch in file.iter_batches(MOST_DECODED, [group], [names[column]]):
            rows = np.flatnonzero(taken[start : start + batch.num_rows])
            if len(rows):
                values = cells(pa.chunked_array([batch.column(0)]))
                yield from ((start + i, values[i]) for i in _spread(rows.tolist(), wanted))
                break
            start += batch.num_rows


def _spread(values: Sequence[T], count: int) -> list[T]:
    """``count`` of ``values`` (all, if there are fewer), evenly spread."""
    count = min(count, len(values))
    return [values[i * len(values) // count] for i in range(count)]
