"""What labeling came to: counts over all rows, and the report; no I/O."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.agreement import MOST_SHOWN, agreement_lines
from jobs.markdown import literal, table_lines
from jobs.sections import NONE
from pipeline.schema import plain_rows, plain_values

if TYPE_CHECKING:
    from jobs.label import LabelJob


@dataclass
class Counts:
    """Counts over all rows, for the report.

    ``pairs`` counts (label by people, label by the model, whether all samples agree).
    """

    labels: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    pairs: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    rows: int = 0
    example: dict[str, Any] | None = None

    def add(self, table: pa.Table, job: "LabelJob") -> None:
        """Count the rows of a labeled table."""
        section = job.label
        self.rows += table.num_rows
        labels = table[job.called("label")].to_pylist()
        self.labels.update(name or NONE for name in labels)
        self.reviews.update(why for why in table[job.called("review")].to_pylist() if why)
        if section.gold_column is not None:
            gold = map(section.gold_of, plain_values(table[section.gold_column]))
            sure = (confidence == 1 for confidence in table[job.called("confidence")].to_pylist())
            self.pairs.update(
                (right, predicted or NONE, all_agree)
                for right, predicted, all_agree in zip(gold, labels, sure, strict=True)
                if right is not None
            )
        if self.example is None and table.num_rows:
            self.example = plain_rows(table.slice(0, 1))[0]


def report_lines(counts: Counts, job: "LabelJob") -> Iterator[str]:
    """The report, as Markdown."""
    yield f"# Labels of {counts.rows:,} rows\n"
    shares = [
        [literal(label), f"{rows:,}", f"{rows / counts.rows:.1%}"]
        for label, rows in counts.labels.most_common(MOST_SHOWN)
    ]
    if len(counts.labels) > MOST_SHOWN:
        shares.append([f"{len(counts.labels) - MOST_SHOWN:,} others", "", ""])
    yield from table_lines(["label", "rows", "share"], shares)
    reviews = ", ".join(f"{rows:,} {why}" for why, rows in counts.reviews.most_common())
    yield f"\nto review: {sum(counts.reviews.values()):,} rows ({reviews or 'none'})"
    gold = literal(job.label.gold_column or "")
    if counts.pairs:
        yield ""
        yield from agreement_lines(counts.pairs)
        unknown = {right for right, *_ in counts.pairs} - set(job.label.labels or ())
        if job.label.labels is not None and unknown:
            rows = sum(rows for (right, *_), rows in counts.pairs.items() if right in unknown)
            yield (
                f"\n{rows:,} rows have a label in {gold} that is none of "
                f"the labels, such as {literal(min(unknown))}"
            )
    elif job.label.gold_column is not None:
        yield f"\nno row has a label in {gold}"
