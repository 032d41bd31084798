"""The Arrow schemas of prompts and traces, in one place; no I/O."""

from collections.abc import Iterable, Mapping

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

# Where a row comes from and what is wanted of it, beside it on its way through Ray Data; not in
# finished parts. A row stands for the rows ``__qwq_start`` to ``__qwq_stop``: itself, and, in a
# pass over chosen rows, those around it that were not chosen.
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
    """Our columns under the names that the run gives them; ``raw`` only if kept."""
    fields = TRACE_FIELDS if raw_text else TRACE_FIELDS[:-1]
    return [field.with_name(rename.get(field.name, field.name)) for field in fields]


def output_schema(prompts: pa.Schema, rename: Mapping[str, str], raw_text: bool) -> pa.Schema:
    """The schema of a finished part: all input columns, then ours.

    Raises `InputError` where a name of ours is taken.
    """
    ours = trace_fields(rename, raw_text)
    back = {new: old for old, new in rename.items()}
    clashes = [field.name for field in ours if field.name in prompts.names]
    if clashes:
        hints = ", ".join(f"output.rename.{back.get(n, n)}=qwq_{back.get(n, n)}" for n in clashes)
        raise InputError(
            f"the input already has a column {', '.join(clashes)}, which the output would add; "
            f"rename ours with --set {hints}"
        )
    reserved = [name for name in prompts.names if name in ORIGIN_COLUMNS]
    if reserved:
        raise InputError(f"the input has a column {reserved[0]}, a name that the pipeline uses")
    return pa.schema([*prompts, *ours])


def with_origin(schema: pa.Schema) -> pa.Schema:
    """``schema`` with the columns that say which part and row of the shard a row is."""
    return pa.schema([*schema, *ORIGIN_FIELDS])


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """One schema that all shards' rows fit, without their metadata.

    Columns missing in some shards are null there; number types widen. Raises `InputError` naming
    the shard that fits no other.
    """
    unified: pa.Schema | None = None
    for shard, schema in schemas:
        # Nullable all: a column that another shard lacks is null there.
        plain = pa.schema([field.with_nullable(True).remove_metadata() for field in schema])
        if unified is None or plain.equals(unified):
            unified = plain
            continue
        try:
            unified = pa.unify_schemas([unified, plain], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"the columns of {shard} do not fit the other shards: {error}"
            ) from None
    if unified is None:
        raise InputError("no shards, so no schema")
    twice = {name for name in unified.names if unified.names.count(name) > 1}
    if twice:
        raise InputError(f"the input has several columns called {', '.join(sorted(twice))}")
    return unified


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table``'s columns in the order and types of ``schema``; null where it has none."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
