"""Values that samples must have, in columns of their own traces or of a judge's output.

A number is the least that is accepted; text, true and false must be equal. A run over the folder
``traces`` (a judge, say) carries the column ``source_row``, which names the sample; other files may
have the ``sample_id`` of the folder ``samples``. Traces never change when rules of acceptance do. A
retry replaces some; so a judgement that carries the thinking or the answer of its sample holds only
while the sample has the same.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as types

from jobs.accept import JUDGE, UNJUDGED
from pipeline.errors import InputError, first_line
from pipeline.execution.prepare import PreparedRun
from pipeline.input.earlier_run import stage_name
from pipeline.input.files import PARQUET_NAMES, find_files
from pipeline.input.source_rows import SourceRows
from pipeline.output.reader import FinishedPart
from pipeline.prompts.render import TableRow
from pipeline.schema import OUR_COLUMNS, SOURCE_ROW
from pipeline.storage import Storage

SAMPLE_ID = "sample_id"
# What a sample says, as far as a judgement carries it.
TEXTS = ("think", "answer")
BATCH_ROWS = 1024
Required = bool | int | float | str
# The names in a file of those of `TEXTS` that it carries, by ours.
Carried = tuple[tuple[str, str], ...]


class Judgements:
    """What is required of the samples of ``run``, and what they have.

    ``required``: by column. ``judged``: path of Parquet files with these columns and `SOURCE_ROW`
    or `SAMPLE_ID`, of which there may be none yet; None: the columns are in the traces. Raises
    `InputError` for a column that is not there or of another type, and for a sample that is judged
    twice.
    """

    def __init__(
        self, required: Mapping[str, Required], judged: str | None, run: PreparedRun
    ) -> None:
        self._required, self._judged, self._names = dict(required), judged, run.names
        self._stage = len(run.lineage) + 1
        self._by_sample = dict[tuple[str, bytes], dict[str, Any]]()
        self._keys, self._carried = set[str](), set[Carried]()
        if judged is None:
            _check(self._required, run.traces, "the run's output")
        else:
            self._read(judged)
        numbers = (name for name, value in required.items() if _kind(value) == "a number")
        self._score_column = next(numbers, None)
        self._scores = dict[str, float]()

    def reasons(
        self, part: FinishedPart, traces: pa.Table, sample_ids: Sequence[str]
    ) -> Iterator[str | None]:
        """Why each of ``traces``, all those of ``part``, is not accepted; None if it is.

        `UNJUDGED`: nobody has judged it. `JUDGE`: a value is missing, or not as required.
        """
        keys = [sample_ids] if SAMPLE_ID in self._keys else []
        if SOURCE_ROW in self._keys:
            with part.open() as file:
                keys.append(SourceRows(file, part.name).column(traces, 0).to_pylist())
        for i, sample_id in enumerate(sample_ids):
            values = self._values([each[i] for each in keys], TableRow(traces, i))
            if values is not None and self._score_column is not None:
                score = values[self._score_column]
                if score is not None and score == score:  # NaN is none
                    self._scores[sample_id] = float(score)
            yield self._reason(values)

    def score(self, sample_id: str) -> float | None:
        """The number in the first required column of numbers, of a sample that `reasons` had."""
        return self._scores.get(sample_id)

    def _values(self, keys: Sequence[str], trace: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The required columns of a sample; None if nobody has judged it as it is now."""
        if self._judged is None:
            return {name: trace[name] for name in self._required}
        for carried in self._carried:
            digest = _digest([trace[self._names[ours]] for ours, _ in carried])
            for key in keys:
                if (values := self._by_sample.get((key, digest))) is not None:
                    return values
        return None

    def _reason(self, values: Mapping[str, Any] | None) -> str | None:
        if values is None:
            return UNJUDGED
        for name, required in self._required.items():
            value, is_number = values[name], _kind(required) == "a number"
            if value is None or not (value >= required if is_number else value == required):
                return JUDGE
        return None

    def _read(self, judged: str) -> None:
        left_out = list[str]()
        store, files = find_files(judged, PARQUET_NAMES, left_out)
        if left_out and not files:
            raise InputError(
                f"synthesize.judged {judged}: no Parquet files there, but {left_out[0]}"
            )
        for info in files:
            try:
                with store.fs.open(store.path(info.name), "rb") as file:
                    self._read_file(judged, store, info.name, pq.ParquetFile(file))
            except (pa.ArrowException, OSError) as error:
                raise InputError(
                    f"synthesize.judged {store.path(info.name)} can't be read: {first_line(error)}"
                ) from None

    def _read_file(self, judged: str, store: Storage, name: str, file: pq.ParquetFile) -> None:
        schema, where = file.schema_arrow, store.path(name)
        key = SAMPLE_ID if SAMPLE_ID in schema.names else SOURCE_ROW
        if key not in schema.names:
            raise InputError(
                f"synthesize.judged: {where} names no samples; it needs the column {SOURCE_ROW}, "
                f"as a run over the folder traces has it, or {SAMPLE_ID}"
            )
        _check({key: "", **self._required}, schema, where)
        carried = self._carried_by(schema)
        self._keys.add(key)
        self._carried.add(carried)
        columns = list(dict.fromkeys([key, *self._required, *(there for _, there in carried)]))
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                if row[key] is None:
                    raise InputError(f"synthesize.judged: {where} has a row without {key}")
                sample = row[key], _digest([row[there] for _, there in carried])
                if sample in self._by_sample:
                    raise InputError(
                        f"synthesize.judged {judged} has sample {row[key]} twice; keep one "
                        "judgement of each sample"
                    )
                self._by_sample[sample] = {each: row[each] for each in self._required}

    def _carried_by(self, schema: pa.Schema) -> Carried:
        """What ``schema`` has of a sample's texts, under the names that runs carry them."""
        names = [(ours, self._names[ours]) for ours in TEXTS]
        carried = [
            (ours, stage_name(self._stage, name) if name in OUR_COLUMNS else name)
            for ours, name in names
        ]
        return tuple(pair for pair in carried if pair[1] in schema.names)


def _digest(texts: Sequence[Any]) -> bytes:
    return hashlib.blake2b(repr(texts).encode(errors="surrogatepass"), digest_size=16).digest()


def _kind(required: Required) -> str:
    if isinstance(required, bool):
        return "true or false"
    return "text" if isinstance(required, str) else "a number"


def _has_kind(type_: pa.DataType, kind: str) -> bool:
    if types.is_dictionary(type_):
        type_ = type_.value_type
    if kind == "true or false":
        return bool(types.is_boolean(type_))
    if kind == "text":
        return bool(
            types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_)
        )
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
