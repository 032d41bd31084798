"""The whole ledger in one process: any order of commands, with crashes and pauses at any write.

A scenario is a seed. It runs the real flow, from the plan to the parts, over a few tiny shards; only
Ray and the engines are replaced. Its commands are runs, top-ups, retries and new shards, each with a
crash or a pause before or after one of its writes. A paused process stands for a frozen machine: it
goes on later, when others have continued or finished its work. After every step, all that was
durable before must still be there and unchanged, except what a retry selected. At the end, the
commands as a user would repeat them must complete the output without new engine work.
"""

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.execution import copies, duplicates, prepare, run
from pipeline.execution.prepare import PreparedRun
from pipeline.input.rows import read_bundle
from pipeline.output.ledger import Ledger
from pipeline.output.merge import fragment_tables
from pipeline.planning import PARQUET, PartRef, Pass, Plan
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.sampling import derive_seed
from pipeline.schema import UNREADABLE_COLUMN, with_origin
from pipeline.storage import Storage
from tests.model.processes import Crash, Fault, Process, make_writes_faulty

PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
RETRIED = "truncated"
TRACE = {
    "finish_reason": "stop", "prompt_tokens": 1, "think_tokens": 1, "answer_tokens": 1,
    "carried_tokens": 0, "loop_retries": 0, "wasted_tokens": 0,
}  # fmt: skip
# By row and sample: text, state and attempt.
Traces = dict[tuple[int, int], tuple[str, str, int]]


def without_ray(patch: pytest.MonkeyPatch, tier: Callable[..., None]) -> None:
    """Let the flow run here, with ``tier`` in place of `pipeline.execution.run.execute_tier`."""

    @contextlib.contextmanager
    def alone(*_: Any) -> Iterator[Any]:
        nobody = SimpleNamespace(take_signals=lambda: None, check=lambda: None)
        yield SimpleNamespace(observer=None, shutdown=nobody)

    def one_tier(_: Any, __: Any, ___: Any, tiers: Sequence[Any], todo: Sequence[Any]) -> list[Any]:
        return [(tiers[0], tuple(todo))] if todo else []

    tokenizer = load_tokenizer("qwq-nano")
    here = SimpleNamespace(put=lambda value: value)
    patch.setattr(prepare, "load_tokenizer", lambda *_: tokenizer)
    patch.setattr(run, "cluster", lambda _: contextlib.nullcontext())
    patch.setattr(run, "exclusive_driver", alone)
    patch.setattr(run, "by_tier", one_tier)
    patch.setattr(run, "execute_tier", tier)
    for module, name, function in (
        (copies, "_fill", copies.fill),
        (duplicates, "_hash", duplicates.hash_rows),
    ):
        patch.setattr(module, "ray", here)
        patch.setattr(module, "results", lambda values: values)
        patch.setattr(module, name, SimpleNamespace(remote=function))


@dataclass
class Step:
    """A command and what became of it."""

    command: str
    outcome: str


class Scenario:
    """What one ``seed`` does in ``folder``."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.input, self.output = folder / "in", folder / "out"
        self.input.mkdir(parents=True)
        self.steps: list[Step] = []
        self.paused: list[Process] = []
        self.ids: list[int] = []
        self.samples = 1
        self.has_retried = False
        self.engine_rows = 0
        self.uses_dedupe = self.rng.random() < 0.5
        self.rows_per_part = self.rng.choice([2, 3, 3, 5])
        self._read: dict[tuple[str, int, int], Traces] = {}
        for name, rows in (("m0", 5), ("m1", 0), ("m2", 4)):
            self._add_shard(name, rows)

    # The steps

    def run(self, patch: pytest.MonkeyPatch) -> None:
        """All steps and checks; raises `AssertionError` with the first thing that is wrong."""
        without_ray(patch, self._engines)
        self._step("run n=1", self._run(1))
        for _ in range(self.rng.randrange(3, 10)):
            choice = self.rng.random()
            if choice < 0.4:
                self._step(f"run n={self.samples}", self._run(self.samples))
            elif choice < 0.55:
                more = self.samples + self.rng.choice([1, 2])
                self._step(f"run n={more}", self._run(more))
            elif choice < 0.8:
                tokens = self.rng.choice([50, 60])
                self._step(f"retry max_tokens={tokens}", self._retry(tokens))
            elif choice < 0.88:
                name = f"{self.rng.choice('anz')}{len(list(self.input.iterdir()))}"
                self._add_shard(name, self.rng.randrange(4))
            elif self.paused:
                self._wake(self._fault())
        self._finish()

    def _finish(self) -> None:
        """Repeat the commands until nothing is left, as a user would; then look at everything."""
        while self.paused:
            self._wake(None)
        self._step(f"run n={self.samples}", self._run(self.samples), faulty=False)
        ledger = Ledger(Storage(str(self.output)))
        for run_pass in self._open_retries(ledger):
            tokens = dict(run_pass.changed).get("sampling.max_tokens")
            self._step(f"retry max_tokens={tokens}", self._retry(tokens), faulty=False)
        assert not self._open_retries(ledger), "a retry can't be finished"
        rows = self.engine_rows
        summary = run.run(self._config(self.samples))
        assert summary.is_complete, f"incomplete: {summary}"
        assert self.engine_rows == rows, "a finished output was given to the engines again"
        self._check_parts(ledger)
        leftovers = [
            path.relative_to(self.output).as_posix()
            for path in self.output.rglob("*")
            if path.suffix in (".rows", ".running", ".done") and path.is_file()
        ]
        assert not leftovers, f"left over: {leftovers}"

    def _step(self, command: str, body: Callable[[], object], faulty: bool = True) -> None:
        """Run a command in a process of its own, with a fault, and check what it left."""
        self._checked(
            command, lambda: Process(body, self._fault() if faulty else None).go(), faulty
        )

    def _wake(self, fault: Fault | None) -> None:
        process = self.paused.pop(self.rng.randrange(len(self.paused)))
        self._checked("wake", lambda: process.resume(fault), may_fail=True)

    def _checked(self, command: str, act: Callable[[], Process], may_fail: bool) -> None:
        before, others = self._durable(), list(self.paused)
        process = act()
        self.paused += [process] if process.is_paused else []
        error = process.error
        outcome = "paused" if process.is_paused else "done" if error is None else repr(error)
        self.steps.append(Step(command, outcome))
        # A process that wakes may find its fragments gone: nobody waits for it any more.
        is_late = command == "wake" and isinstance(error, OutputError)
        assert is_late or self._is_expected(error, may_fail), f"{command}: {error!r}"
        retries = command == "wake" or "retry" in command or bool(others)
        for key, old in before.items():
            new = self._durable().get(key)
            assert new is not None, f"{command} lost {key}: {old}"
            # A copy of a retried trace has its attempt, and can itself be retried in that pass.
            is_later = new[2] > old[2] or (self.uses_dedupe and new[2] == old[2] > 0)
            is_retried = retries and old[1] == RETRIED and is_later
            assert new == old or is_retried, f"{command} changed {key}: {old} to {new}"
        if self.output.is_dir():  # what another process has begun is what continues
            ledger = Ledger(Storage(str(self.output)))
            manifest = ledger.manifest()
            begun = [manifest["settings"]["sampling.n"]] if manifest else []
            begun += [p.stop for p in ledger.passes(ledger.listing()) if not p.is_retry]
            self.samples = max(begun, default=self.samples)

    @staticmethod
    def _is_expected(error: BaseException | None, may_fail: bool) -> bool:
        """Whether a command may end so: with a crash of ours, or a refusal that says what to do."""
        if error is None or (may_fail and isinstance(error, Crash)):
            return True
        known = ("samples of each row", "another retry is under way", "another driver has opened",
                 "there is nothing to retry")  # fmt: skip
        return may_fail and isinstance(error, OutputError) and any(k in str(error) for k in known)

    def _fault(self) -> Fault | None:
        if self.rng.random() < 0.2:
            return None
        return Fault(
            self.rng.randrange(1, 40), self.rng.random() < 0.5, pauses=self.rng.random() < 0.4
        )

    # The commands

    def _config(self, samples: int, **sampling: int) -> RunConfig:
        dedupe = self.uses_dedupe and self.rng.random() < 0.8
        return parse_config({
            "input": {"path": str(self.input), "dedupe": dedupe},
            "output": {"path": str(self.output), "rows_per_part": self.rows_per_part},
            "model": {"path": "qwq-nano"},
            "sampling": {"n": samples, **sampling},
            "engine": {"kind": "simulated", "device": "cpu"},
        })  # fmt: skip

    def _run(self, samples: int) -> Callable[[], object]:
        return lambda: run.run(self._config(samples))

    def _retry(self, max_tokens: int | None) -> Callable[[], object]:
        self.has_retried = True
        changed = {} if max_tokens is None else {"max_tokens": max_tokens}
        return lambda: run.retry(self._config(self.samples, **changed), [RETRIED])

    def _add_shard(self, name: str, rows: int) -> None:
        ids = range(len(self.ids), len(self.ids) + rows)
        self.ids += ids
        prompts = [{"id": i, "prompt": f"p{i % 4 if self.uses_dedupe else i}"} for i in ids]
        pq.write_table(pa.Table.from_pylist(prompts, PROMPTS), self.input / f"{name}{PARQUET}")

    def _engines(
        self, prepared: PreparedRun, run_pass: Pass, _tier: Any, plan: Plan, _control: Any
    ) -> None:
        """Generate what ``plan`` lists, in blocks of any size and order; commit full parts.

        As in a cluster, a worker can pause or repeat its block, and a part's last block is not
        always followed by a commit.
        """
        schema = with_origin(prepared.prompts)
        tables = read_bundle(prepared.config.input.path, list(plan.todo), run_pass.samples, schema)
        rows = pa.concat_tables([schema.empty_table(), *tables])
        missing: Counter[str] = Counter()
        for piece in plan.todo:
            missing[str(PartRef.of(piece.part))] += piece.rows
        cuts, begin = [], 0
        while begin < rows.num_rows:
            cuts.append((begin, self.rng.choice([1, 1, 2, 3, 5])))
            begin += cuts[-1][1]
        if self.rng.random() < 0.5:
            self.rng.shuffle(cuts)
        seen: dict[str, set[int]] = defaultdict(set)
        for begin, count in cuts:
            block = rows.slice(begin, count)
            self.engine_rows += block.num_rows
            prepared.ledger.write_block(self._traces(prepared, run_pass, block), run_pass.number)
            parts = block["__qwq_part"].to_pylist()
            for part, row in zip(parts, block["__qwq_row"].to_pylist(), strict=True):
                seen[part].add(row)
            for part in dict.fromkeys(parts):
                if len(seen[part]) >= missing[part] and self.rng.random() < 0.8:
                    self._commit(prepared, run_pass, part)

    def _commit(self, prepared: PreparedRun, run_pass: Pass, part: str) -> None:
        """Commit in this process, or in a worker of its own that may pause or die in it."""

        def commit() -> None:
            metadata = prepared.metadata(run_pass)
            prepared.ledger.commit(PartRef.parse(part), run_pass, prepared.traces, metadata)

        if self.rng.random() < 0.7:
            commit()
            return
        worker = Process(commit, self._fault()).go()
        if worker.is_paused:
            self.paused.append(worker)
        if worker.error is not None and not isinstance(worker.error, Crash):
            raise worker.error
        if self.rng.random() < 0.5:  # Ray gives the task to another worker
            commit()

    def _traces(self, prepared: PreparedRun, run_pass: Pass, block: pa.Table) -> pa.Table:
        """Traces whose text is new each time, as of an engine whose batches differ."""
        taken, traces = [], []
        for i, origin in enumerate(
            block.select(["__qwq_part", "__qwq_row", "__qwq_samples"]).to_pylist()
        ):
            shard = PartRef.parse(origin["__qwq_part"]).shard
            for sample in origin["__qwq_samples"]:
                seed = derive_seed(0, shard, origin["__qwq_row"], sample, run_pass.attempt)
                text = str(self.rng.randrange(10**9))
                state = RETRIED if random.Random(seed).random() < 0.4 else "finished"
                taken.append(i)
                traces.append({**TRACE, "think": text, "answer": text, "state": state,
                               "sample": sample, "attempt": run_pass.attempt, "seed": seed})  # fmt: skip
        table = block.drop_columns([UNREADABLE_COLUMN]).take(taken)
        for field in list(prepared.traces)[len(prepared.prompts) :]:
            values = [trace.get(field.name) for trace in traces]
            table = table.append_column(field, pa.array(values, field.type))
        return table

    # What is there

    def _durable(self) -> Traces:
        """All traces in finished parts, and those in fragments of parts that are not."""
        if not self.output.is_dir():
            return {}
        ledger, traces = Ledger(Storage(str(self.output))), Traces()
        listing = ledger.listing()
        for name in listing.finished_parts():
            path = self.output / name
            stat = path.stat()
            key = (name, stat.st_mtime_ns, stat.st_ino)
            if key not in self._read:
                self._read[key] = traces_in(pq.read_table(path))
            traces |= self._read[key]
        for part, entries in listing.journal.get(0, {}).items():
            if part not in listing.finished_parts():
                fragments = [entry for entry in entries if entry.rows]
                for table in fragment_tables(fragments, ledger.store.read_all):
                    traces |= traces_in(table)
        return traces

    def _open_retries(self, ledger: Ledger) -> list[Pass]:
        listing = ledger.listing()
        return [p for p in ledger.passes(listing) if p.is_retry and p.number not in listing.closed]

    def _check_parts(self, ledger: Ledger) -> None:
        """Every sample of every row is there once, in order; copies equal their sources."""
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for part in prepare.prepare(self._config(self.samples)).parts:
            table = pq.read_table(self.output / part.name).to_pylist()
            expected = [s for _ in range(part.rows) for s in range(self.samples)]
            assert [trace["sample"] for trace in table] == expected, f"samples of {part.name}"
            for i, trace in enumerate(table):
                number = part.start + i // self.samples
                rows[f"{part.shard.name}:{number}", trace["sample"]] = trace
        ids = sorted(trace["id"] for (_, sample), trace in rows.items() if sample == 0)
        assert ids == self.ids, "rows lost or doubled"
        for (key, sample), trace in rows.items():
            source = rows.get((trace["duplicate_of"], sample))
            if source and not self.has_retried:
                assert trace["prompt"] == source["prompt"], f"{key} copies another prompt"
                assert trace["think"] == source["think"], f"{key} differs from its source"


def traces_in(table: pa.Table) -> Traces:
    """The traces of a part or fragment."""
    names = ("id", "sample", "think", "state", "attempt")
    columns = (table[name].to_pylist() for name in names)
    return {(i, s): (think, state, a) for i, s, think, state, a in zip(*columns, strict=True)}


def play(seed: int, folder: Path) -> None:
    """Run the scenario of ``seed``; raises `AssertionError` with its steps."""
    with pytest.MonkeyPatch.context() as patch:
        make_writes_faulty(patch)
        scenario = Scenario(seed, folder)
        try:
            scenario.run(patch)
        except Exception as error:
            steps = "\n".join(f"  {step.command}: {step.outcome}" for step in scenario.steps)
            raise AssertionError(f"seed {seed}: {error}\n{steps}") from error
