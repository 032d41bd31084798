"""Votes on the answers of a part, and counts of what was compared with references; no I/O."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formats import answer_format
from pipeline.answers.json_schema import form_of
from pipeline.answers.references import REFERENCES, cells
from pipeline.schema import ROW_COLUMN


class AnswerCounts:
    """Adds votes to the tables of a part, and counts its answers. ``metadata``: of its footer.

    ``counts``: of traces, those that are ``right`` and ``wrong``, those ``without`` a reference,
    those with an ``unreadable`` one, and those whose comparison was ``given_up``; and
    ``votes_given_up``, answers that could not be compared in a vote.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        settings: Mapping[str, Any] = metadata["settings"]
        self._names: Mapping[str, str] = metadata["columns"]
        self._format = format_of(settings)
        self._column: str | None = settings.get("answer.reference_column")
        self._kind: str = settings.get(REFERENCES, "")
        self.counts: Counter[str] = Counter()

    def with_votes(self, table: pa.Table) -> pa.Table:
        """``table``, which holds whole rows, with the vote and agreement of each row's samples."""
        names = self._names
        if not self._format.is_parsed or not table.num_rows:
            return table
        rows, parsed = table[ROW_COLUMN].to_pylist(), table[names["parsed"]].to_pylist()
        answers_of: dict[int, list[str | None]] = {}
        for row, answer in zip(rows, parsed, strict=True):
            answers_of.setdefault(row, []).append(answer)
        votes = {row: self._format.tally(values) for row, values in answers_of.items()}
        self.counts["votes_given_up"] += sum(vote.given_up for vote in votes.values())
        columns = zip(*((votes[row].winner, votes[row].share) for row in rows), strict=True)
        for name, values in zip(("vote", "agreement"), columns, strict=True):
            index = table.column_names.index(names[name])
            field = table.schema.field(index)
            table = table.set_column(index, field, pa.array(values, field.type))
        return table

    def add(self, table: pa.Table) -> None:
        """Count the verdicts on the traces of ``table``, if there are references."""
        if self._column is not None and self._column in table.column_names:
            verdicts = table[self._names["correct"]].to_pylist()
            self.counts.update(self._outcomes(verdicts, cells(table[self._column])))

    def _outcomes(self, verdicts: list[bool | None], references: list[Any]) -> Iterator[str]:
        for verdict, reference in zip(verdicts, references, strict=True):
            if verdict is not None:
                yield "right" if verdict else "wrong"
            else:
                yield why_not_compared(self._format, reference, self._kind)


def why_not_compared(answers: AnswerFormat, reference: object, kind: str) -> str:
    """Why there is no verdict on a trace: ``without``, ``unreadable`` or ``given_up``."""
    if answers.is_missing(reference):
        return "without"
    is_read = answers.read_reference(reference, kind) is not None
    return "given_up" if is_read else "unreadable"


def not_compared_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """What was not compared, a line for each reason; nothing if all was."""
    reasons = {
        "without": "traces without a reference",
        "unreadable": "traces with a reference that can't be read",
        "given_up": "traces with a comparison that took too long and was given up",
        "votes_given_up": "answers that took too long to compare in a vote: each counts alone",
    }
    for reason, text in reasons.items():
        if counts.get(reason):
            yield f"{counts[reason]:>9,} {text}"


def format_of(settings: Mapping[str, Any]) -> AnswerFormat:
    """The answer format of a run, by its settings."""
    schema = settings.get("answer.json_schema")
    form = None if schema is None else form_of(json.loads(schema))
    return answer_format(settings.get("answer.format", "text"), form)
