"""Duplicates: of rows with identical model input, one is generated and the others get its traces.

    to_generate, copies = split_duplicates(prepared, run_pass, plan.todo)
    copies.write(ready=True)                        # their sources are durable already
    ...                                             # generate the rows of to_generate
    copies.write(ready=False)

Rows are equal if the model would see the same messages and tools, and if they request the same
samples. The source of equal rows is the first one that is done; if none is, the first in the order
of the plan. So a run that was broken off, or that has more shards now, generates nothing twice.

Ray tasks read and hash the rows. The driver holds 16 bytes for each row of the run and finds equal
rows by sorting.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from pipeline.execution.cluster import results
from pipeline.execution.context_tiers import divide
from pipeline.execution.copies import Copies, RowIndex
from pipeline.execution.prepare import PassContext, PreparedRun
from pipeline.execution.row_prompts import RowPrompts
from pipeline.execution.task_deaths import ends_of, refuse_endless_deaths
from pipeline.input.rows import ROWS_A_READ_TASK, read_bundle
from pipeline.output import passes
from pipeline.planning import Pass, Range, bundles
from pipeline.prompts.messages import row_tools
from pipeline.prompts.render import TableRow
from pipeline.schema import SAMPLES_COLUMN, UNREADABLE_COLUMN, with_origin

HASH_BYTES = 16


def split_duplicates(
    prepared: PreparedRun, run_pass: Pass, todo: tuple[Range, ...]
) -> tuple[tuple[Range, ...], Copies]:
    """The rows of ``todo`` to generate, and the rows to copy.

    Without ``input.dedupe`` this reads nothing and copies nothing.
    """
    context = prepared.context(run_pass)
    if not prepared.config.input.dedupe:
        return todo, Copies(context)
    done = passes.durable_ranges(prepared.ledger, prepared.parts, run_pass)
    rows = sum(piece.rows for piece in done)
    copied, sources = find_copies(_hash_all(context, done, todo), rows)
    to_generate = tuple(piece for is_copy, piece in divide(todo, copied) if not is_copy)
    return to_generate, Copies(context, todo, copied, sources, RowIndex([*done, *todo]), rows)


def find_copies(hashes: Any, done: int) -> tuple[Any, Any]:
    """Which rows from index ``done`` on are copies, and the index of each copy's source.

    ``hashes``: shape (2, rows), the halves of each row's hash; a row with the hash 0 equals none.
    The source is the first of the equal rows. Returns a boolean array with a value for each row
    that is not done, and an integer array with a value for each copy.
    """
    order = np.lexsort(hashes)  # stable: equal rows stay in their order
    begins, is_empty = np.zeros(len(order), bool), np.ones(len(order), bool)
    begins[:1] = True
    for half in hashes:
        ordered = half[order]
        begins[1:] |= ordered[1:] != ordered[:-1]
        is_empty &= ordered == 0
    begins |= is_empty
    first = np.flatnonzero(begins)
    source = np.empty(len(order), np.int64)
    source[order] = np.repeat(order[first], np.diff(first, append=len(order)))
    copied = source[done:] != np.arange(done, len(order))
    return copied, source[done:][copied]


def hash_rows(context: PassContext, bundle: Sequence[Range]) -> Any:
    """The hashes of the rows of ``bundle``, shape (2, rows); 0 for a row without a prompt."""
    config, columns = context.config, context.columns
    prompts = RowPrompts(config, columns)

    def own(row: TableRow) -> list[Any]:
        if config.input.sampling_column is None:
            return []
        settings = prompts.settings(row)
        policy = settings.applied(config.sampling)
        return [policy.model_dump(), settings.seed, settings.schema or config.answer.schema_text]

    def digest(row: TableRow) -> bytes:
        if row[UNREADABLE_COLUMN] is not None:
            return bytes(HASH_BYTES)
        try:
            messages = prompts.messages(row)
            # Keys stay in the row's own order, because templates write them in it.
            same = [messages, row_tools(row, columns), row[SAMPLES_COLUMN], *own(row)]
            text = json.dumps(same, default=str)
        except Exception:  # rows hold anything; generation will report what is wrong
            return bytes(HASH_BYTES)
        return hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest()

    # All columns: a row with a column that can't be read is neither a copy nor a source.
    schema = with_origin(context.prompts)
    tables = read_bundle(config.input.path, bundle, context.run_pass.samples, schema)
    rows = (TableRow(table, i) for table in tables for i in range(table.num_rows))
    return np.frombuffer(b"".join(map(digest, rows)), np.uint64).reshape(-1, 2).T


def _hash_all(context: PassContext, *lists: Sequence[Range]) -> Any:
    """The hashes of the rows of some lists of ranges, in order; shape (2, rows)."""
    rows = sum(piece.rows for pieces in lists for piece in pieces)
    common, hashes, at = ray.put(context), np.empty((2, rows), np.uint64), 0
    grouped = (bundle for pieces in lists for bundle in bundles(pieces, ROWS_A_READ_TASK))
    for of_bundle in results([_hash.remote(common, bundle) for bundle in grouped]):
        hashes[:, at : at + of_bundle.shape[1]] = of_bundle
        at += of_bundle.shape[1]
    return hashes


@ray.remote
def _hash(context: PassContext, bundle: list[Range]) -> Any:
    refuse_endless_deaths("looks for duplicates in", lambda: ends_of(bundle))
    return hash_rows(context, bundle)
