"""The Ray actor: one engine, kept full with the rows of many small blocks.

Ray Data calls an actor for many blocks at once, each in a thread of its own. A thread renders its
block's prompts and hands them to the event loop on which the engine's front end runs. A row that
can't run stays in its row; an engine that dies ends the actor, and Ray does its blocks again.
"""

import asyncio
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data

from pipeline.config import RunConfig
from pipeline.engines import Engine, Generation, Request
from pipeline.errors import (
    EngineDeadError,
    EngineError,
    ModelError,
    QwqBatchError,
    RequestRejectedError,
    RowError,
)
from pipeline.model import load_tokenizer
from pipeline.plan import PARQUET
from pipeline.prompts import PromptRenderer, TableRow, render_row
from pipeline.reasoning import CLOSE_TAG, State, count_think_tokens, split, state_of
from pipeline.sampling import PRESETS, derive_seed
from pipeline.schema import PART_COLUMN, ROW_COLUMN, PromptColumns, trace_fields
from pipeline.telemetry import Meter

logger = logging.getLogger(__name__)
DEFAULT_SLOTS = 64
IDLE_RESTARTS = 4
CLOSE_SECONDS = 10


@dataclass(frozen=True)
class Trace:
    """One sample of one row: our output columns, see `pipeline.schema.TRACE_FIELDS`."""

    state: str
    sample: int
    seed: int
    think: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    think_tokens: int = 0
    answer_tokens: int = 0
    error: str | None = None
    raw: str | None = None


def build_engine(config: RunConfig, tokenizer: Any) -> Engine:
    """The engine that the config names."""
    think_format, slots = PRESETS[config.model.preset].think_format, engine_slots(config)
    if config.engine.kind == "simulated":
        from pipeline.engines.simulated import SimulatedEngine

        return SimulatedEngine(config.engine.simulated, think_format, slots, tokenizer)
    from pipeline.engines.vllm import VllmEngine

    return VllmEngine(config, slots)


def engine_slots(config: RunConfig) -> int:
    """How many sequences one engine runs at once (``engine.vllm.max_num_seqs``)."""
    return int(config.engine.vllm.get("max_num_seqs", DEFAULT_SLOTS))


class EngineActor:
    """The callable that Ray Data's `map_batches` builds once per actor."""

    def __init__(self, config: RunConfig, columns: PromptColumns, board: Any) -> None:
        self._config, self._columns, self._board = config, columns, board
        self._closes_once = threading.Lock()
        self._name = uuid.uuid4().hex[:8]
        self._meter = Meter(board, self._name)
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
        board.opened.remote(self._name)
        self._reporting = asyncio.run_coroutine_threadsafe(self._meter.keep_reporting(), self._loop)

    def _start(self) -> None:
        """Load the tokenizer and start the engine; raises a `QwqBatchError` if that can't be."""
        self._refuse_endless_restarts()
        config = self._config
        self._policy = config.policy
        self._think_format = PRESETS[config.model.preset].think_format
        self._tokenizer = load_tokenizer(config.model.path, config.model.revision)
        self._close_id = _single_token(self._tokenizer, CLOSE_TAG)
        try:
            self._engine = build_engine(config, self._tokenizer)
        except ModelError:
            logger.exception("the engine did not start; trying once more")
            self._engine = build_engine(config, self._tokenizer)
        self._renderer = PromptRenderer(self._tokenizer, self._engine.context_tokens)

    def __call__(self, block: pa.Table) -> pa.Table:
        """The traces of a block: n rows for each of its rows, in order."""
        if self._failure is not None:
            raise self._failure
        self._close_with_actor()
        prepared = [self._prepare(TableRow(block, i)) for i in range(block.num_rows)]
        running = asyncio.run_coroutine_threadsafe(self._run(prepared), self._loop)
        try:
            traces = running.result()
        except EngineDeadError as error:
            # Not an exception for Ray Data, which would end the job: this process ends, Ray
            # starts the actor again elsewhere and repeats the blocks that it had.
            logger.error("engine %s died: %s", self._name, error)  # noqa: TRY400
            self._end_process()
        return self._table(block, traces)

    def close(self) -> None:
        """Shut the engine down, then say so."""
        self._reporting.cancel()
        try:
            self._engine.close()
        finally:
            self._meter.close()

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

    def _end_process(self) -> None:
        """End at once, but not without trying to take the engine's processes along."""
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        os._exit(1)

    def _refuse_endless_restarts(self) -> None:
        """Ray starts a dead actor again without end; stop when that gets no row finished."""
        starts = ray.get(self._board.starting.remote())
        if starts > self._config.engine.replicas + IDLE_RESTARTS:
            raise EngineError(
                f"engines died {IDLE_RESTARTS + 1} times without finishing a row in between; what "
                "is finished is kept"
            )

    def _prepare(self, row: TableRow) -> list[Request | Trace]:
        """The requests of a row, or what it says if it can't run: n of either."""
        shard, number = _shard_of(row[PART_COLUMN]), row[ROW_COLUMN]
        seeds = [derive_seed(self._policy.seed, shard, number, i) for i in range(self._policy.n)]
        try:
            added = self._config.prompt
            prompt = render_row(self._renderer, row, self._columns, added.system, added.suffix_text)
        except RowError as error:
            return [
                Trace(State.FAILED, sample, seed, error=str(error))
                for sample, seed in enumerate(seeds)
            ]
        return [Request(prompt.token_ids, self._policy, seed) for seed in seeds]

    async def _run(self, prepared: list[list[Request | Trace]]) -> list[Trace]:
        """Run all samples of all rows at once; the traces in the order of rows and samples."""
        jobs = [self._sample(i, item) for row in prepared for i, item in enumerate(row)]
        traces = await asyncio.gather(*jobs)
        self._meter.done.rows += len(prepared)
        return traces

    async def _sample(self, sample: int, item: Request | Trace) -> Trace:
        trace = item if isinstance(item, Trace) else await self._generate(sample, item)
        self._meter.done.prompt_tokens += trace.prompt_tokens or 0
        self._meter.done.output_tokens += trace.think_tokens + trace.answer_tokens
        self._meter.done.states[trace.state] += 1
        return trace

    async def _generate(self, sample: int, request: Request) -> Trace:
        self._meter.running += 1
        try:
            generation = await self._engine.generate(request)
        except RequestRejectedError as error:
            return Trace(State.FAILED, sample, request.seed, error=str(error))
        finally:
            self._meter.running -= 1
        return self._trace(sample, request, generation)

    def _trace(self, sample: int, request: Request, generation: Generation) -> Trace:
        text, token_ids = generation.text, generation.token_ids
        parts = split(text, self._think_format, ended=generation.finish_reason == "stop")
        close_at = token_ids.index(self._close_id) if self._close_id in token_ids else None
        think_tokens = count_think_tokens(
            len(token_ids), parts.think_end, len(text), close_at, self._length_of(token_ids)
        )
        return Trace(
            state=state_of(parts, generation.finish_reason),
            sample=sample,
            seed=request.seed,
            think=parts.think,
            answer=parts.answer,
            finish_reason=generation.finish_reason,
            prompt_tokens=len(request.prompt_token_ids),
            think_tokens=think_tokens,
            answer_tokens=len(token_ids) - think_tokens,
            raw=text,
        )

    def _length_of(self, token_ids: list[int]) -> Callable[[int], int]:
        return lambda k: len(self._tokenizer.decode(token_ids[:k], skip_special_tokens=True))

    def _table(self, block: pa.Table, traces: list[Trace]) -> pa.Table:
        """The block's columns, each row n times, with the traces' beside them."""
        output = self._config.output
        table = block
        if self._policy.n > 1:
            table = block.take([i for i in range(block.num_rows) for _ in range(self._policy.n)])
        fields = trace_fields({}, output.raw_text)
        for field, named in zip(fields, trace_fields(output.rename, output.raw_text), strict=True):
            values = pa.array([getattr(trace, field.name) for trace in traces], field.type)
            table = table.append_column(named, values)
        return table


def _shard_of(extent: str) -> str:
    """The shard's name in a part's: without the part's number, so that seeds follow the shard."""
    return extent.rsplit(":", 2)[0].removesuffix(PARQUET).rpartition(".")[0]


def _single_token(tokenizer: Any, text: str) -> int:
    """The id of ``text`` if it is one token of the vocabulary, else -1."""
    found = tokenizer.convert_tokens_to_ids(text)
    return found if isinstance(found, int) and found != tokenizer.unk_token_id else -1
