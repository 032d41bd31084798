"""Label a dataset of texts by a guideline: a label for each row, with a confidence.

    qwq-batch label configs/label.yaml
    python -m jobs.label configs/label.yaml      # the same

The samples of a row vote. Below ``output.path``, ``labels`` has each input row with its label,
confidence (the share of its samples that agree), think and state. ``review.parquet`` has the rows
that a person should review; labels that people give come back with ``label.reviewed``, and win.
``report.md`` is what is printed; it compares with people's labels if there are any.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.job import StageKind, outcome
from jobs.label_examples import EXAMPLES, Examples, Shown
from jobs.label_export import PLACES, export_review
from jobs.label_report import Counts, report_lines
from jobs.label_reviewed import Reviewed
from jobs.label_rows import labeled
from jobs.label_section import LabelSection
from jobs.own_files import OwnFiles
from jobs.row_job import (
    REPORT,
    REVIEW,
    RowJob,
    carry_out,
    whole_rows,
    write_rows,
)
from pipeline import RunConfig
from pipeline.errors import OutputError
from pipeline.input.source_rows import SourceRows
from pipeline.output.reader import FinishedPart, finished_parts
from pipeline.schema import SOURCE_ROW, plain_values
from pipeline.storage import Storage

LABELS = "labels/"


class LabelJob(RowJob):
    """A run that labels."""

    section_name: ClassVar[str] = "label"
    folder: ClassVar[str] = LABELS
    review: ClassVar[str] = "review"
    before: ClassVar[str] = rf"{LABELS}.*\.\d+\.parquet|{REVIEW}|{REPORT}"
    label: LabelSection

    @property
    def run(self) -> RunConfig:
        """The run whose samples vote."""
        name = self.label.answer_format
        return self.as_run(
            prompt={"template": self.label.template, "suffix": name},
            answer={"format": name, "json_schema": self.label.answer_schema},
        )

    @property
    def schema(self) -> pa.Schema:
        """The columns of a row: those of the input, ``source_row``, and what is added."""
        schema = super().schema
        if SOURCE_ROW in schema.names:
            return schema
        at = len(schema) - len(self.added)
        return schema.insert(at, pa.field(SOURCE_ROW, pa.string()))

    def check(self) -> None:
        """Also raise `InputError` for reviewed rows that can't be right."""
        super().check()
        Reviewed(self)

    def check_output(self) -> None:
        """Also raise `OutputError` if somebody has written labels into the review file."""
        super().check_output()
        store, column = Storage(self.output.path), self.called("reviewed_label")
        if not store.exists(REVIEW):
            return
        with store.open(REVIEW) as opened:
            file = pq.ParquetFile(opened)
            is_filled = column in file.schema_arrow.names and any(
                batch[column].null_count < batch.num_rows
                for batch in file.iter_batches(columns=[column])
            )
        if is_filled:
            raise OutputError(
                f"{store.path(REVIEW)} has labels in {column}, and this job would replace the "
                "file; move it out of output.path and name it in label.reviewed"
            )

    def own_files(self) -> OwnFiles:
        """What the job writes beside its traces."""
        places = (self.folder, REVIEW, REPORT, EXAMPLES, *PLACES)
        return OwnFiles(self.output.path, self.traces, places, self.before)


def source_rows(part: FinishedPart, traces: pa.Table) -> list[str]:
    """The source row of each of ``traces``, all those of ``part``, without the sample."""
    with part.open() as file:
        samples = SourceRows(file, part.name).column(traces, 0).to_pylist()
    return [name.rpartition(":")[0] for name in samples]


def _rows_of(job: LabelJob, part: FinishedPart) -> Iterator[tuple[str, Any]]:
    """Source row and text of each input row of ``part``."""
    columns = [part.names["sample"], job.label.text_column]
    if SOURCE_ROW in part.columns:
        columns.append(SOURCE_ROW)
    traces = part.read(list(dict.fromkeys(columns)))
    samples = traces[part.names["sample"]].to_pylist()
    texts = plain_values(traces[job.label.text_column])
    for sample, source, text in zip(samples, source_rows(part, traces), texts, strict=True):
        if sample == 0:
            yield source, text


def write(job: LabelJob) -> Counts:
    """Write ``labels`` and the review file from the traces, one part at a time."""
    counts, examples, shown = Counts(), Examples(job), Shown(job)
    parts = {part.name: part for part in finished_parts(job.traces)}
    reviewed = Reviewed(job)
    if len(reviewed):
        reviewed.check_rows(row for part in parts.values() for row in _rows_of(job, part))

    def tables(name: str) -> Iterator[pa.Table]:
        part, start = parts[name], 0
        traces = part.read()
        sources = source_rows(part, traces)
        for piece in whole_rows(traces, part.names["sample"]):
            end = start + piece.num_rows
            yield labeled(job, piece, part.names, sources[start:end], reviewed)
            start = end

    def count(table: pa.Table) -> None:
        counts.add(table, job, shown)
        examples.add(table)

    write_rows(job, list(parts), tables, count)
    export_review(job)
    examples.write()
    return counts


def label(job: LabelJob, retry: Sequence[str] = ()) -> int:
    """Label the remaining rows, write all files anew, and print the report; the exit code."""
    return carry_out(job, retry, lambda job: report_lines(write(job), job))


STAGE = StageKind(LabelJob, label, LABELS, outcome)

if __name__ == "__main__":
    from pipeline.cli import main

    main(["label", *sys.argv[1:]])
