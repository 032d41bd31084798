"""One row for each input row of a judge's traces: what its samples agree on, and why; no I/O."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.judge_answer import reason_of
from jobs.judge_prompt import SCORE, TIE, A, B, JudgeSection
from jobs.row_job import row_table
from pipeline.answers.references import is_nothing
from pipeline.schema import plain_values

if TYPE_CHECKING:
    from jobs.judge import JudgeJob

NO_ANSWER, ORDERS_DIFFER = "no answer", "orders differ"
SWAPPED = {A: B, B: A}


@dataclass(frozen=True)
class Ballot:
    """The votes of one row's samples, in one order of the answers.

    ``value``: what they agree on; None without a vote. ``votes``: the value of each sample.
    ``state``, ``answer``: of the sample that stands for the row, the first with the value, else
    the first; ``trace``: the number of that sample's row among the traces.
    """

    value: str | None
    votes: Sequence[str | None]
    state: str
    answer: str | None
    trace: int


@dataclass(frozen=True)
class Judged:
    """One row's judgement. With two answers, ``straight`` has A first and ``swapped`` B."""

    straight: Ballot
    swapped: Ballot | None
    has_answer: bool

    @property
    def ballots(self) -> list[Ballot]:
        """Those of both orders, or the only one."""
        return [self.straight, *([self.swapped] if self.swapped is not None else [])]

    @property
    def votes(self) -> list[str | None]:
        """The value of each sample, of both orders."""
        return [vote for ballot in self.ballots for vote in ballot.votes]

    @property
    def is_complete(self) -> bool:
        """Whether each order has a value."""
        return all(ballot.value is not None for ballot in self.ballots)

    @property
    def is_consistent(self) -> bool:
        """Whether both orders have the same value."""
        return len({ballot.value for ballot in self.ballots}) == 1

    @property
    def value(self) -> str | None:
        """What the samples agree on; a tie if the orders differ; None if one has no value."""
        if not self.is_complete:
            return None
        return self.straight.value if self.is_consistent else TIE

    @property
    def agreement(self) -> float:
        """The share of all samples with the value, 0 to 1."""
        return self.votes.count(self.value) / len(self.votes) if self.is_complete else 0.0

    @property
    def reason(self) -> str | None:
        """The judge's, with A first; or why there is none."""
        if not self.has_answer:
            return NO_ANSWER
        if not self.is_complete:
            return None
        if not self.is_consistent:
            return ORDERS_DIFFER
        assert self.straight.answer is not None  # its value was read from it
        return reason_of(self.straight.answer)

    @property
    def state(self) -> str:
        """How the sample ended that stands for the row; without a value the one to blame."""
        without = (ballot.state for ballot in self.ballots if ballot.value is None)
        return next(without, self.straight.state)

    def review(self, section: JudgeSection, gold: str | None) -> str | None:
        """Why a person should review the row; None if there is no reason."""
        if not self.has_answer:
            return None
        if not self.is_complete:
            return self.state
        if not self.is_consistent:
            return ORDERS_DIFFER
        if round(self.agreement, 6) < section.review_below:
            return "low agreement"
        return "differs from gold" if gold is not None and gold != self.value else None

    def columns(self, kind: str) -> list[Any]:
        """The values of the columns of its ``kind``, a key of `KINDS`."""
        if self.swapped is not None:
            both = [self.straight.value, self.swapped.value]
            return [self.value, self.is_consistent if self.is_complete else None, *both]
        if kind != SCORE:
            return [self.value]
        if self.value is None:
            return [None, None]
        scores = [int(vote) for vote in self.votes if vote is not None]
        return [int(self.value), max(scores) - min(scores)]


def ballots(traces: pa.Table, names: Mapping[str, str], swapped: bool = False) -> Iterator[Ballot]:
    """The ballot of each input row of ``traces``.

    ``names`` maps the run's columns to their names in ``traces``. ``swapped``: B came first, so
    what the samples call A is B.
    """
    ours = {
        name: traces[names[name]].to_pylist()
        for name in ("sample", "parsed", "vote", "state", "answer")
    }
    of = SWAPPED if swapped else {}
    firsts = [i for i, sample in enumerate(ours["sample"]) if sample == 0]
    for first, end in pairwise([*firsts, traces.num_rows]):
        vote, votes = ours["vote"][first], ours["parsed"][first:end]
        trace = first if vote is None else first + votes.index(vote)
        yield Ballot(
            of.get(vote, vote), [of.get(v, v) for v in votes],
            ours["state"][trace], ours["answer"][trace], trace,
        )  # fmt: skip


def _is_blank(answer: object) -> bool:
    return is_nothing(answer) or (isinstance(answer, str) and not answer.strip())


def judged(
    job: "JudgeJob",
    traces: pa.Table,
    names: Mapping[str, str],
    swapped: Sequence[Ballot] | None = None,
) -> pa.Table:
    """One row for each input row of ``traces``: its columns, then those that the job adds.

    ``names`` as `ballots` has it. ``swapped``: the ballots of the same rows with B first.
    """
    section, kind = job.judge, job.judge.value_name
    straight = list(ballots(traces, names))
    traces = traces.take(pa.array([ballot.trace for ballot in straight], pa.int64()))
    answers = [plain_values(traces[column]) for column in section.answer_columns]
    has_answer = [not any(map(_is_blank, row)) for row in zip(*answers, strict=True)]
    pairs = swapped if swapped is not None else [None] * len(straight)
    rows = [Judged(*row) for row in zip(straight, pairs, has_answer, strict=True)]
    gold: list[str | None] = [None] * len(rows)
    if section.gold_column is not None:
        gold = list(map(section.known_gold, plain_values(traces[section.gold_column])))
    values = [
        (
            *row.columns(kind), row.reason, round(row.agreement, 6), len(row.votes),
            row.review(section, right), row.state,
        )
        for row, right in zip(rows, gold, strict=True)
    ]  # fmt: skip
    columns = [list(column) for column in zip(*values, strict=True)]
    *added, states = columns or [[] for _ in job.added[1:]]
    return row_table(job, traces, names, [*added, traces[names["think"]], states])
