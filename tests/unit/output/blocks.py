"""Traces as they reach the sink, and the part and the pass that they belong to."""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.schema import ORIGIN_FIELDS, TRACE_COLUMNS, output_schema

SCHEMA = output_schema(pa.schema([("id", pa.int64())]), {}, raw_text=False)
METADATA = {
    "columns": {name: name for name in TRACE_COLUMNS},
    "settings": {"sampling.n": 1},
    "versions": {},
}
PART = PartRef("en/shard-0.00001.parquet", 100, 110)
RUN = Pass(0, 0, 1)


def block(
    rows: list[int],
    text: str = "t",
    part: PartRef = PART,
    samples: tuple[int, ...] = (0,),
    spans: list[tuple[int, int]] | None = None,
    state: str = "finished",
) -> pa.Table:
    """The traces of ``rows`` as they reach the sink."""
    spans = spans or [(row, row + 1) for row in rows]
    keys = [
        (row, span, sample) for row, span in zip(rows, spans, strict=True) for sample in samples
    ]
    traces = [
        {"id": row, "think": text, "answer": f"{text}{row}", "state": state, "sample": sample,
         "think_tokens": 2, "answer_tokens": 1, "prompt_tokens": 5, "carried_tokens": 0,
         "attempt": 0, "seed": 9, "loop_retries": 0, "wasted_tokens": 0}
        for row, _, sample in keys
    ]  # fmt: skip
    table = pa.Table.from_pylist(traces, SCHEMA)
    origins = [(str(part), row, list(samples), *span) for row, span, _ in keys]
    for field, column in zip(ORIGIN_FIELDS, zip(*origins, strict=True), strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


def read(ledger: Ledger, part: PartRef = PART) -> pa.Table:
    return pq.read_table(ledger.store.path(part.name))
