"""Rows with the same prompt: one of them is generated, the others are given its traces.

    todo, copies = set_apart(job, work, plan.todo)
    copies.write(ready=True)                        # what a limit would have to wait for again
    ...                                             # generate what is in todo
    copies.write(ready=False)

Equal are rows of which the model would see the same, messages and tools, and of which the same
samples are wanted. Of equal rows the first that is done already is the source; where none is, the
first in the order of the plan. So a run that was broken off, or that has more shards now,
generates nothing twice.

Ray tasks read the rows and hash them; the driver holds 16 bytes for each row of the run and finds
equal ones by sorting.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from pipeline import passes
from pipeline.cluster import results
from pipeline.copies import Copies, Given, Places
from pipeline.lanes import divide
from pipeline.plan import Pass, Range, bundles
from pipeline.prompts import TableRow, row_messages, row_tools
from pipeline.schema import SAMPLES_COLUMN, with_origin
from pipeline.source import ROWS_A_READ_TASK, read_bundle
from pipeline.templates import columns_of

if TYPE_CHECKING:
    from pipeline.flow import Job

HASH_BYTES = 16


def set_apart(job: "Job", work: Pass, todo: tuple[Range, ...]) -> tuple[tuple[Range, ...], Copies]:
    """What is to be generated of ``todo``, and what is to be copied then.

    Without ``input.dedupe`` nothing is read, and nothing copied.
    """
    given = Given(
        job.config, job.columns, job.prompts, work, job.traces, job.metadata(work),
        job.ledger.store.location,
    )  # fmt: skip
    if not job.config.input.dedupe:
        return todo, Copies(given)
    done = passes.done(job.ledger, job.parts, work)
    rows = sum(piece.rows for piece in done)
    copied, sources = find_copies(_hash_all(given, done, todo), rows)
    generated = tuple(piece for is_copy, piece in divide(todo, copied) if not is_copy)
    return generated, Copies(given, todo, copied, sources, Places([*done, *todo]), rows)


def find_copies(hashes: Any, done: int) -> tuple[Any, Any]:
    """Which of the rows from index ``done`` on are copies; and of each copy the source's index.

    ``hashes``: shape (2, rows), the halves of each row's hash; a row whose hash is 0 equals none.
    The source is the first of the equal rows. The boolean array has a value for each row that is
    not done, the other one for each copy.
    """
    order = np.lexsort(hashes)  # stable: equal rows stay in their order
    begins, is_nothing = np.zeros(len(order), bool), np.ones(len(order), bool)
    begins[:1] = True
    for half in hashes:
        ordered = half[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
        is_nothing &= ordered == 0
    begins |= is_nothing
    first = np.flatnonzero(begins)
    source = np.empty(len(order), np.int64)
    source[order] = np.repeat(order[first], np.diff(first, append=len(order)))
    copied = source[done:] != np.arange(done, len(order))
    return copied, source[done:][copied]


def hash_rows(given: Given, bundle: Sequence[Range]) -> Any:
    """The hashes of the rows of ``bundle``, shape (2, rows); 0 where a row has no prompt."""
    config, columns = given.config, given.columns
    system, suffix = config.prompt.system, config.suffix_text
    named = (columns.prompt, columns.messages, columns.tools, *columns_of(columns.template or ""))
    schema = pa.schema([field for field in given.prompts if field.name in named])

    def digest(row: TableRow) -> bytes:
        try:
            seen = (row_messages(row, columns, system, suffix), row_tools(row, columns))
            # Keys in the row's own order, in which templates write them.
            text = json.dumps([*seen, row[SAMPLES_COLUMN]], default=str)
        except Exception:  # rows hold anything; this one will say itself what is wrong with it
            return bytes(HASH_BYTES)
        return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()

    tables = read_bundle(config.input.path, bundle, given.work.samples, with_origin(schema))
    rows = (TableRow(table, i) for table in tables for i in range(table.num_rows))
    return np.frombuffer(b"".join(map(digest, rows)), np.uint64).reshape(-1, 2).T


def _hash_all(given: Given, *lists: Sequence[Range]) -> Any:
    """The hashes of the rows of some lists of ranges, each in order; shape (2, rows)."""
    rows = sum(piece.rows for pieces in lists for piece in pieces)
    common, hashes, at = ray.put(given), np.empty((2, rows), np.uint64), 0
    grouped = (bundle for pieces in lists for bundle in bundles(pieces, ROWS_A_READ_TASK))
    for found in results([_hash.remote(common, bundle) for bundle in grouped]):
        hashes[:, at : at + found.shape[1]] = found
        at += found.shape[1]
    return hashes


@ray.remote
def _hash(given: Given, bundle: list[Range]) -> Any:
    return hash_rows(given, bundle)
