"""The Ray actor: one engine, kept full with the rows of many small blocks.

Ray Data calls an actor for many blocks at once, each in a thread of its own. A thread renders its
block's prompts and hands them to the event loop on which the engine's front end runs. A row that
can't run stays in its row; an engine that dies ends the actor, and Ray does its blocks again. What
running traces have is saved at intervals, and when the actor is told to end.
"""

import asyncio
import concurrent.futures
import gc
import logging
import os
import signal
import threading
import uuid
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline.answers.base import AnswerFormat
from pipeline.config.run_config import RunConfig
from pipeline.engines import OnTokens, Request, build_engine, engine_type
from pipeline.errors import (
    EngineDeadError,
    EngineError,
    EngineKilledError,
    ModelError,
    QwqBatchError,
    RowError,
)
from pipeline.execution.placement import wait_until_placed
from pipeline.monitor.coordinator import EngineReporter
from pipeline.monitor.crash_isolation import CrashIsolationGate, Suspicion
from pipeline.monitor.figures import length_bin
from pipeline.output.checkpoints import Checkpoints, Key
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow, render_row
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import TracePolicy, TraceProgress
from pipeline.reasoning.repetition import RepetitionDetector
from pipeline.reasoning.sampling import derive_seed, still_to_draw
from pipeline.reasoning.think_format import State
from pipeline.reasoning.trace import Trace, TraceMaker
from pipeline.schema import PART_COLUMN, ROW_COLUMN, SAMPLES_COLUMN, trace_fields
from pipeline.storage import Storage

logger = logging.getLogger(__name__)
IDLE_RESTARTS = 4
CLOSE_SECONDS = 10
SAVE_SECONDS = 25
GARBAGE_AT = 50_000  # new objects; Python looks at every 700, which took a quarter of the time
ORIGIN = (PART_COLUMN, ROW_COLUMN, SAMPLES_COLUMN)
RowKey = tuple[str, int]


@dataclass(frozen=True)
class Sample:
    """One sample of one row, ready to run; without a prompt it has an error to tell instead."""

    key: Key
    seed: int
    prompt: Sequence[int] = ()
    error: RowError | None = None

    @property
    def row(self) -> RowKey:
        """The row whose sample it is."""
        return self.key[0].name, self.key[1]


class EngineActor:
    """The callable that Ray Data's `map_batches` builds once per actor."""

    def __init__(
        self, config: RunConfig, columns: PromptColumns, run_pass: Pass, coordinator: Any
    ) -> None:
        self._config, self._columns, self._run_pass, self._coordinator = (
            config,
            columns,
            run_pass,
            coordinator,
        )
        self._closes_once, self._stops_once = threading.Lock(), threading.Lock()
        self._rendering = threading.Lock()
        self._name = uuid.uuid4().hex[:8]
        self._reporter = EngineReporter(coordinator, self._name, self._stop_soon)
        self._loop = asyncio.new_event_loop()
        self._failure: QwqBatchError | None = None
        try:
            self._start()
        except QwqBatchError as error:
            # Told by the first call: of what a constructor raises, Ray prints the stack and passes
            # on the text.
            self._failure = error
            return
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        coordinator.opened.remote(self._name)
        self._reporting = asyncio.run_coroutine_threadsafe(
            self._reporter.keep_reporting(), self._loop
        )
        self._saving_ends, self._saved = threading.Event(), threading.Event()
        threading.Thread(target=self._keep_saving, daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            # A spot notice, a time limit or a drained node, told to this process alone.
            signal.signal(signal.SIGTERM, lambda *_: self._stop_soon(end_process=True))

    def _start(self) -> None:
        """EngineLoad the tokenizer and start the engine; raises a `QwqBatchError` if that can't be."""
        self._refuse_endless_restarts()
        config = self._config
        self._policy = config.sampling
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        self._maker = TraceMaker(
            tokenizer, config.think_format, self._answer_format(),
            config.output.raw_text, engine_type(config.engine).yarn_factor(config.engine),
        )  # fmt: skip
        self._suffix = config.suffix_text
        ledger = Ledger(Storage(config.output.path))
        self._checkpoints = Checkpoints(ledger, self._name, self._run_pass.number)
        self._running = dict[int, RowKey]()  # by request
        self._in_flight_at_death: list[RowKey] | None = None
        self._tasks: set[asyncio.Task[list[Trace]]] = set()
        self._turns, self._stopped = CrashIsolationGate(), False
        wait_until_placed()
        try:
            self._engine = build_engine(config, tokenizer)
        except ModelError:
            logger.exception("the engine did not start; trying once more")
            self._engine = build_engine(config, tokenizer)
        self._reporter.load = lambda: self._engine.load
        context = self._engine.context_tokens
        self._renderer = PromptRenderer(tokenizer, context, config.think_format)
        self._trace_policy = TracePolicy(
            config.sampling,
            config.thinking,
            context,
            self._maker.closing,
            self._maker.is_closed,
            self._maker.answer_pass,
        )
        gc.collect()
        gc.freeze()  # what is there by now stays
        gc.set_threshold(GARBAGE_AT)

    def _answer_format(self) -> AnswerFormat:
        try:
            return self._config.answer.load_format()
        except ValueError as error:  # the driver's node has a file or package that this one lacks
            raise ModelError(f"answer: {error}") from None

    def __call__(self, block: pa.Table) -> pa.Table:
        """The traces of a block: a row for each sample of each of its rows, in order."""
        if self._failure is not None:
            raise self._failure
        self._close_with_actor()
        origins = zip(*(block[name].to_pylist() for name in ORIGIN), strict=True)
        with self._rendering:  # threads that take turns waste less than threads that compete
            rows = [self._prepare(TableRow(block, i), *origin) for i, origin in enumerate(origins)]
        keys = [sample.key for samples in rows for sample in samples]
        suspicions, living = ray.get(
            self._coordinator.crash_status.remote([row[0].row for row in rows])
        )
        progress = dict(zip(keys, self._checkpoints.start(keys, living), strict=True))
        running = asyncio.run_coroutine_threadsafe(
            self._run(rows, progress, suspicions), self._loop
        )
        try:
            traces = running.result()
        except EngineDeadError as error:
            # Not an exception for Ray Data, which would end the job: this process ends, Ray
            # starts the actor again elsewhere and repeats the blocks that it had.
            self._die(error)
        except concurrent.futures.CancelledError:
            threading.Event().wait()  # told to stop: the process ends, this block with it
        self._reporter.done.rows += block.num_rows
        return self._table(block, traces)

    def close(self) -> None:
        """Shut the engine down, then say so."""
        self._reporting.cancel()
        self._saving_ends.set()
        try:
            self._engine.close()
        finally:
            self._reporter.close()

    def _close_with_actor(self) -> None:
        """Close when Ray Data ends the actor in good order, which drops its context object.

        `__del__` would not do: an error that a row has raised can hold, in a cycle of frames, a
        reference to this object until some later garbage collection, and the process ends first.
        """
        context = getattr(ray.data, "_map_actor_context", None)
        if context is not None and self._closes_once.acquire(blocking=False):
            weakref.finalize(context, self.close)

    def __del__(self) -> None:
        # An actor that never had a block.
        if hasattr(self, "_reporting") and self._closes_once.acquire(blocking=False):
            self.close()

    def _die(self, error: EngineDeadError) -> None:
        """Say on which rows the engine died, save the traces, end the process."""
        with self._stops_once:  # for good: of all blocks' threads, one
            logger.error("engine %s died: %s", self._name, error)
            ray.get(self._coordinator.engine_died.remote(self._name, self._in_flight_at_death))
            self._save()
            self._end_process()

    def _stop_soon(self, end_process: bool = False) -> None:
        """Begin to stop, in a thread: neither a signal handler nor the event loop may wait."""
        threading.Thread(target=self._stop, args=(end_process,), daemon=True).start()

    def _stop(self, end_process: bool) -> None:
        """End all generation, save what the traces have, then wait for the end or bring it on."""
        if self._stops_once.acquire(blocking=False):
            asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(SAVE_SECONDS)
            self._save()
            self._saved.set()
            ray.get(self._coordinator.closed.remote(self._name), timeout=5)
        if end_process:
            self._saved.wait(SAVE_SECONDS)
            self._end_process()

    async def _cancel(self) -> None:
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _keep_saving(self) -> None:
        while not self._saving_ends.wait(self._config.output.checkpoint_seconds):
            self._save()

    def _save(self) -> None:
        try:
            self._checkpoints.save()
        except Exception:  # a checkpoint that can't be written costs time later, never a row
            logger.exception("the running traces could not be saved")

    def _end_process(self) -> None:
        """End at once, but not without trying to take the engine's processes along."""
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        os._exit(1)

    def _refuse_endless_restarts(self) -> None:
        """Ray starts a dead actor again without end; stop when that gets no row finished."""
        starts = ray.get(self._coordinator.starting.remote())
        if starts > self._config.engine.replicas + IDLE_RESTARTS:
            raise EngineError(
                f"engines died {IDLE_RESTARTS + 1} times without finishing a row in between; what "
                "is finished is kept"
            )

    def _prepare(self, row: TableRow, part: str, number: int, samples: list[int]) -> list[Sample]:
        """The samples that are wanted of a row, with its prompt or what is wrong with it."""
        ref = PartRef.parse(part)
        seeds = {
            sample: derive_seed(
                self._policy.seed, ref.shard, number, sample, self._run_pass.attempt
            )
            for sample in samples
        }
        prompt: Sequence[int] = ()
        problem: RowError | None = None
        try:
            prompt = render_row(
                self._renderer, row, self._columns, self._config.prompt.system, self._suffix
            ).token_ids
        except RowError as error:
            problem = error.with_traceback(None)
        return [
            Sample((ref, number, sample), seed, prompt, problem) for sample, seed in seeds.items()
        ]

    async def _run(
        self,
        rows: list[list[Sample]],
        progress: Mapping[Key, TraceProgress],
        suspicions: list[Suspicion],
    ) -> list[list[Trace]]:
        """Run all rows at once; the traces of each, in the samples' order."""
        if self._stopped:
            raise asyncio.CancelledError
        tasks = [
            asyncio.ensure_future(self._row(samples, progress, suspicion))
            for samples, suspicion in zip(rows, suspicions, strict=True)
        ]
        self._tasks.update(tasks)
        try:
            return await asyncio.gather(*tasks)
        finally:
            self._tasks.difference_update(tasks)

    async def _row(
        self, samples: list[Sample], progress: Mapping[Key, TraceProgress], suspicion: Suspicion
    ) -> list[Trace]:
        """The traces of one row: of all samples at once, or of as many as it takes to agree."""
        agree, traces = self._policy.agree, list[Trace]()
        if agree is None or self._run_pass.is_retry:
            agree = len(samples)
        while left := still_to_draw([t.parsed for t in traces], agree, len(samples)):
            drawn = samples[len(traces) : len(traces) + left]
            runs = [self._sample(sample, progress[sample.key], suspicion) for sample in drawn]
            # One needs no task of its own.
            traces += [await runs[0]] if len(runs) == 1 else await asyncio.gather(*runs)
        return traces

    async def _sample(self, sample: Sample, progress: TraceProgress, suspicion: Suspicion) -> Trace:
        try:
            trace = await self._generate(sample, progress, suspicion)
        except RowError as error:
            trace = Trace(
                State.FAILED, sample.key[2], sample.seed, self._run_pass.attempt, error=str(error)
            )
        done = self._reporter.done
        done.prompt_tokens += trace.prompt_tokens or 0
        done.output_tokens += trace.think_tokens + trace.answer_tokens - trace.carried_tokens
        done.states[trace.state] += 1
        if trace.state != State.FAILED:
            done.think_lengths[length_bin(trace.think_tokens)] += 1
        return trace

    async def _generate(
        self, sample: Sample, progress: TraceProgress, suspicion: Suspicion
    ) -> Trace:
        if sample.error is not None:
            raise sample.error
        if progress.finish_reason is None:
            if suspicion == Suspicion.POISON:
                raise EngineKilledError("the engine died each time this row ran")
            async with self._turns.turn(suspicion):
                await self._follow(sample, progress)
        return self._maker.trace(
            progress,
            sample.prompt,
            sample=sample.key[2],
            seed=sample.seed,
            attempt=self._run_pass.attempt,
        )

    async def _follow(self, sample: Sample, progress: TraceProgress) -> None:
        """Bring one trace to its end, step by step as the policy says."""
        ref, row, number = sample.key
        max_output_tokens = self._trace_policy.max_output_tokens(len(sample.prompt))
        while progress.finish_reason is None:
            step = self._trace_policy.next_step(progress, sample.seed, max_output_tokens)
            carried = tuple(progress.token_ids)
            watch = RepetitionDetector(self._maker.text) if step.watch_loops else None
            if watch is not None:
                watch.add(carried)
            request = Request(
                f"{ref.shard}:{row}:{number}",
                sample.prompt,
                carried,
                step.policy,
                step.seed,
                step.stop_id,
                step.schema,
            )
            reason = await self._engine_runs(sample, request, partial(self._keep, progress, watch))
            self._trace_policy.end_step(progress, reason, max_output_tokens)
        self._reporter.done.generated += 1

    def _keep(
        self, progress: TraceProgress, watch: RepetitionDetector | None, new: Sequence[int]
    ) -> bool:
        """Add new tokens to ``progress``; whether they go in circles."""
        self._reporter.done.spent_tokens += len(new)
        progress.report(new)
        return watch is not None and watch.add(new)

    async def _engine_runs(self, sample: Sample, request: Request, on_tokens: OnTokens) -> str:
        if self._in_flight_at_death is not None:
            raise EngineDeadError("the engine has died before this row's turn")
        self._reporter.running += 1
        self._running[id(request)] = sample.row
        try:
            return await self._engine.generate(request, on_tokens)
        except EngineDeadError:
            if self._in_flight_at_death is None:  # the first to hear of it
                self._in_flight_at_death = list(dict.fromkeys(self._running.values()))
            raise
        finally:
            self._reporter.running -= 1
            del self._running[id(request)]

    def _table(self, block: pa.Table, rows: list[list[Trace]]) -> pa.Table:
        """The block's columns, each row for each of its traces, with the traces' beside them."""
        output = self._config.output
        table, traces = block, [trace for row in rows for trace in row]
        if any(len(row) != 1 for row in rows):
            table = block.take([i for i, row in enumerate(rows) for _ in row])
        fields = trace_fields({}, output.raw_text)
        for field, named in zip(fields, trace_fields(output.rename, output.raw_text), strict=True):
            values = pa.array([getattr(trace, field.name) for trace in traces], field.type)
            table = table.append_column(named, values)
        return table
