"""What judging came to: counts over all rows, and the report; no I/O."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median_low
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.agreement import agreement_lines
from jobs.judge_prompt import (
    A_FIRST,
    AGREEMENT,
    B_FIRST,
    BETTER,
    REASON,
    REVIEW,
    SCORE,
    SPREAD,
    A,
    B,
    JudgeSection,
)
from jobs.judge_rows import NO_ANSWER
from jobs.markdown import literal, table_lines
from jobs.sections import NONE
from pipeline.schema import plain_values

if TYPE_CHECKING:
    from jobs.judge import JudgeJob

CONFIDENCE = 0.95


@dataclass
class Counts:
    """Counts over all rows, for the report.

    ``unanswered``: rows without an answer, which are not judged. ``pairs`` counts (judgement by
    people, by the model, whether all samples agree); ``unknown``, what else people's column has.
    ``orders`` counts (better with A first, better with B first). ``spread``: of scores, added up.
    """

    values: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    orders: Counter[tuple[str, str]] = field(default_factory=Counter)
    rows: int = 0
    unanswered: int = 0
    spread: int = 0

    def add(self, table: pa.Table, job: "JudgeJob") -> None:
        """Count the rows of a judged table."""

        def column(name: str) -> list[Any]:
            values: list[Any] = table[job.called(name)].to_pylist()
            return values

        section, kind = job.judge, job.judge.value_name
        values = [NONE if value is None else str(value) for value in column(kind)]
        unanswered = [
            value == NONE and reason == NO_ANSWER
            for value, reason in zip(values, column(REASON), strict=True)
        ]
        self.rows += table.num_rows
        self.unanswered += sum(unanswered)
        self.values.update(values)
        self.reviews.update(why for why in column(REVIEW) if why)
        if kind == SCORE:
            self.spread += sum(filter(None, column(SPREAD)))
        if kind == BETTER:
            both = zip(column(A_FIRST), column(B_FIRST), strict=True)
            self.orders.update(pair for pair in both if None not in pair)
        if section.gold_column is not None:
            sure = (agreement == 1 for agreement in column(AGREEMENT))
            cells = plain_values(table[section.gold_column])
            for cell, value, agree, left_out in zip(cells, values, sure, unanswered, strict=True):
                if not left_out:
                    self._compare(section, cell, value, agree)

    def _compare(self, section: JudgeSection, cell: Any, value: str, all_agree: bool) -> None:
        gold = section.gold_of(cell)
        if gold in section.values:
            self.pairs[gold, value, all_agree] += 1
        elif gold is not None:
            self.unknown[gold] += 1


def report_lines(counts: Counts, job: "JudgeJob") -> Iterator[str]:
    """The report, as Markdown."""
    section, kind = job.judge, job.judge.value_name
    yield f"# Judgements of {counts.rows:,} rows\n"
    names = [name for name in (*section.values, NONE) if counts.values[name]]
    shares = [
        [literal(name), f"{counts.values[name]:,}", f"{counts.values[name] / counts.rows:.1%}"]
        for name in names
    ]
    yield from table_lines([kind, "rows", "share"], shares)
    if kind == SCORE:
        yield from _score_lines(counts)
    if kind == BETTER:
        yield from _order_lines(counts)
    if counts.unanswered:
        yield f"\nnot judged: {counts.unanswered:,} rows without an answer"
    reviews = ", ".join(f"{rows:,} {why}" for why, rows in counts.reviews.most_common())
    yield f"\nto review: {sum(counts.reviews.values()):,} rows ({reviews or 'none'})"
    if section.gold_column is not None:
        yield from _gold_lines(counts, section)


def _score_lines(counts: Counts) -> Iterator[str]:
    scores = [int(name) for name in counts.values.elements() if name != NONE]
    if scores:
        yield (
            f"\nmean {sum(scores) / len(scores):.2f}, median {median_low(scores)}; the samples of "
            f"a row lie {counts.spread / len(scores):.2f} apart on average"
        )


def _order_lines(counts: Counts) -> Iterator[str]:
    """How often both orders agree, and which place the judge prefers."""
    rows, orders = counts.orders.total(), counts.orders
    if not rows:
        return
    same = sum(count for (one, other), count in orders.items() if one == other)
    with_tie = rows - same - orders[A, B] - orders[B, A]
    yield (
        f"\nboth orders agree in {same:,} of {rows:,} rows ({same / rows:.1%}); the others: "
        f"{orders[A, B]:,} prefer the first place, {orders[B, A]:,} the second, {with_tie:,} "
        "have a tie in one order"
    )
    first = sum(count * ((one == A) + (other == B)) for (one, other), count in orders.items())
    second = sum(count * ((one == B) + (other == A)) for (one, other), count in orders.items())
    if first + second:
        low, high = wilson(first, first + second)
        yield (
            f"\nposition: {first / (first + second):.1%} of {first + second:,} judgements that are "
            f"no tie prefer the first place ({CONFIDENCE:.0%} interval {low:.1%} to {high:.1%}; "
            "50 % without bias)"
        )


def wilson(count: int, of: int) -> tuple[float, float]:
    """The Wilson interval of a share."""
    from scipy.stats import binomtest

    interval = binomtest(count, of).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def _gold_lines(counts: Counts, section: JudgeSection) -> Iterator[str]:
    gold = literal(section.gold_column or "")
    if counts.pairs:
        yield ""
        yield from agreement_lines(counts.pairs, section.values if section.scores else ())
    else:
        yield f"\nno row that was judged has a judgement in {gold}"
    if counts.unknown:
        yield (
            f"\nnot compared: {counts.unknown.total():,} rows whose {gold} is none of the "
            f"judgements, such as {literal(min(counts.unknown))}"
        )
