"""One row for each input row of a labeling run's traces: the label, and who says so; no I/O."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from jobs.label_section import LabelSection
from jobs.row_job import row_table
from pipeline.schema import SOURCE_ROW, plain_values

if TYPE_CHECKING:
    from jobs.label import LabelJob

MODEL, REVIEWER = "model", "reviewer"
LOW_AGREEMENT, DIFFERS = "low agreement", "differs from gold"


class ReviewedLabels(Protocol):
    """Labels that people have given in a review."""

    def get(self, source_row: str) -> str | None:
        """The key of the label of a row; None without one."""


@dataclass(frozen=True)
class Ballot:
    """What the samples of a row say.

    ``label``: the key of what they agree on; None if none has an answer. ``share``: of all samples
    that agree, 0 to 1. ``samples``: their number. ``trace``: the number of the row of the sample
    that stands for all, the first that says so, or says what is nearest to it.
    """

    label: str | None
    share: float
    samples: int
    trace: int


def ballots(section: LabelSection, traces: pa.Table, names: Mapping[str, str]) -> Iterator[Ballot]:
    """The ballot of each input row of ``traces``; ``names`` as `labeled` has it."""
    ours = {name: traces[names[name]].to_pylist() for name in ("sample", "parsed", "vote")}
    agreement = traces[names["agreement"]].to_pylist()
    firsts = [i for i, sample in enumerate(ours["sample"]) if sample == 0]
    for first, end in pairwise([*firsts, traces.num_rows]):
        answers, vote = ours["parsed"][first:end], ours["vote"][first]
        if vote is None:
            yield Ballot(None, 0.0, end - first, first)
        elif section.several:
            yield _by_label(section, answers, first)
        else:
            # Both are canonical JSON text. The column of shares has 32 bits.
            share = round(agreement[first] or 0.0, 6)
            trace = first + answers.index(vote)
            yield Ballot(section.label_of(vote), share, end - first, trace)


def _by_label(section: LabelSection, answers: Sequence[str | None], first: int) -> Ballot:
    """The labels that more than half of the ``answers`` have.

    The share is that of the label on which the fewest samples agree, whether it is given or not.
    """
    sets = {i: {*json.loads(text)["labels"]} for i, text in enumerate(answers) if text is not None}
    counts = Counter(label for labels in sets.values() for label in labels)
    given = {label for label, count in counts.items() if 2 * count > len(sets)}
    fewest = min(
        (count if label in given else len(sets) - count for label, count in counts.items()),
        default=len(sets),
    )
    nearest = min(sets, key=lambda i: len(sets[i] ^ given))
    share = round(fewest / len(answers), 6)
    return Ballot(section.key_of_set(given), share, len(answers), first + nearest)


def labeled(
    job: "LabelJob",
    traces: pa.Table,
    names: Mapping[str, str],
    sources: Sequence[str],
    reviewed: ReviewedLabels,
) -> pa.Table:
    """One row for each input row of ``traces``: its columns, then those that the job adds.

    ``names`` maps our columns to their names in ``traces``. ``sources``: the source row of
    each trace. ``think`` and ``state`` are those of the sample that stands for the row.
    """
    section = job.label
    rows = list(ballots(section, traces, names))
    speakers = pa.array([row.trace for row in rows], pa.int64())
    of_row = traces.take(speakers)
    states = of_row[names["state"]].to_pylist()
    gold: list[str | None] = [None] * len(rows)
    if section.gold_column is not None:
        gold = list(map(section.gold_of, plain_values(of_row[section.gold_column])))
    sources = [sources[row.trace] for row in rows]
    reviewers = [reviewed.get(source) for source in sources]
    values = [
        (
            *_said(section, row.label, reviewer), row.share, row.samples,
            None if reviewer is not None else _review(section, row, state, right),
        )
        for row, reviewer, state, right in zip(rows, reviewers, states, gold, strict=True)
    ]  # fmt: skip
    added = [list(column) for column in zip(*values, strict=True)] or [[] for _ in range(7)]
    if SOURCE_ROW not in of_row.column_names:
        of_row = of_row.append_column(SOURCE_ROW, pa.array(sources, pa.string()))
    return row_table(job, of_row, names, [*added, of_row[names["think"]], states])


def _said(section: LabelSection, model: str | None, reviewer: str | None) -> list[Any]:
    """The label, who says so, and what the model and the reviewer say."""
    label = model if reviewer is None else reviewer
    by = (MODEL if reviewer is None else REVIEWER) if label is not None else None
    cells = section.cell_of(label), section.cell_of(model), section.cell_of(reviewer)
    return [cells[0], by, *cells[1:]]


def _review(section: LabelSection, row: Ballot, state: str, gold: str | None) -> str | None:
    """Why a person should review a row; None if there is no reason."""
    if row.label is None:
        return state
    if row.share < section.review_below:
        return LOW_AGREEMENT
    return DIFFERS if gold is not None and row.label != gold else None
