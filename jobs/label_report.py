"""What labeling came to: counts over all rows, and the report; no I/O."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.agreement import MOST_SHOWN, agreement_lines
from jobs.label_metrics import by_label_lines, by_level_lines
from jobs.markdown import literal, table_lines
from jobs.sections import NONE
from pipeline.schema import plain_rows, plain_values

if TYPE_CHECKING:
    from jobs.label import LabelJob
    from jobs.label_examples import Shown

# Stands for texts of which somebody says that none of several labels applies.
NO_LABEL = "(no label applies)"
FROM_GOLD, FROM_REVIEW = "gold", "review"


@dataclass
class Counts:
    """Counts over all rows, for the report.

    ``pairs`` counts (label by people, label by the model, whether all samples agree), by where
    people's label is from. Labels are keys, as `jobs.label_section` has them.
    """

    labels: Counter[str] = field(default_factory=Counter)
    reviews: Counter[str] = field(default_factory=Counter)
    pairs: dict[str, Counter[tuple[str, str, bool]]] = field(
        default_factory=lambda: {FROM_GOLD: Counter(), FROM_REVIEW: Counter()}
    )
    rows: int = 0
    shown: int = 0
    example: dict[str, Any] | None = None

    def add(self, table: pa.Table, job: "LabelJob", shown: "Shown") -> None:
        """Count the rows of a labeled table.

        A reviewer's label replaces one of the gold column. Rows that the model is ``shown`` as
        examples are not compared.
        """
        section = job.label
        self.rows += table.num_rows

        def keys(name: str) -> list[str | None]:
            return list(map(section.key_of, table[job.called(name)].to_pylist()))

        for key in keys("label"):
            names = [NONE] if key is None else sorted(section.names_in(key))
            self.labels.update(names or [NO_LABEL])
        self.reviews.update(why for why in table[job.called("review")].to_pylist() if why)
        gold: list[str | None] = [None] * table.num_rows
        if section.gold_column is not None:
            gold = list(map(section.gold_of, plain_values(table[section.gold_column])))
        sure = (confidence == 1 for confidence in table[job.called("confidence")].to_pylist())
        model, reviewed = keys("model_label"), keys("reviewed_label")
        is_shown = shown.among(plain_rows(table))
        self.shown += sum(is_shown)
        rows = zip(gold, model, reviewed, sure, is_shown, strict=True)
        for right, said, reviewer, all_agree, was_shown in rows:
            if was_shown:
                continue
            if right is not None:
                self.pairs[FROM_GOLD][reviewer or right, said or NONE, all_agree] += 1
            if reviewer is not None:
                self.pairs[FROM_REVIEW][reviewer, said or NONE, all_agree] += 1
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
    if counts.shown:
        yield f"{counts.shown:,} rows are examples of the prompt, and not compared with people"
    yield from _review_lines(counts, job)
    yield from _gold_lines(counts, job)


def _review_lines(counts: Counts, job: "LabelJob") -> Iterator[str]:
    if job.label.reviewed is None:
        return
    pairs = counts.pairs[FROM_REVIEW]
    same = sum(rows for (right, said, _), rows in pairs.items() if right == said)
    total = sum(pairs.values())
    yield f"reviewed: {total:,} rows ({same:,} as the model said, {total - same:,} changed)"
    if pairs and not counts.pairs[FROM_GOLD]:
        yield (
            "\nAgainst reviewers. Rows are put up for review because they are doubtful, so this is "
            "not the accuracy of all rows:\n"
        )
        yield from _comparison_lines(pairs, job)


def _gold_lines(counts: Counts, job: "LabelJob") -> Iterator[str]:
    gold, pairs = literal(job.label.gold_column or ""), counts.pairs[FROM_GOLD]
    if pairs:
        yield ""
        yield from _comparison_lines(pairs, job)
        known = set(job.label.labels or ())
        others = {pair: job.label.names_in(pair[0]) - known for pair in pairs}
        unknown = sorted(set().union(*others.values()))
        if job.label.labels is not None and unknown:
            rows = sum(pairs[pair] for pair, names in others.items() if names)
            yield (
                f"\n{rows:,} rows have a label in {gold} that is none of "
                f"the labels, such as {literal(unknown[0])}"
            )
    elif job.label.gold_column is not None:
        yield f"\nno row has a label in {gold}"


def _comparison_lines(pairs: Counter[tuple[str, str, bool]], job: "LabelJob") -> Iterator[str]:
    """How well the model's labels agree with people's: as a whole, by label, and by level."""
    section = job.label
    if section.several:
        yield from by_label_lines(pairs)
    else:
        yield from agreement_lines(pairs)
    if section.paths:
        yield ""
        yield from by_level_lines(pairs, section.several)
