"""What closing early saves and costs, by the rows of a part: counts, intervals, words."""

import json
import math
import random
from collections import Counter
from io import BytesIO
from typing import Any

import pyarrow as pa
import pytest

from pipeline.output.early import EarlySummary, early_counts
from pipeline.output.parts import PartSummary, write_part
from pipeline.reasoning.early_answer import EarlyAnswer
from pipeline.schema import EARLY_COLUMNS, EARLY_FIELDS, ROW_COLUMN, TRACE_COLUMNS, output_schema
from tests.unit.output.blocks import METADATA

SCHEMA = output_schema(pa.schema([("id", pa.int64())]), {}, raw_text=False, optional=EARLY_FIELDS)
NAMES = {name: name for name in (*TRACE_COLUMNS, *EARLY_COLUMNS)}
PLAIN = {
    "id": 1, "state": "finished", "sample": 0, "think_tokens": 0, "answer_tokens": 0,
    "loop_retries": 0, "wasted_tokens": 0, "carried_tokens": 0, "attempt": 0, "seed": 9,
    "control": False, "probes": 0, "probe_tokens": 0,
}  # fmt: skip


def table(*traces: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{**PLAIN, **trace} for trace in traces], SCHEMA)


def closed(**more: Any) -> dict[str, Any]:
    """Closed after 400 tokens, when it had thought 430."""
    return {
        "closed_by": "early_answer", "think_tokens": 400, "answer_tokens": 10, "probes": 3,
        "probe_tokens": 12, "wasted_tokens": 30, "early_tokens": 400, "early_answer": "1", **more,
    }  # fmt: skip


def control(
    think: int = 1000, early: int | None = 400, agrees: bool | None = True, **more: Any
) -> dict[str, Any]:
    verdicts = dict.fromkeys(("correct", "early_correct"), True)
    return {
        "control": True, "think_tokens": think, "answer_tokens": 20, "probes": 3,
        "probe_tokens": 15, "early_tokens": early, "early_agrees": agrees, **verdicts, **more,
    }  # fmt: skip


def test_traces_are_counted_by_what_became_of_them_and_copies_are_not() -> None:
    counts = early_counts(
        table(
            closed(),
            closed(loop_retries=1, wasted_tokens=500),
            closed(duplicate_of="s:1"),
            {"think_tokens": 100, "closed_by": "budget"},
            control(),
            control(agrees=False, early_correct=False),
            control(agrees=False, correct=False),
            control(early=None, agrees=None, correct=True, early_correct=None),
            control(agrees=None, state="unparsed", correct=False, early_correct=False),
            control(duplicate_of="s:5"),
            {"state": "failed", "control": True},
        ),
        NAMES,
    )
    assert +counts == Counter({
        "closed": 2, "overrun_traces": 1, "overrun_tokens": 30, "probes": 21,
        "probe_tokens": 2 * 12 + 5 * 15, "spent_tokens": 452 + 922 + 100 + 5 * 1035,
        "control_rows": 5, "control_traces": 5, "settled": 4, "saved_tokens": 4 * 600,
        "compared_rows": 3, "compared": 3, "agreeing": 1, "full_tokens": 5 * 1020, "net_tokens": 4 * 585 - 15,
        "judged": 4, "early_right": 2, "full_right": 2, "right_to_wrong": 1, "wrong_to_right": 1,
        "compared_squared": 3, "agreeing_squared": 1, "agreeing_by_compared": 1,
        "full_squared": 5 * 1020**2, "net_squared": 4 * 585**2 + 15**2,
        "net_by_full": 1020 * (4 * 585 - 15),
    })  # fmt: skip


def test_samples_of_a_row_are_one_draw_and_tables_add_up() -> None:
    first = table(control(), control(sample=1, agrees=False), closed())
    counts = early_counts(first, NAMES)
    assert (counts["control_rows"], counts["compared"], counts["compared_squared"]) == (1, 2, 4)
    assert counts["full_squared"] == (2 * 1020) ** 2
    summary = PartSummary(NAMES)
    for _ in range(2):
        summary.add(first)
    assert summary.counts["early"] == counts + counts


def test_footer_has_counts_only_if_thinking_may_be_closed_early() -> None:
    rows = table(closed(), control()).append_column(ROW_COLUMN, pa.array([0, 1]))
    early = write_part(BytesIO(), [rows], SCHEMA, {**METADATA, "columns": NAMES})
    assert json.loads(json.dumps(early))["early"]["closed"] == 1
    plain = output_schema(pa.schema([("id", pa.int64())]), {}, raw_text=False)
    rows = rows.drop_columns(list(EARLY_COLUMNS))
    assert "early" not in write_part(BytesIO(), [rows], plain, METADATA)


def summary_of(*traces: dict[str, Any], **settings: Any) -> EarlySummary:
    parts = [{"early": early_counts(table(*traces), NAMES)}, {}]
    summary = EarlySummary.of_parts(parts, EarlyAnswer(**settings).floor)
    assert summary is not None
    return summary


def test_no_part_with_counts_has_no_summary() -> None:
    assert EarlySummary.of_parts([{}, {}]) is None


def test_lines_say_what_closing_saves_and_changes() -> None:
    group = [control(early=400 + i % 3) for i in range(80)]
    group += [control(agrees=False, early_correct=False)] * 3
    group += [control(agrees=False, correct=False)]
    lines = list(summary_of(*[closed()] * 100, *group).lines())
    assert lines == [
        "early            100 traces closed early; probes are 1.9% of all generated tokens",
        "saving     closing early saves 54% (95% interval: 54 to 54%) of a trace's tokens, after "
        "the cost of probes; measured on 84 control traces, which think to their end",
        "control           80 of 84 early answers equal the full one, 95.2% (95% interval: 88.4 "
        "to 98.1%)",
        "control           81 early and 83 full answers right, of 84: closing early makes 3 right "
        "ones wrong and 1 wrong ones right",
    ]


def test_few_compared_traces_are_too_few() -> None:
    few = summary_of(closed(), *[control(agrees=False)] * 19, min_agreement=0.9)
    assert list(few.lines())[1:] == [
        "control           19 rows with early answers to compare with the full one: too few to say "
        "what closing early saves and changes (20 are enough)"
    ]
    assert few.warning is None
    assert "saving" not in few.to_json()
    samples = [control(sample=i, agrees=i < 12) for i in range(32)]
    one = summary_of(*samples, min_agreement=0.9)
    assert (one.is_enough, one.warning) == (False, None), "samples of one row are one draw"


def test_low_agreement_is_told_in_capitals() -> None:
    low = [control(agrees=i < 15) for i in range(20)]
    assert summary_of(*low).warning is None
    assert summary_of(*low, min_agreement=0.75).warning is None
    told = summary_of(*low, min_agreement=0.9).warning
    assert told is not None
    assert told.startswith("LOW AGREEMENT: only 15 of 20 early answers of the control group equal")
    assert "(75.0%), below thinking.early_answer.min_agreement, 90.0%" in told
    assert told.endswith("other rows are still closed early (thinking.early_answer.below: warn)")
    told = summary_of(*low, min_agreement=0.9, below="stop").warning
    assert told is not None
    assert told.endswith("thinking is no longer closed early")
    told = summary_of(*low, min_agreement=0.9, control_share=1).warning
    assert told is not None
    assert told.endswith("all rows are in the group, so none was closed early")


def test_closing_that_costs_more_than_it_saves_says_so() -> None:
    group = [control(1000, 990 + i % 2) for i in range(30)]
    text = summary_of(closed(), *group).saving_text
    assert text.startswith("closing early COSTS: it saves -3% (95% interval: -3 to -3%)")


@pytest.mark.parametrize("samples", [1, 4])
def test_intervals_hold_the_true_values(samples: int) -> None:
    """About 95 in 100 do, also if the samples of a row are much alike."""
    rng, truth = random.Random(7), 0.0
    population = []
    for _ in range(20_000):
        length = round(math.exp(rng.gauss(7, 0.8))) + 100
        settles = rng.random() < 0.7
        early = round(length * rng.uniform(0.2, 0.9)) if settles else None
        agrees = rng.random() < 0.8 if settles else None
        population.append((length, early, agrees))
    net = sum((0 if early is None else length - early) - 15 for length, early, _ in population)
    truth = net / sum(length + 20 for length, _, _ in population)
    compared = [agrees for _, _, agrees in population if agrees is not None]
    share = sum(compared) / len(compared)
    hits = Counter[str]()
    for _ in range(200):
        drawn = [row for row in rng.choices(population, k=100) for _ in range(samples)]
        traces = [control(*row, sample=i % samples) for i, row in enumerate(drawn)]
        found = summary_of(*traces)
        hits["saving"] += found.saving.low <= truth <= found.saving.high
        hits["agreement"] += found.agreement.low <= share <= found.agreement.high
    assert 180 <= hits["saving"] <= 199
    assert 182 <= hits["agreement"] <= 199
