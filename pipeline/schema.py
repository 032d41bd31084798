"""The Arrow schemas of prompts and traces; no I/O."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError

TRACE_FIELDS: tuple[pa.Field, ...] = (
    pa.field("think", pa.string()),
    pa.field("answer", pa.string()),
    pa.field("state", pa.string(), nullable=False),
    pa.field("finish_reason", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("think_tokens", pa.int32(), nullable=False),
    pa.field("answer_tokens", pa.int32(), nullable=False),
    pa.field("parsed", pa.string()),
    pa.field("correct", pa.bool_()),
    pa.field("vote", pa.string()),
    pa.field("agreement", pa.float32()),
    pa.field("think_foreign", pa.float32()),
    pa.field("answer_foreign", pa.float32()),
    pa.field("closed_by", pa.string()),
    pa.field("loop_retries", pa.int32(), nullable=False),
    pa.field("wasted_tokens", pa.int32(), nullable=False),
    pa.field("carried_tokens", pa.int32(), nullable=False),
    pa.field("sample", pa.int32(), nullable=False),
    pa.field("attempt", pa.int32(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("duplicate_of", pa.string()),
    pa.field("yarn_factor", pa.float32()),
    pa.field("error", pa.string()),
    pa.field("raw", pa.string()),
)
TRACE_COLUMNS: tuple[str, ...] = tuple(field.name for field in TRACE_FIELDS)

# Provenance and requested samples, carried with each row through Ray Data; dropped from finished
# parts. A row accounts for the rows ``__qwq_start`` to ``__qwq_stop`` (exclusive): itself and, in a
# pass over chosen rows, its neighbors that were not chosen.
PART_COLUMN = "__qwq_part"
ROW_COLUMN = "__qwq_row"
SAMPLES_COLUMN = "__qwq_samples"
START_COLUMN = "__qwq_start"
STOP_COLUMN = "__qwq_stop"
ORIGIN_FIELDS = (
    pa.field(PART_COLUMN, pa.string(), nullable=False),
    pa.field(ROW_COLUMN, pa.int64(), nullable=False),
    pa.field(SAMPLES_COLUMN, pa.list_(pa.int32()), nullable=False),
    pa.field(START_COLUMN, pa.int64(), nullable=False),
    pa.field(STOP_COLUMN, pa.int64(), nullable=False),
)
ORIGIN_COLUMNS: tuple[str, ...] = tuple(field.name for field in ORIGIN_FIELDS)


def trace_fields(rename: Mapping[str, str], raw_text: bool) -> list[pa.Field]:
    """Our columns under the run's names; ``raw`` only with ``raw_text``.

    ``rename``: the run's name by our name, for the renamed columns only.
    """
    fields = TRACE_FIELDS if raw_text else TRACE_FIELDS[:-1]
    return [field.with_name(rename.get(field.name, field.name)) for field in fields]


def output_schema(prompts: pa.Schema, rename: Mapping[str, str], raw_text: bool) -> pa.Schema:
    """The schema of a finished part: all input columns, then ours as in `trace_fields`.

    Raises `InputError` if the input already has a column of that name.
    """
    ours = trace_fields(rename, raw_text)
    original = {new: old for old, new in rename.items()}
    clashes = [field.name for field in ours if field.name in prompts.names]
    if clashes:
        names = [original.get(name, name) for name in clashes]
        hints = ", ".join(f"output.rename.{name}=qwq_{name}" for name in names)
        raise InputError(
            f"the input already has a column {', '.join(clashes)}, which the output would add; "
            f"rename the output's column with --set {hints}"
        )
    reserved = [name for name in prompts.names if name in ORIGIN_COLUMNS]
    if reserved:
        raise InputError(
            f"the input has a column {reserved[0]}, a name reserved by the pipeline; rename it"
        )
    return pa.schema([*prompts, *ours])


def with_origin(schema: pa.Schema) -> pa.Schema:
    """``schema`` followed by the provenance columns (`ORIGIN_FIELDS`)."""
    return pa.schema([*schema, *ORIGIN_FIELDS])


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """Combine the schemas of all shards, given as (name, schema), and drop their metadata.

    Every column is nullable, as some shards may lack it. Number types widen. Raises `InputError`
    for no shards, a column name that occurs twice, or a shard whose types clash (named).
    """
    unified: pa.Schema | None = None
    for shard, schema in schemas:
        plain = pa.schema([field.with_nullable(True).remove_metadata() for field in schema])
        if unified is None or plain.equals(unified):
            unified = plain
            continue
        try:
            unified = pa.unify_schemas([unified, plain], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"the columns of {shard} do not fit the other shards: {error}; convert them to "
                "the types of the others"
            ) from None
    if unified is None:
        raise InputError("there are no shards to take a schema from")
    repeated = {name for name in unified.names if unified.names.count(name) > 1}
    if repeated:
        raise InputError(
            f"the input has several columns called {', '.join(sorted(repeated))}; rename them"
        )
    return unified


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with the columns, order and types of ``schema``; missing columns are null.

    Raises `pyarrow.ArrowInvalid` if a value does not fit its new type.
    """
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def row_numbers(samples: Any, first_row: int) -> Any:
    """The row number in the shard of each trace of a finished part.

    ``samples``: the part's ``sample`` column, as an integer array of shape (traces,). Each row
    begins with its sample 0. Returns an array of the same shape.
    """
    return first_row - 1 + np.cumsum(np.asarray(samples) == 0)
