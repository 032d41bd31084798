"""Reviewed rows as examples for later prompts: what the model is asked, and the right answer."""

import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.label_rows import REVIEWER
from pipeline.errors import InvalidPromptError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages
from pipeline.schema import SOURCE_ROW, plain_rows
from pipeline.storage import Storage

if TYPE_CHECKING:
    from jobs.label import LabelJob

EXAMPLES = "examples.parquet"
COLUMNS = pa.schema([(name, pa.string()) for name in (SOURCE_ROW, "prompt", "label")])


class Examples:
    """The rows that people have labeled in a review, in the order of the output."""

    def __init__(self, job: "LabelJob") -> None:
        run = job.run
        self._job, self._suffix = job, run.suffix_text
        self._columns = PromptColumns(template=run.prompt.template)
        self._rows = list[dict[str, str]]()

    def add(self, table: pa.Table) -> None:
        """Take the reviewed rows of a labeled table; those without a text are none."""
        job = self._job
        by, reviewed = job.called("label_by"), job.called("reviewed_label")
        for row in plain_rows(table):
            if row[by] != REVIEWER:
                continue
            try:
                [message] = row_messages(row, self._columns, None, self._suffix)
            except InvalidPromptError:
                continue
            answer = json.dumps(self._answer(row[reviewed]), ensure_ascii=False)
            source = str(row[SOURCE_ROW])
            self._rows.append({SOURCE_ROW: source, "prompt": message["content"], "label": answer})

    def _answer(self, cell: Any) -> Mapping[str, Any] | Any:
        section = self._job.label
        if section.labels is None:
            return json.loads(cell)
        return {"labels" if section.several else "label": cell}

    def write(self) -> None:
        """Write the file, if a review is named; its columns are ``COLUMNS``."""
        if self._job.label.reviewed is None:
            return
        self._job.own_files().claim([EXAMPLES])
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, COLUMNS), buffer)
        Storage(self._job.output.path).put(EXAMPLES, buffer.getvalue())
