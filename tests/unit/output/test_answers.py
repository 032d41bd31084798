"""What was compared with references, and what could not be, is counted in footers and summed up."""

from collections import Counter
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.parts import write_part
from pipeline.output.summary import Summary
from pipeline.schema import ROW_COLUMN, TRACE_COLUMNS, TRACE_FIELDS, output_schema

ABSURD = "2^{99999}/2^{99998}"
PROMPTS = pa.schema([("right", pa.string())])
SETTINGS = {"answer.format": "boxed", "answer.reference_column": "right"}


def part_of(rows: list[tuple[str | None, list[tuple[str | None, bool | None]]]]) -> Any:
    """The part of rows, each a reference and its samples: what was parsed, and the verdict."""
    traces = [
        {"right": right, "parsed": parsed, "correct": correct, "state": "finished", "sample": i,
         "think_tokens": 1, "answer_tokens": 1, "prompt_tokens": 1, "carried_tokens": 0, "seed": 0,
         "wasted_tokens": 0, "loop_retries": 0, "attempt": 0, ROW_COLUMN: row}
        for row, (right, samples) in enumerate(rows)
        for i, (parsed, correct) in enumerate(samples)
    ]  # fmt: skip
    fields = pa.schema([*PROMPTS, *TRACE_FIELDS, pa.field(ROW_COLUMN, pa.int64())])
    metadata = {"columns": {name: name for name in TRACE_COLUMNS}, "settings": SETTINGS}
    table = pa.Table.from_pylist(traces, fields)
    file = BytesIO()
    counts = write_part(file, [table], output_schema(PROMPTS, {}, raw_text=False), metadata)
    return file.getvalue(), counts


def test_footer_says_why_there_is_no_verdict() -> None:
    data, counts = part_of(
        [
            ("1", [("1.0", True), ("2", False), (None, False)]),
            (None, [("1", None)]),
            ("proof", [("1", None)]),
            ("so it is, " * 200, [("1", None)]),
            ("2", [(ABSURD, None), ("2", True)]),
        ]
    )
    assert counts["answers"] == {
        "right": 2, "wrong": 2, "without": 2, "unreadable": 1, "given_up": 1, "votes_given_up": 1,
    }  # fmt: skip
    assert pq.read_table(BytesIO(data))["agreement"].to_pylist()[-2:] == [0.5, 0.5]


def test_summary_names_what_has_no_verdict() -> None:
    counts = Counter(right=2, wrong=2, without=1, unreadable=1, given_up=1, votes_given_up=1)
    summary = Summary(7, 7, 7, 7, Counter(finished=7), 1, 1, 1, 0, (), answers=counts)
    text = "\n".join(summary.lines())
    assert "correct            2 of 4 compared   50.0%" in text
    assert "no verdict         1 traces without a reference" in text
    assert "no verdict         1 traces with a reference that can't be read" in text
    assert (
        "no verdict         1 traces with a comparison that took too long and was given up" in text
    )
    assert "1 answers that took too long to compare in a vote" in text
    plain = Summary(7, 7, 7, 7, Counter(finished=7), 1, 1, 1, 0, ())
    assert not [line for line in plain.lines() if "verdict" in line or "correct" in line]
