"""Values that samples must have, in columns of their own traces or of a judge's output.

A number is the least that is accepted; text, true and false must be equal. A judge's output has a
row for each sample, with its ``sample_id``: that of a run over the folder ``samples`` does.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from jobs.accept import JUDGE, UNJUDGED
from pipeline.errors import InputError
from pipeline.input.shards import find_shards
from pipeline.schema import conform
from pipeline.storage import Storage

SAMPLE_ID = "sample_id"
Required = bool | int | float | str


class Judgements:
    """What is required of samples, and what they have.

    ``required``: by column. ``judged``: path of Parquet files with these columns and `SAMPLE_ID`;
    None: the columns are in ``traces``, the schema of the run's output. Raises `InputError` for a
    column that is not there or of another type, and for a sample that is judged twice.
    """

    def __init__(
        self, required: Mapping[str, Required], judged: str | None, traces: pa.Schema
    ) -> None:
        self._required = dict(required)
        self._by_sample = None if judged is None else _read(judged, self._required)
        if judged is None:
            _check(self._required, traces, "the run's output")
        numbers = (name for name, value in required.items() if _kind(value) == "a number")
        self._score_column = next(numbers, None)

    def values(self, sample_id: str, trace: Mapping[str, Any]) -> Mapping[str, Any]:
        """The required columns of one sample; empty if nobody has judged it."""
        if self._by_sample is not None:
            return self._by_sample.get(sample_id, {})
        return {name: trace[name] for name in self._required}

    def reason(self, values: Mapping[str, Any]) -> str | None:
        """Why ``values`` are not enough: `UNJUDGED` or `JUDGE`; None if they are."""
        if any(values.get(name) is None for name in self._required):
            return UNJUDGED
        for name, required in self._required.items():
            is_number = _kind(required) == "a number"
            if not (values[name] >= required if is_number else values[name] == required):
                return JUDGE
        return None

    def score(self, values: Mapping[str, Any]) -> float | None:
        """The number in the first required column of numbers; None if there is none."""
        value = None if self._score_column is None else values.get(self._score_column)
        return None if value is None or value != value else float(value)


def _kind(required: Required) -> str:
    if isinstance(required, bool):
        return "true or false"
    return "text" if isinstance(required, str) else "a number"


def _has_kind(type_: pa.DataType, kind: str) -> bool:
    if kind == "true or false":
        return bool(types.is_boolean(type_))
    if kind == "text":
        return bool(types.is_string(type_) or types.is_large_string(type_))
    return bool(types.is_integer(type_) or types.is_floating(type_))


def _check(required: Mapping[str, Required], schema: pa.Schema, where: str) -> None:
    for name, value in required.items():
        if name not in schema.names:
            raise InputError(
                f"synthesize.require has {name}, but {where} has only the columns "
                f"{', '.join(schema.names)}"
            )
        if not _has_kind(schema.field(name).type, _kind(value)):
            raise InputError(
                f"synthesize.require: {name} is {schema.field(name).type} in {where}, and "
                f"{value!r} is {_kind(value)}; require a value of its type"
            )


def _read(judged: str, required: Mapping[str, Required]) -> dict[str, dict[str, Any]]:
    """The required values by sample."""
    found = find_shards(judged)
    _check({SAMPLE_ID: "", **required}, found.schema, judged)
    wanted = pa.schema([found.schema.field(name) for name in (SAMPLE_ID, *required)])
    by_sample = dict[str, dict[str, Any]]()
    for shard in found.shards:
        with Storage(judged).fs.open(shard.path, "rb") as file:
            table = pq.ParquetFile(file).read(wanted.names)
        for row in conform(table, wanted).to_pylist():
            sample_id = row.pop(SAMPLE_ID)
            if sample_id in by_sample:
                raise InputError(
                    f"synthesize.judged {judged} has sample {sample_id} twice; keep one judgement "
                    "of each sample"
                )
            by_sample[sample_id] = row
    return by_sample
