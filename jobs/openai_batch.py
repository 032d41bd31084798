"""Run a file that was made for the OpenAI Batch API, and answer in its format.

    qwq-batch openai-batch configs/openai-batch.yaml --set input.path=requests.jsonl
    python -m jobs.openai_batch configs/openai-batch.yaml    # with the input.path of the config

Below ``output.path``, the requests become prompt shards in ``requests``, and their traces are in
``traces``. ``results.jsonl`` has a line for each request that was answered, in the order of the
input. ``errors.jsonl`` has those that failed, if any. Nothing starts while a line is malformed.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from typing import IO, Any

import pyarrow as pa

from jobs.job import Job, generate
from jobs.openai_lines import (
    OWN,
    ROWS,
    ROWS_WITH_OWN,
    SAMPLING,
    ResultLines,
    parse_request,
)
from jobs.openai_settings import MAX_ERRORS, Batch, wrong_lines
from jobs.own_files import OwnFiles
from pipeline import RunConfig, console
from pipeline.errors import ConfigError, InputError
from pipeline.input.converted import SOURCES, convert, shard_names, write_tables
from pipeline.input.files import JSON_FORMAT, lines, list_input
from pipeline.local_disk import FileInfo
from pipeline.output.ledger import Ledger
from pipeline.output.reader import finished_parts
from pipeline.storage import Storage, check_reachable

REQUESTS, RESULTS, ERRORS = "requests", "results.jsonl", "errors.jsonl"
ROWS_A_TABLE = 4096
SHOWN_CHARACTERS = 160  # of an example
COLUMNS = (
    "think", "answer", "state", "finish_reason", "prompt_tokens", "think_tokens", "answer_tokens",
    "sample", "error",
)  # fmt: skip


def read_batch(store: Storage, files: Sequence[FileInfo], defaults: Mapping[str, Any]) -> Batch:
    """Check all requests; raises `InputError` with an error for each wrong line."""
    batch, errors, wrong = Batch(defaults), [], 0
    first_seen: dict[str, str] = {}
    for info in files:
        for number, line in lines(store, info.name):
            where = f"{info.name}:{number}"
            try:
                request = parse_request(line)
                if (first := first_seen.setdefault(request.custom_id, where)) != where:
                    raise ValueError(f"custom_id {request.custom_id!r} is also that of {first}")
                batch.add(request, where)
            except ValueError as error:
                wrong += 1
                if wrong <= MAX_ERRORS:
                    errors.append(f"  {where}: {error}")
    if wrong:
        raise InputError(wrong_lines(errors, wrong))
    if not first_seen:
        raise InputError(f"there are no requests in {', '.join(info.name for info in files)}")
    return batch


def files_of(job: Job) -> OwnFiles:
    """What the job writes beside its traces."""
    before = rf"{REQUESTS}/({SOURCES}|.*\.parquet)|{RESULTS}|{ERRORS}"
    return OwnFiles(job.output.path, job.traces, (f"{REQUESTS}/", RESULTS, ERRORS), before)


@dataclass
class RequestFiles:
    """Batch files as prompt shards; their lines have been checked.

    ``by_row``: the settings that each request has for itself, in a column of the shards.
    """

    by_row: Sequence[str]

    def types(
        self,
        store: Storage,
        files: Iterable[FileInfo],
        fixed: pa.Schema | None,
    ) -> pa.Schema:
        """The same for all; see `pipeline.input.converted.Format`."""
        return ROWS_WITH_OWN if self.by_row else ROWS

    def write(self, store: Storage, name: str, schema: pa.Schema | None, shard: IO[bytes]) -> None:
        """Write the requests of the file ``name``; see `pipeline.input.converted.Format`."""
        assert schema is not None
        write_tables(self._tables(store, name, schema), schema, shard)

    def _tables(self, store: Storage, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
        requests = (parse_request(line) for _, line in lines(store, name))
        while group := list(islice(requests, ROWS_A_TABLE)):
            rows = [{**each.row, OWN: each.own_settings(self.by_row)} for each in group]
            yield pa.Table.from_pylist(rows, schema)


def default_settings(job: Job) -> dict[str, Any]:
    """The settings that requests may decide, each with its value if they don't.

    What the config sets, it decides for all requests.
    """
    names = [name for name in SAMPLING if name not in job.sampling.model_fields_set]
    defaults = {f"sampling.{name}": getattr(job.sampling, name) for name in names}
    if not job.answer.model_fields_set & {"format", "json_schema"}:
        defaults["answer.json_schema"] = None
    return defaults


def make_ready(job: Job) -> RunConfig:
    """Check the requests and write them as prompt shards; returns the run that reads these."""
    job.check_output()
    from pipeline.execution.prepare import refuse_output_in_input

    for url in (job.input.path, job.output.path):
        check_reachable(url)
    refuse_output_in_input(job, Storage(job.output.path))
    own = files_of(job)
    own.refuse_others()
    for name in ("types", "subset", "split"):
        if getattr(job.input, name):
            raise ConfigError(f"input.{name} says nothing about batch files; leave it out")
    found = list_input(job.input.path, job.input.files)
    if found.format != JSON_FORMAT:
        raise InputError(
            f"input.path {job.input.path}: no JSON lines there; the names of such "
            "files end in .jsonl"
        )
    for note in found.notes:
        console.warn(note)
    batch = read_batch(found.store, found.files, default_settings(job))
    shards = Storage(job.below(REQUESTS))
    columns: dict[str, str | None] = {
        "path": shards.url, "files": None, "messages_column": "messages", "tools_column": "tools",
    }  # fmt: skip
    settings = batch.settings
    if batch.by_row:
        columns["sampling_column"] = OWN
    try:
        run = job.as_run(input=columns, **{name: keys for name, keys in settings.items() if keys})
    except ConfigError as error:
        raise ConfigError(f"{error}{_hint(str(error), batch)}") from None
    own.claim(f"{REQUESTS}/{name}" for name in [SOURCES, *shard_names(found).values()])
    begun = Ledger(Storage(run.output.path)).known_shards().identities
    own_settings = {"own settings": ", ".join(batch.by_row)} if batch.by_row else {}
    convert(found, RequestFiles(batch.by_row), shards, begun, own_settings)
    return run


def _hint(error: str, batch: Batch) -> str:
    """How to override the settings of the requests that a config error is about."""
    overrides = [
        f"--set {name}={batch.defaults[name]}"
        for name in (f"sampling.{key}" for key in batch.settings["sampling"])
        if f" {name}:" in error
    ]
    if batch.settings["answer"] and " answer:" in error:
        overrides.append("--set answer.format=text")
    if not overrides:
        return ""
    return f"\nthe requests ask for that; to override them: {' '.join(overrides)}"


@dataclass
class Results:
    """The result lines of a run's traces; counts their statuses, and keeps one as an example."""

    output: str
    answers: ResultLines
    statuses: Counter[int] = field(default_factory=Counter)
    example: dict[str, Any] | None = None

    @classmethod
    def of(cls, run: RunConfig) -> "Results":
        """The results of a complete run."""
        manifest = Ledger(Storage(run.output.path)).manifest()
        assert manifest is not None
        created = int(datetime.fromisoformat(manifest["created"]).timestamp())
        answers = ResultLines(manifest["fingerprint"], run.model.path, created)
        return cls(run.output.path, answers)

    def write(self, own: OwnFiles) -> None:
        """Write the results; and the errors, if there are any. ``own``: the files of the job."""
        store = Storage(own.output)
        own.claim([RESULTS, ERRORS])
        with store.writing(RESULTS) as file:
            for result in self._all():
                self.statuses[_status(result)] += 1
                if _status(result) == 200:
                    self.example = self.example or result
                    file.write(result_line(result))
        if self.statuses.keys() <= {200}:
            store.delete([ERRORS])
            return
        with store.writing(ERRORS) as file:
            file.writelines(result_line(result) for result in self._all() if _status(result) != 200)

    def _all(self) -> Iterator[dict[str, Any]]:
        for custom_id, traces in groupby(self._traces(), key=lambda trace: trace["custom_id"]):
            yield self.answers.line(custom_id, list(traces))

    def _traces(self) -> Iterator[dict[str, Any]]:
        """All traces, with our columns under their own names."""
        for part in finished_parts(self.output):
            columns = {"custom_id": "custom_id", "tools": "tools"}
            columns |= {name: part.names[name] for name in COLUMNS}
            table = part.read(list(columns.values())).rename_columns(list(columns))
            for piece in table.to_batches(max_chunksize=1024):
                yield from piece.to_pylist()

    def report(self, output: str) -> Iterator[str]:
        """The result as text, with one answer as an example."""
        yield f"\n{self.statuses.total():,} requests in {output}"
        for status, count in sorted(self.statuses.items()):
            name = RESULTS if status == 200 else ERRORS
            yield f"  status {status}   {count:>8,} requests   {name}"
        if self.example is None:
            return
        body = self.example["response"]["body"]
        choice, usage = body["choices"][0], body["usage"]
        yield f"for example {self.example['custom_id']}:"
        for name in ("reasoning", "content"):
            text = " ".join((choice["message"][name] or "").split())
            shown = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
            yield f"  {name:<10} {shown}"
        yield (
            f"  {'ended':<10} {choice['finish_reason']} ({choice['state']}); tokens: "
            f"{usage['prompt_tokens']:,} prompt, {usage['completion_tokens']:,} completion"
        )


def _status(result: Mapping[str, Any]) -> int:
    status: int = result["response"]["status_code"]
    return status


def result_line(result: Mapping[str, Any]) -> bytes:
    """``result`` as a line of a results file."""
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"


def openai_batch(job: Job, retry: Sequence[str] = ()) -> int:
    """Run the remaining requests, write all results anew, and print a summary; the exit code."""
    run = make_ready(job)
    console.warn_about(run)
    summary = generate(run, retry)
    results = Results.of(run)
    results.write(files_of(job))
    console.print_lines(results.report(job.output.path))
    console.refuse_all_failed(summary, run)
    return 0


if __name__ == "__main__":
    from pipeline.cli import main

    main(["openai-batch", *sys.argv[1:]])
