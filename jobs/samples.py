"""The samples of a run, written again with what was decided about each.

Every sample is written again, part by part, with these additional columns:

* ``sample_id``: part, row in the part (from 0) and sample, such as ``seeds.00000.00000:12:1``;
* ``accepted``, and ``rejected``: the first of `jobs.accept.REASONS` that applies, null for an
  accepted one;
* ``near_duplicate_of``: the ``sample_id`` of the accepted sample that it repeats, if any;
* ``passed``: whether its answer is right by the reference and the verifier, null if undecided;
* ``pass_rate``: the share of its prompt's decided samples that passed; null with `sampling.agree`;
* ``contaminated_by``: file and row of the benchmark question in its prompt;
* ``verifier_error``: what the verifier raised.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.accept import (
    DUPLICATE,
    JUDGED_COLUMNS,
    AcceptanceRules,
    Findings,
    SampleCounts,
    is_complete,
    pass_rate,
    passed,
    rejection,
    selection,
)
from jobs.contamination import Benchmarks, prompt_text
from jobs.judgements import Judgements
from jobs.near_duplicates import NearDuplicates
from jobs.own_files import OwnFiles
from jobs.verifiers import Verify, verdict
from pipeline.errors import InputError
from pipeline.execution.prepare import PreparedRun
from pipeline.output.reader import FinishedPart, finished_parts
from pipeline.planning import PARQUET
from pipeline.prompts.messages import row_messages
from pipeline.prompts.render import TableRow
from pipeline.schema import row_numbers
from pipeline.storage import Storage

FOLDER = "samples"
FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("accepted", pa.bool_()),
    pa.field("rejected", pa.string()),
    pa.field("near_duplicate_of", pa.string()),
    pa.field("passed", pa.bool_()),
    pa.field("pass_rate", pa.float64()),
    pa.field("contaminated_by", pa.string()),
    pa.field("verifier_error", pa.string()),
)
ROW_GROUP_ROWS = 1024


@dataclass(frozen=True)
class Checks:
    """What decides about samples: rules, and what is looked up or called; None: no such check."""

    rules: AcceptanceRules
    benchmarks: Benchmarks | None = None
    verify: Verify | None = None
    judgements: Judgements | None = None


class Samples:
    """The samples of ``run`` in the folder `FOLDER`: a file for each part, with columns `FIELDS`.

    ``own``: the files of the job. Raises `InputError` if the input has a column of such a name.
    """

    def __init__(self, run: PreparedRun, own: OwnFiles, checks: Checks) -> None:
        if taken := [field.name for field in FIELDS if field.name in run.traces.names]:
            raise InputError(
                f"the input has a column {', '.join(taken)}, a name that this job uses; rename it"
            )
        self.store, self._own = Storage(f"{own.output}/{FOLDER}"), own
        self.parts, self.counts = list[str](), SampleCounts()
        self.names = run.names
        self.checks, self._run = checks, run
        self._answer_format = run.config.answer.load_format()
        threshold = checks.rules.near_duplicate
        self._near_duplicates = None if threshold is None else NearDuplicates(threshold)

    def add_new(self) -> None:
        """Write the parts finished since the last call."""
        parts = list(finished_parts(self._run.config.output.path, skip=self.parts))
        self._own.claim(f"{FOLDER}/{part.name}" for part in parts)
        for part in parts:
            sink = BytesIO()
            pq.write_table(
                self._decided(part, part.read()), sink, compression="zstd",
                row_group_size=ROW_GROUP_ROWS,
            )  # fmt: skip
            self.store.put(part.name, sink.getvalue())
            self.parts.append(part.name)

    @property
    def files(self) -> set[str]:
        """The names of the files written, below the job's output."""
        return {f"{FOLDER}/{name}" for name in self.parts}

    def prompts(self, part: str, batch_rows: int) -> Iterator[list[TableRow]]:
        """The written samples of each prompt of ``part``; so many rows are read at once."""
        with self.store.open(part) as file:
            batches = pq.ParquetFile(file).iter_batches(batch_rows)
            tables = (pa.Table.from_batches([batch]) for batch in batches)
            rows = (TableRow(table, i) for table in tables for i in range(table.num_rows))
            yield from self._by_prompt(rows)

    def _by_prompt(self, rows: Iterator[TableRow]) -> Iterator[list[TableRow]]:
        """``rows`` in lists that begin with a sample 0."""
        samples = list[TableRow]()
        for row in rows:
            if samples and row[self.names["sample"]] == 0:
                yield samples
                samples = []
            samples.append(row)
        if samples:
            yield samples

    def _decided(self, part: FinishedPart, table: pa.Table) -> pa.Table:
        """``table``, the traces of ``part``, with the columns `FIELDS`."""
        numbers = table[self.names["sample"]].to_numpy()
        stem, rows = part.name.removesuffix(PARQUET), row_numbers(numbers, 0)
        ids = [f"{stem}:{row}:{sample}" for row, sample in zip(rows, numbers, strict=True)]
        judgements, judge = self.checks.judgements, [None] * len(ids)
        named = zip(ids, judgements.reasons(part, table, ids) if judgements else judge, strict=True)
        decisions = list[dict[str, Any]]()
        for samples in self._by_prompt(TableRow(table, i) for i in range(table.num_rows)):
            decisions += self._decide(list(islice(named, len(samples))), samples)
        columns = pa.Table.from_pylist(decisions, pa.schema(FIELDS))
        for field, column in zip(FIELDS, columns.columns, strict=True):
            table = table.append_column(field, column)
        return table

    def _decide(
        self, named: Sequence[tuple[str, str | None]], samples: Sequence[TableRow]
    ) -> Iterator[dict[str, Any]]:
        """Count the samples of a prompt; the values of `FIELDS` for each.

        ``named``: the id of each, and what its judge says against it.
        """
        traces = [
            {key: cells[self.names[key]] for key in JUDGED_COLUMNS if key in self.names}
            for cells in samples
        ]
        ids, met = [sample_id for sample_id, _ in named], self._contaminated_by(samples[0])
        findings = [self._findings(*each, met) for each in zip(named, samples, traces, strict=True)]
        has_verifier = self.checks.verify is not None
        verdicts = [passed(*each, has_verifier) for each in zip(traces, findings, strict=True)]
        # Samples that are drawn until some agree are no fair sample.
        rate = None if self._run.config.sampling.agree else pass_rate(verdicts)
        self.counts.add_pass_rate(rate)
        for i, trace in enumerate(traces):
            reason, repeated = rejection(
                trace, self.checks.rules, self._answer_format, findings[i]
            ) or selection(trace, self.checks.rules, rate), None  # fmt: skip
            if reason is None and self._near_duplicates is not None:
                repeated = self._repeated(ids[i], samples[i])
                reason = None if repeated is None else DUPLICATE
            self.counts.add(trace, reason)
            yield {
                "sample_id": ids[i], "accepted": reason is None, "rejected": reason,
                "near_duplicate_of": repeated, "passed": verdicts[i], "pass_rate": rate,
                "contaminated_by": met, "verifier_error": findings[i].verifier_error,
            }  # fmt: skip

    def _contaminated_by(self, cells: TableRow) -> str | None:
        if self.checks.benchmarks is None:
            return None
        return self.checks.benchmarks.find(prompt_text(cells, self._run.columns))

    def _findings(
        self,
        named: tuple[str, str | None],
        cells: TableRow,
        trace: Mapping[str, Any],
        met: str | None,
    ) -> Findings:
        (sample_id, judge), verified, error = named, None, None
        complete = is_complete(trace["state"], cells[self.names["answer"]])
        if met is None and complete and self.checks.verify and trace["correct"] is not False:
            verified, error = verdict(self.checks.verify, cells)
            if error is not None and self.counts.verifier_error is None:
                self.counts.verifier_error = f"{sample_id}: {error}"
        return Findings(met, verified, error, judge)

    def _repeated(self, sample_id: str, cells: TableRow) -> str | None:
        """The accepted sample that this one repeats; without one, it is remembered as accepted."""
        assert self._near_duplicates is not None
        messages = row_messages(cells, self._run.columns, None, None)
        prompt = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
        text = f"{cells[self.names['think']] or ''}\n{cells[self.names['answer']]}"
        return self._near_duplicates.find_or_add(sample_id, prompt, text)
