"""Jobs that make one row of the samples of each input row: their checks, columns and files.

Below ``output.path``, a folder has a file for each file of traces, and a row for each input row.
``review.parquet`` has the rows that a person should review, ``report.md`` is what is printed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import model_validator

from jobs.job import Job, generate
from jobs.own_files import OwnFiles
from jobs.sections import RowSection
from pipeline import console
from pipeline.errors import ConfigError, InputError
from pipeline.execution.prepare import refuse_output_in_input
from pipeline.execution.run_input import find_input
from pipeline.input.shards import Input
from pipeline.monitor.limits import Limits
from pipeline.printing import print_text
from pipeline.schema import conform
from pipeline.storage import Storage

REVIEW, REPORT = "review.parquet", "report.md"
# Input rows that are made at a time, with all their samples in memory.
ROWS = 256
# The added columns that are the run's own, of the sample that stands for the row.
OF_THE_RUN = ("think", "state")
# What such a job decides itself, by section.
SET_BY_JOB = {
    "prompt": {"template", "suffix"},
    "answer": {"format", "json_schema", "reference_column"},
    "input": {"prompt_column", "messages_column", "tools_column"},
}


class RowJob(Job):
    """A run whose samples make one row of each input row.

    ``section_name``: of the job's own section. ``folder``: that of the rows, with a slash.
    ``review``: the column with the reason for a review. ``before``: as `OwnFiles` has it.
    """

    section_name: ClassVar[str]
    folder: ClassVar[str]
    review: ClassVar[str]
    before: ClassVar[str] = r"(?!)"

    @model_validator(mode="after")
    def _leaves_the_prompt_to_the_job(self) -> Self:
        for name, keys in SET_BY_JOB.items():
            section = getattr(self, name)
            for key in sorted(keys & section.model_fields_set):
                raise ValueError(
                    f"{name}.{key} is set by the job, from its section {self.section_name}; leave "
                    "it out"
                )
        if self.input.sampling_column is not None:
            raise ValueError("input.sampling_column: the rows of this job share their settings")
        return self

    @property
    def section(self) -> RowSection:
        """The job's own section."""
        section: RowSection = getattr(self, self.section_name)
        return section

    def check(self) -> None:
        """Raise `InputError` for missing columns and for names that are taken."""
        found, section = self.input_found, self.section_name
        schema = found.schema
        for key, name in self.section.columns.items():
            if name is not None and found.carried.get(name, name) not in schema.names:
                raise InputError(
                    f"{section}.{key} is {name}, but the input has only the columns "
                    f"{', '.join(schema.names)}"
                )
        names = [column.name for column in self.added]
        taken = {column.lower(): column for column in schema.names}
        for ours, name in zip(self.section.added, names, strict=True):
            if name.lower() in taken:
                setting = f"{'output' if ours in OF_THE_RUN else section}.rename.{ours}"
                raise InputError(
                    f"the input has a column {taken[name.lower()]}, which the job adds too; give "
                    f"ours another name with --set {setting}=NAME"
                )
            if names.count(name) > 1:
                raise ConfigError(f"two columns would be named {name}; see {section}.rename")

    @property
    def input_found(self) -> Input:
        """The input's shards and columns."""
        return find_input(self.run)

    @property
    def as_carried(self) -> Self:
        """The same, with the names that the section's columns have in the traces."""
        carried = self.input_found.carried
        named = {key: name for key, name in self.section.columns.items() if name is not None}
        names = {key: carried.get(name, name) for key, name in named.items()}
        section = getattr(self, self.section_name).model_copy(update=names)
        return self.model_copy(update={self.section_name: section})

    @property
    def schema(self) -> pa.Schema:
        """The columns of a row."""
        return pa.schema([*self.input_found.schema, *self.added])

    @property
    def added(self) -> list[pa.Field]:
        """The columns that a row gets."""
        names = {**self.run.output.rename, **self.section.rename}
        return [pa.field(names.get(name, name), of) for name, of in self.section.added.items()]

    def called(self, name: str) -> str:
        """The name of a column of ours in this job."""
        return self.section.rename.get(name, name)

    def own_files(self) -> OwnFiles:
        """What the job writes beside its traces."""
        places = (self.folder, REVIEW, REPORT)
        return OwnFiles(self.output.path, self.traces, places, self.before)


AnyRowJob = TypeVar("AnyRowJob", bound=RowJob)


def whole_rows(traces: pa.Table, sample: str) -> Iterator[pa.Table]:
    """``traces`` in slices of `ROWS` whole rows; ``sample`` is the name of that column."""
    firsts = np.flatnonzero(traces[sample].to_numpy() == 0)
    for start, end in pairwise([*firsts[::ROWS].tolist(), traces.num_rows]):
        yield traces.slice(start, end - start)


def row_table(
    job: RowJob, rows: pa.Table, names: Mapping[str, str], added: Sequence[Any]
) -> pa.Table:
    """The input's columns of ``rows`` (a trace of each row), then the values of `RowJob.added`.

    ``names`` maps the run's columns to their names in ``rows``.
    """
    result = rows.select([name for name in rows.column_names if name not in names.values()])
    for column, values in zip(job.added, added, strict=True):
        is_column = isinstance(values, pa.ChunkedArray)
        result = result.append_column(
            column, values if is_column else pa.array(values, column.type)
        )
    return result


def write_rows(
    job: RowJob,
    parts: Sequence[str],
    tables: Callable[[str], Iterator[pa.Table]],
    count: Callable[[pa.Table], None],
) -> None:
    """Write the folder of rows and the review file, one part at a time.

    ``tables``: the rows of a part. ``count`` gets each table that is written.
    """
    store, schema, own = Storage(job.output.path), job.schema, job.own_files()
    written = {REVIEW, REPORT, *(f"{job.folder}{part}" for part in parts)}
    own.claim(written)
    with (
        store.writing(REVIEW) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as review,
    ):
        for part in parts:
            with (
                store.writing(f"{job.folder}{part}") as rows_file,
                pq.ParquetWriter(rows_file, schema, compression="zstd") as rows,
            ):
                for made in tables(part):
                    table = conform(made, schema)
                    count(table)
                    rows.write_table(table)
                    review.write_table(table.filter(pc.is_valid(table[job.called(job.review)])))
    own.remove_all_but(written)


def carry_out(
    job: AnyRowJob, retry: Sequence[str], write: Callable[[AnyRowJob], Iterator[str]]
) -> int:
    """Generate what remains, write all files anew, and print the report; the exit code.

    ``write`` writes the rows of the job `as_carried`, and returns the lines of the report.
    """
    job.check_output()
    refuse_output_in_input(job, Storage(job.output.path))
    own = job.own_files()
    own.refuse_others()
    job.check()
    console.warn_about(job.run)
    own.claim(())  # from now on, what somebody puts there is not taken for an earlier version's
    limits = Limits(job.run)
    summaries = [(generate(run, retry, limits), run) for run in job.runs]
    text = "\n".join(write(job.as_carried))
    Storage(job.output.path).put(REPORT, f"{text}\n".encode())
    folders = [f"{run.output.path.rpartition('/')[2]}/" for run in job.runs]
    files = ", ".join([job.folder, REVIEW, REPORT, *folders])
    print_text(f"\n{text}\n\nin {job.output.path}: {files}")
    for summary, run in summaries:
        console.refuse_all_failed(summary, run)
    return 0
