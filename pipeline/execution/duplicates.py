"""Rows with the same prompt: one of them is generated, the others are context its traces.

    todo, copies = split_duplicates(job, work, plan.todo)
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
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.execution.cluster import results
from pipeline.execution.context_tiers import divide
from pipeline.execution.copies import Copies, CopyContext, RowIndex
from pipeline.execution.prepare import PreparedRun
from pipeline.input.shards import ROWS_A_READ_TASK, read_bundle
from pipeline.output import passes
from pipeline.planning import Pass, Range, bundles
from pipeline.prompts.render import TableRow, row_messages, row_tools
from pipeline.prompts.template import columns_of
from pipeline.schema import SAMPLES_COLUMN, with_origin

HASH_BYTES = 16


def split_duplicates(
    prepared: PreparedRun, run_pass: Pass, todo: tuple[Range, ...]
) -> tuple[tuple[Range, ...], Copies]:
    """What is to be generated of ``todo``, and what is to be copied then.

    Without ``input.dedupe`` nothing is read, and nothing copied.
    """
    context = CopyContext(
        prepared.config, prepared.columns, prepared.prompts, run_pass, prepared.traces, prepared.metadata(run_pass),
        prepared.ledger.store.location,
    )  # fmt: skip
    if not prepared.config.input.dedupe:
        return todo, Copies(context)
    done = passes.durable_ranges(prepared.ledger, prepared.parts, run_pass)
    rows = sum(piece.rows for piece in done)
    copied, sources = find_copies(_hash_all(context, done, todo), rows)
    generated = tuple(piece for is_copy, piece in divide(todo, copied) if not is_copy)
    return generated, Copies(context, todo, copied, sources, RowIndex([*done, *todo]), rows)


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


def hash_rows(context: CopyContext, bundle: Sequence[Range]) -> Any:
    """The hashes of the rows of ``bundle``, shape (2, rows); 0 where a row has no prompt."""
    config, columns = context.config, context.columns
    system, suffix = config.prompt.system, config.suffix_text
    named = (columns.prompt, columns.messages, columns.tools, *columns_of(columns.template or ""))
    schema = pa.schema([field for field in context.prompts if field.name in named])

    def digest(row: TableRow) -> bytes:
        try:
            seen = (row_messages(row, columns, system, suffix), row_tools(row, columns))
            # Keys in the row's own order, in which templates write them.
            text = json.dumps([*seen, row[SAMPLES_COLUMN]], default=str)
        except Exception:  # rows hold anything; this one will say itself what is wrong with it
            return bytes(HASH_BYTES)
        return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()

    tables = read_bundle(config.input.path, bundle, context.run_pass.samples, with_origin(schema))
    rows = (TableRow(table, i) for table in tables for i in range(table.num_rows))
    return np.frombuffer(b"".join(map(digest, rows)), np.uint64).reshape(-1, 2).T


def _hash_all(context: CopyContext, *lists: Sequence[Range]) -> Any:
    """The hashes of the rows of some lists of ranges, each in order; shape (2, rows)."""
    rows = sum(piece.rows for pieces in lists for piece in pieces)
    common, hashes, at = ray.put(context), np.empty((2, rows), np.uint64), 0
    grouped = (bundle for pieces in lists for bundle in bundles(pieces, ROWS_A_READ_TASK))
    for found in results([_hash.remote(common, bundle) for bundle in grouped]):
        hashes[:, at : at + found.shape[1]] = found
        at += found.shape[1]
    return hashes


@ray.remote
def _hash(context: CopyContext, bundle: list[Range]) -> Any:
    return hash_rows(context, bundle)
