"""The Arrow schemas of prompts and traces; no I/O."""

from collections.abc import Mapping, Sequence
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
# Only of runs with ``thinking.early_answer``.
EARLY_FIELDS: tuple[pa.Field, ...] = (
    pa.field("control", pa.bool_(), nullable=False),
    pa.field("probes", pa.int32(), nullable=False),
    pa.field("probe_tokens", pa.int32(), nullable=False),
    pa.field("early_answer", pa.string()),
    pa.field("early_tokens", pa.int32()),
    pa.field("early_agrees", pa.bool_()),
    pa.field("early_correct", pa.bool_()),
)
EARLY_COLUMNS: tuple[str, ...] = tuple(field.name for field in EARLY_FIELDS)
# Only of runs with ``answer.ask_again``.
ASKED_FIELDS: tuple[pa.Field, ...] = (pa.field("asked_tokens", pa.int32(), nullable=False),)
# Only of runs with ``input.sampling_column``: what each trace was sampled with, the run's settings
# with those of its row.
SAMPLED_FIELDS: tuple[pa.Field, ...] = (
    pa.field(
        "sampled_with",
        pa.struct([
            ("temperature", pa.float64()),
            ("top_p", pa.float64()),
            ("top_k", pa.int64()),
            ("min_p", pa.float64()),
            ("presence_penalty", pa.float64()),
            ("repetition_penalty", pa.float64()),
            ("max_tokens", pa.int64()),
            ("json_schema", pa.string()),
        ]),
    ),
)  # fmt: skip
OPTIONAL_FIELDS = (*EARLY_FIELDS, *ASKED_FIELDS, *SAMPLED_FIELDS)
# All names that our columns can have.
OUR_COLUMNS = (*TRACE_COLUMNS, *(field.name for field in OPTIONAL_FIELDS))

# The key of a part's footer that holds, as JSON, which run wrote it and how.
FOOTER_KEY = b"qwq-batch"
# An input column that the pipeline makes: where a row comes from, see `pipeline.input.source_rows`.
SOURCE_ROW = "source_row"

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
# Why the file could not be read at this row; null for nearly all rows.
UNREADABLE_COLUMN = "__qwq_unreadable"
UNREADABLE_FIELD = pa.field(UNREADABLE_COLUMN, pa.string())
# Which engine made a trace, on its way from the engine to its fragment.
ENGINE_COLUMN = "__qwq_engine"
RESERVED_COLUMNS = (*ORIGIN_COLUMNS, UNREADABLE_COLUMN, ENGINE_COLUMN)


def trace_fields(
    rename: Mapping[str, str], raw_text: bool, optional: Sequence[pa.Field] = ()
) -> list[pa.Field]:
    """Our columns under the run's names; ``raw`` only with ``raw_text``.

    ``rename``: the run's name by our name, for the renamed columns only. ``optional``: those of
    `OPTIONAL_FIELDS` that the run has.
    """
    fields = (*(TRACE_FIELDS if raw_text else TRACE_FIELDS[:-1]), *optional)
    return [field.with_name(rename.get(field.name, field.name)) for field in fields]


def output_schema(
    prompts: pa.Schema,
    rename: Mapping[str, str],
    raw_text: bool,
    ignore_case: bool = True,
    optional: Sequence[pa.Field] = (),
) -> pa.Schema:
    """The schema of a finished part: all input columns, then ours as in `trace_fields`.

    Raises `InputError` if two columns would have the same name; with ``ignore_case`` also if they
    differ by case only, because SQL engines take these for one.
    """
    ours = trace_fields(rename, raw_text, optional)
    key = str.lower if ignore_case else str
    original = {new: old for old, new in rename.items()}
    theirs = {key(name): name for name in prompts.names}
    clashes = {field.name: theirs[key(field.name)] for field in ours if key(field.name) in theirs}
    if clashes:
        names = [original.get(name, name) for name in clashes]
        hints = " ".join(f"--set output.rename.{name}=qwq_{name}" for name in names)
        taken = ", ".join(clashes.values())
        if {"think", "state"} <= set(names):
            hints += _COPIED
        what = "which the output would add"
        if any(name != other for name, other in clashes.items()):
            what = f"and the output would add {', '.join(clashes)}: {_CASE}"
        raise InputError(
            f"the input already has a column {taken}, {what}; rename the output's column with "
            f"{hints}"
        )
    reserved = [name for name in prompts.names if name in RESERVED_COLUMNS]
    if reserved:
        raise InputError(
            f"the input has a column {reserved[0]}, a name reserved by the pipeline; rename it"
        )
    for name in (*prompts.names, *(field.name for field in ours)) if ignore_case else ():
        if theirs.setdefault(key(name), name) != name:
            raise InputError(
                f"the columns {theirs[key(name)]} and {name} differ by case only: {_CASE}; rename "
                "one of them"
            )
    return pa.schema([*prompts, *ours])


_COPIED = (
    ". Or, if another run wrote the input, take its output files as they are: their footers tell "
    "its columns from others, which are then carried under names of their own"
)
_CASE = "DuckDB, Spark and other SQL engines take names that differ by case only for one"


def with_origin(schema: pa.Schema) -> pa.Schema:
    """``schema`` followed by the provenance columns (`ORIGIN_FIELDS`) and `UNREADABLE_COLUMN`."""
    return pa.schema([*schema, *ORIGIN_FIELDS, UNREADABLE_FIELD])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` with the columns, order and types of ``schema``; missing columns are null.

    Raises `pyarrow.ArrowInvalid` if a value does not fit its new type.
    """
    columns = [
        cast(table[field.name], field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def cast(column: Any, type_: pa.DataType) -> Any:
    """``column`` (an array, chunked or not) as ``type_``.

    Raises `pyarrow.ArrowInvalid` if a value does not fit.
    """
    try:
        return column.cast(type_)
    except pa.ArrowNotImplementedError:  # Arrow has no kernel for some views inside lists
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([pa.array(column.to_pylist(), type_)])
        return pa.array(column.to_pylist(), type_)


def plain_value(scalar: Any) -> Any:
    """The Python value of an Arrow scalar, also where Python has none for it.

    Bytes that are no UTF-8 become U+FFFD. A time beyond Python's years becomes text.
    """
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, pa.ArrowException):
        if isinstance(scalar, pa.StructScalar):
            return {name: plain_value(value) for name, value in scalar.items()}
        if isinstance(scalar, pa.DictionaryScalar):
            return plain_value(scalar.value)
        if isinstance(scalar, pa.MapScalar):
            pairs = scalar.values
            return [(plain_value(pair["key"]), plain_value(pair["value"])) for pair in pairs]
        if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
            return [plain_value(value) for value in scalar.values]
        if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
            return scalar.as_buffer().to_pybytes().decode(errors="replace")
        return scalar.cast(pa.string()).as_py()


def plain_values(column: Any) -> list[Any]:
    """`plain_value` of each value of ``column``, an array, chunked or not."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        values = [plain_value(scalar) for scalar in column]
    return values


def plain_rows(table: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of ``table`` as dicts of `plain_value`."""
    columns = [plain_values(column) for column in table.columns]
    if not columns:
        return [{} for _ in range(table.num_rows)]
    names = table.schema.names
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def row_numbers(samples: Any, first_row: int) -> Any:
    """The row number in the shard of each trace of a finished part.

    ``samples``: the part's ``sample`` column, as an integer array of shape (traces,). Each row
    begins with its sample 0. Returns an array of the same shape.
    """
    return first_row - 1 + np.cumsum(np.asarray(samples) == 0)
