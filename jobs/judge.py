"""Judge answers by a rubric: a verdict or a score for each row, or which of two is better.

    qwq-batch judge configs/judge.yaml
    python -m jobs.judge configs/judge.yaml      # the same

The samples of a row vote. Below ``output.path``, ``judged`` has each input row with its judgement,
the judge's reason, the agreement of its samples, and the judge's think and state. Two answers are
compared in both orders: ``traces`` has the run with the first one first, ``traces-swapped`` the
other. ``review.parquet`` has the rows that a person should review. ``report.md`` is what is
printed; it compares with people's judgements if there are any.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from jobs.job import StageKind, outcome
from jobs.judge_answer import FORMAT
from jobs.judge_prompt import REVIEW, JudgeSection
from jobs.judge_report import Counts, report_lines
from jobs.judge_rows import ballots, judged
from jobs.row_job import RowJob, carry_out, whole_rows, write_rows
from pipeline import RunConfig
from pipeline.errors import IncompleteRunError
from pipeline.output.reader import FinishedPart, finished_parts
from pipeline.schema import OUR_COLUMNS, SAMPLED_FIELDS

SWAPPED_TRACES = "traces-swapped"
# Of the judge's traces: the input may be traces, with such columns of their own.
ONLY_BY_ROW = {field.name for field in SAMPLED_FIELDS}
RENAMED = {name: f"judge_{name}" for name in OUR_COLUMNS if name not in ONLY_BY_ROW}


class JudgeJob(RowJob):
    """A run that judges; with two answers, one in each order."""

    section_name: ClassVar[str] = "judge"
    folder: ClassVar[str] = "judged/"
    review: ClassVar[str] = REVIEW
    judge: JudgeSection

    @property
    def run(self) -> RunConfig:
        """The run whose samples vote."""
        return self._run(self.traces)

    @property
    def runs(self) -> list[RunConfig]:
        """The run, and with two answers the one with the other order."""
        return [self.run, *([self._run(self.swapped)] if self.compares else [])]

    @property
    def compares(self) -> bool:
        """Whether two answers are compared."""
        return self.judge.against_column is not None

    @property
    def swapped(self) -> str:
        """Where the traces of the other order are."""
        return self.below(SWAPPED_TRACES)

    def _run(self, traces: str) -> RunConfig:
        output: dict[str, Any] = {**self.output.model_dump(exclude_unset=True), "path": traces}
        return self.as_run(
            output={**output, "rename": {**RENAMED, **self.output.rename}},
            prompt={"template": self.judge.template(traces == self.swapped), "suffix": "json"},
            answer={"format": FORMAT, "json_schema": dict(self.judge.form.schema)},
        )


def write(job: JudgeJob) -> Counts:
    """Write ``judged`` and the review file from the traces, one part at a time."""
    counts = Counts()
    parts = {part.name: part for part in finished_parts(job.traces)}
    swapped = _swapped_parts(job, parts)

    def tables(name: str) -> Iterator[pa.Table]:
        if not job.compares:
            return (judged(job, rows, parts[name].names) for rows in _pieces(parts[name]))
        both = zip(_pieces(parts[name]), _pieces(swapped[name]), strict=True)
        return (
            judged(job, rows, parts[name].names, list(ballots(others, swapped[name].names, True)))
            for rows, others in both
        )

    write_rows(job, list(parts), tables, lambda table: counts.add(table, job))
    return counts


def _pieces(part: FinishedPart) -> Iterator[pa.Table]:
    return whole_rows(part.read(), part.names["sample"])


def _swapped_parts(job: JudgeJob, straight: Mapping[str, FinishedPart]) -> dict[str, FinishedPart]:
    """The parts with the other order, by name; raises `IncompleteRunError` if some are missing."""
    if not job.compares:
        return {}
    swapped = {part.name: part for part in finished_parts(job.swapped)}
    if missing := swapped.keys() ^ straight.keys():
        raise IncompleteRunError(
            f"only one order of the answers of {min(missing)} is judged, because the input has "
            "grown meanwhile; run the same command again"
        )
    return swapped


def judge(job: JudgeJob, retry: Sequence[str] = ()) -> int:
    """Judge the remaining rows, write all files anew, and print the report; the exit code."""
    return carry_out(job, retry, lambda job: report_lines(write(job), job))


STAGE = StageKind(JudgeJob, judge, JudgeJob.folder, outcome)

if __name__ == "__main__":
    from pipeline.cli import main

    main(["judge", *sys.argv[1:]])
