"""Run a file that was made for the OpenAI Batch API, and answer in its format.

    python -m jobs.openai_batch configs/openai-batch.yaml --set input.path=requests.jsonl

The requests become prompt shards in ``requests`` below ``output.path``, their traces are in
``traces``, and ``results.jsonl`` has a line for each request that was answered, in the order of the
input; ``errors.jsonl`` has those that failed, if any. Nothing starts while a line is malformed.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby, islice
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.job import Job, generate, job_parser, tables
from jobs.openai_lines import ROWS, SAMPLING, Request, ResultLines, parse_request
from pipeline.cli import exit_with
from pipeline.config.load import load_as
from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.output.ledger import Ledger
from pipeline.storage import FileInfo, Storage, check_reachable

REQUESTS, RESULTS, ERRORS = "requests", "results.jsonl", "errors.jsonl"
# Which files the shards were made from. Readers of Parquet pass it over.
SOURCES = "_sources.yaml"
ROWS_A_SHARD = 4096
READ_BYTES = 2**20
MANY = 20  # errors that are told at once
SHOWN = 160  # characters of an example
COLUMNS = (
    "think", "answer", "state", "finish_reason", "prompt_tokens", "think_tokens", "answer_tokens",
    "sample", "error",
)  # fmt: skip


@dataclass
class Batch:
    """The requests of an input: how many and what digest each file has, and what they ask for.

    ``asked``: for each setting that a run has one value of, the values that requests give it (two
    at most), each with the first line that does. A request that says nothing has ``own``, what the
    run would have without them.
    """

    own: Mapping[str, Any]
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)

    def add(self, request: Request, where: str) -> None:
        """Take note of what ``request``, at ``where``, asks for."""
        said = request.settings
        for name, own in self.own.items():
            value, at = (own, f"{where} (which says none)")
            if said[name] is not None:
                value, at = said[name], where
            found = self.asked.setdefault(name, [])
            if len(found) < 2 and all(value != other for other, _ in found):
                found.append((value, at))

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What all requests ask for, by section and key; raises `ConfigError` where they differ."""
        differing = [
            f"  {name.partition('.')[2]}: {_shown(one)} at {here}, {_shown(other)} at {there}"
            for name, found in self.asked.items() if len(found) > 1
            for (one, here), (other, there) in [found]
        ]  # fmt: skip
        if differing:
            raise ConfigError(
                "the requests differ in what a run has one value of:\n"
                + "\n".join(differing)
                + "\nsplit the file and run each part to an output.path of its own, or say what "
                "holds for all: --set sampling.NAME=VALUE, and --set answer.format=text or "
                "answer.json_schema=FILE with answer.format=json for the form of the answer"
            )
        sections: dict[str, dict[str, Any]] = {"sampling": {}, "answer": {}}
        for name, [(value, _)] in self.asked.items():
            section, _, key = name.partition(".")
            if value != self.own[name]:
                sections[section][key] = value
        if sections["answer"]:
            sections["answer"]["format"] = "json"
        return sections


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return "a JSON schema" if isinstance(value, Mapping) else str(value)


def lines(store: Storage, name: str) -> Iterator[tuple[str, bytes]]:
    """The lines of a file that are not blank, each with where it is (``file:number``)."""
    # Not all of fsspec's own files read lines well.
    with store.open(name) as file, io.BufferedReader(file, READ_BYTES) as buffered:
        for number, line in enumerate(buffered, 1):
            if line.strip():
                yield f"{name}:{number}", line


def read_batch(store: Storage, files: Sequence[FileInfo], own: Mapping[str, Any]) -> Batch:
    """Check all requests; raises `InputError` with all that is wrong, line by line."""
    batch, errors, wrong = Batch(own), [], 0
    first_seen: dict[str, str] = {}
    for info in files:
        digest, count = hashlib.blake2b(digest_size=16), 0
        for where, line in lines(store, info.name):
            digest.update(line)
            count += 1
            try:
                request = parse_request(line)
                if (first := first_seen.setdefault(request.custom_id, where)) != where:
                    raise ValueError(f"custom_id {request.custom_id!r} is that of {first} too")
                batch.add(request, where)
            except ValueError as error:
                wrong += 1
                if wrong <= MANY:
                    errors.append(f"  {where}: {error}")
        batch.sources[info.name] = {"requests": count, "digest": digest.hexdigest()}
    if wrong:
        more = f"\n  and {wrong - MANY:,} more" if wrong > MANY else ""
        raise InputError(
            f"{wrong:,} lines of the batch can't be run, so nothing was started:\n"
            + "\n".join(errors)
            + more
        )
    if not first_seen:
        raise InputError(f"there are no requests in {', '.join(info.name for info in files)}")
    return batch


def write_shards(store: Storage, sources: Mapping[str, Mapping[str, Any]], shards: Storage) -> None:
    """Write the prompt shards that are not there yet; raises `OutputError` if files have changed.

    A shard is never written twice, and files may be added: the run knows its shards by their names
    and times.
    """
    try:
        known = yaml.safe_load(shards.read(SOURCES))
    except FileNotFoundError:
        known = {}
    if changed := [name for name, source in known.items() if sources.get(name) != source]:
        raise OutputError(
            f"{', '.join(changed)} is not what it was when the job at {shards.url} began; put it "
            "back, give new requests in a file of their own beside it, or choose another "
            "output.path"
        )
    if known != sources:
        shards.put(SOURCES, yaml.safe_dump(dict(sources), sort_keys=False).encode())
    there = {info.name for info in shards.files()}
    for name, source in sources.items():
        count = -(-source["requests"] // ROWS_A_SHARD)
        names = [f"{name}.{i:05}.parquet" for i in range(count)]
        if there.issuperset(names):
            continue
        rest = lines(store, name)
        for shard in names:
            rows = [parse_request(line).row for _, line in islice(rest, ROWS_A_SHARD)]
            sink = io.BytesIO()
            pq.write_table(pa.Table.from_pylist(rows, ROWS), sink, compression="zstd")
            shards.create(shard, sink.getvalue())


def own_settings(job: Job) -> dict[str, Any]:
    """What the requests may decide, with the value it has without them.

    What the config sets itself is not theirs to decide.
    """
    names = [name for name in SAMPLING if name not in job.sampling.model_fields_set]
    own = {f"sampling.{name}": getattr(job.sampling, name) for name in names}
    if not job.answer.model_fields_set & {"format", "json_schema"}:
        own["answer.json_schema"] = None
    return own


def make_ready(job: Job) -> RunConfig:
    """Check the requests and write them as prompt shards; the run of these."""
    job.check_output()
    from pipeline.execution.prepare import refuse_output_in_input
    from pipeline.input.shards import find_files

    for url in (job.input.path, job.output.path):
        check_reachable(url)
    refuse_output_in_input(job, Storage(job.output.path))
    store, files = find_files(job.input.path, ".jsonl")
    if not files:
        raise InputError(f"input.path {job.input.path}: no .jsonl files there")
    batch = read_batch(store, files, own_settings(job))
    shards = Storage(f"{job.output.path.rstrip('/')}/{REQUESTS}")
    columns = {"path": shards.url, "messages_column": "messages", "tools_column": "tools"}
    asked = batch.settings
    try:
        run = job.as_run(input=columns, **{name: keys for name, keys in asked.items() if keys})
    except ConfigError as error:
        ways = [
            f"--set {name}={batch.own[name]}"
            for name in (f"sampling.{key}" for key in asked["sampling"])
            if f" {name}:" in str(error)
        ]
        if asked["answer"] and " answer:" in str(error):
            ways.append("--set answer.format=text")
        hint = f"\nthe requests ask for that; to do otherwise: {' '.join(ways)}" if ways else ""
        raise ConfigError(f"{error}{hint}") from None
    write_shards(store, batch.sources, shards)
    return run


@dataclass
class Results:
    """Result lines of a run's traces; counts what it has seen, and keeps one as an example."""

    output: str
    answers: ResultLines
    statuses: Counter[int] = field(default_factory=Counter)
    example: dict[str, Any] | None = None

    @classmethod
    def of(cls, run: RunConfig) -> "Results":
        """Of a run that is complete."""
        manifest = Ledger(Storage(run.output.path)).manifest()
        assert manifest is not None
        created = int(datetime.fromisoformat(manifest["created"]).timestamp())
        answers = ResultLines(manifest["fingerprint"], run.model.path, created)
        return cls(run.output.path, answers)

    def write(self, store: Storage) -> None:
        """Write both files; that of errors only if there are any."""
        with store.writing(RESULTS) as file:
            for result in self._all():
                self.statuses[_status(result)] += 1
                if _status(result) == 200:
                    self.example = self.example or result
                    file.write(_line(result))
        if self.statuses.keys() <= {200}:
            store.delete([ERRORS])
            return
        with store.writing(ERRORS) as file:
            file.writelines(_line(result) for result in self._all() if _status(result) != 200)

    def _all(self) -> Iterator[dict[str, Any]]:
        for custom_id, traces in groupby(self._traces(), key=lambda trace: trace["custom_id"]):
            yield self.answers.line(custom_id, list(traces))

    def _traces(self) -> Iterator[dict[str, Any]]:
        """All traces, our columns by their own names."""
        for _, table, names in tables(self.output):
            wanted = {"custom_id": "custom_id", "tools": "tools"}
            wanted |= {name: names[name] for name in COLUMNS}
            kept = table.select(list(wanted.values())).rename_columns(list(wanted))
            for piece in kept.to_batches(max_chunksize=1024):
                yield from piece.to_pylist()

    def report(self, output: str) -> Iterator[str]:
        """What came out, as a person reads it."""
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
            yield f"  {name:<10} {text[:SHOWN]}{' …' if len(text) > SHOWN else ''}"
        yield (
            f"  {'ended':<10} {choice['finish_reason']} ({choice['state']}); tokens: "
            f"{usage['prompt_tokens']:,} prompt, {usage['completion_tokens']:,} completion"
        )


def _status(result: Mapping[str, Any]) -> int:
    status: int = result["response"]["status_code"]
    return status


def _line(result: Mapping[str, Any]) -> bytes:
    return json.dumps(result, ensure_ascii=False).encode() + b"\n"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the batch and write the results; exit as `qwq-batch run` does."""
    args = job_parser("openai_batch", __doc__.split("\n")[0]).parse_args(argv)

    def command() -> int:
        job = load_as(Job, args.config, args.overrides)
        run = make_ready(job)
        generate(run, args.retry)
        results = Results.of(run)
        results.write(Storage(job.output.path))
        for line in results.report(job.output.path):
            print(line)
        return 0

    exit_with(command)


if __name__ == "__main__":
    main()
