"""Reviewed rows as examples for later prompts, and rows that are examples of this one's."""

import io
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.label_rows import REVIEWER
from pipeline.errors import InvalidPromptError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.examples import with_examples
from pipeline.prompts.messages import row_messages
from pipeline.schema import SOURCE_ROW, plain_rows
from pipeline.storage import Storage

if TYPE_CHECKING:
    from jobs.label import LabelJob

EXAMPLES = "examples.parquet"


def _turn(row: Mapping[str, Any], job: "LabelJob") -> str | None:
    """The user's turn that a row makes; None if it makes none."""
    run = job.run
    try:
        columns = PromptColumns(template=run.prompt.template)
        [message] = row_messages(row, columns, None, run.suffix_text)
    except InvalidPromptError:
        return None
    content: str | None = message["content"]
    return content


class Shown:
    """The examples that the model is shown: it can't be measured on them."""

    def __init__(self, job: "LabelJob") -> None:
        run, self._job = job.run, job
        self._turns = set[str | None]()
        if (shown := run.prompt.examples) is not None:
            columns = PromptColumns(template=run.prompt.template)
            found = with_examples(columns, shown.path, shown.answer_column, run.suffix_text)
            self._turns = {turn["content"] for turn in found.examples if turn["role"] == "user"}

    def among(self, rows: Iterable[Mapping[str, Any]]) -> list[bool]:
        """Whether each of ``rows`` is an example."""
        return [bool(self._turns) and _turn(row, self._job) in self._turns for row in rows]


class Examples:
    """The rows that people have labeled in a review, in the order of the output.

    The file has ``source_row``, the column of the text, and ``answer``: the whole right answer, as
    the model gives it (``label``, if the text's column is called ``answer``).
    """

    def __init__(self, job: "LabelJob") -> None:
        self._job, self._text = job, job.label.text_column
        self._answer_column = "label" if self._text == "answer" else "answer"
        self._rows = list[dict[str, Any]]()

    def add(self, table: pa.Table) -> None:
        """Take the reviewed rows of a labeled table; those without a text are none."""
        job = self._job
        by, reviewed = job.called("label_by"), job.called("reviewed_label")
        for row in plain_rows(table):
            if row[by] != REVIEWER or _turn(row, job) is None:
                continue
            answer = json.dumps(self._answer(row[reviewed]), ensure_ascii=False)
            example = {self._text: row[self._text], self._answer_column: answer}
            self._rows.append({SOURCE_ROW: str(row[SOURCE_ROW]), **example})

    def _answer(self, cell: Any) -> Mapping[str, Any] | Any:
        section = self._job.label
        if section.labels is None:
            return json.loads(cell)
        return {"labels" if section.several else "label": cell}

    def write(self) -> None:
        """Write the file, if a review is named."""
        if self._job.label.reviewed is None:
            return
        self._job.own_files().claim([EXAMPLES])
        names = (SOURCE_ROW, self._text, self._answer_column)
        columns = {name: pa.array([row[name] for row in self._rows]) for name in names}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        Storage(self._job.output.path).put(EXAMPLES, buffer.getvalue())
