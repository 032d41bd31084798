"""The Ray actor: one engine process, from its start over signals and saving to its end.

Ray Data calls an actor for many blocks at once, each in a thread of its own. A thread renders its
block's prompts and hands the samples to the event loop of the engine's front end, where
`pipeline.execution.generation` runs them. An engine that dies ends the actor's process; Ray starts
the actor again and repeats its blocks. Running traces are saved at intervals, and when the actor is
told to end.
"""

import asyncio
import concurrent.futures
import gc
import json
import logging
import os
import signal
import socket
import threading
import time
import uuid
import weakref
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pyarrow as pa
import ray

from pipeline.answers.base import AnswerFormat
from pipeline.config.run_config import RunConfig
from pipeline.engines import Engine, build_engine, engine_type
from pipeline.errors import EngineDeadError, EngineError, ModelError, QwqBatchError
from pipeline.execution.generation import Generator
from pipeline.execution.hung_engines import address_here
from pipeline.execution.nodes import gpus_here
from pipeline.execution.placement import wait_until_placed
from pipeline.execution.ray_private import map_actor_context
from pipeline.execution.samples import (
    Origin,
    Sample,
    SampleBuilder,
    origins_of,
    with_traces,
)
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.crash_isolation import rendered_together
from pipeline.monitor.reporter import EngineReporter
from pipeline.output import engine_starts
from pipeline.output.checkpoints import Checkpoints
from pipeline.output.engine_starts import EngineStart
from pipeline.output.ledger import Ledger
from pipeline.output.made_by import EngineMark, marked
from pipeline.output.manifest import software_versions
from pipeline.planning import Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.trace import TraceMaker
from pipeline.storage import Storage
from pipeline.time_limits import ENGINE_CLOSE_SECONDS, ENGINE_SAVE_SECONDS

logger = logging.getLogger(__name__)
# Engine starts without a finished trace in between, beyond the first start of each engine.
IDLE_RESTARTS = 4
# The wait before another start of an engine begins at a second and doubles each time, up to this.
MAX_RESTART_WAIT_SECONDS = 300.0
# New objects between two garbage collections. Python's own 700 took a quarter of the time.
GARBAGE_THRESHOLD = 50_000


class EngineActor:
    """The callable that Ray Data's `map_batches` builds once per actor."""

    def __init__(
        self,
        config: RunConfig,
        columns: PromptColumns,
        run_pass: Pass,
        coordinator: CoordinatorClient,
    ) -> None:
        self._config, self._columns, self._run_pass = config, columns, run_pass
        self._coordinator, self._name = coordinator, uuid.uuid4().hex[:8]
        self._closing_once, self._stopping_once = threading.Lock(), threading.Lock()
        self._rendering = threading.Lock()
        self._saving_ends, self._saved = threading.Event(), threading.Event()
        self._loop = asyncio.new_event_loop()
        self._failure: QwqBatchError | None = None
        began = time.monotonic()
        try:
            self._start()
        except Exception as error:  # vLLM, PyTorch, a GPU's driver: all kinds
            # The first call raises it. Of an error in a constructor, Ray prints the stack and
            # passes on only the text.
            self._note_start(time.monotonic() - began, error)
            self._failure = self._failed_start(error)
            return
        self._note_start(time.monotonic() - began)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        coordinator.engine_ready(self._name)
        self._reporting = asyncio.run_coroutine_threadsafe(
            self._reporter.keep_reporting(), self._loop
        )
        threading.Thread(target=self._keep_saving, daemon=True).start()
        if threading.current_thread() is threading.main_thread():
            # A spot notice, a time limit or a drained node: only this process gets the signal.
            signal.signal(signal.SIGTERM, lambda *_: self._stop_soon(end_process=True))

    def _start(self) -> None:
        """Load the tokenizer and start the engine."""
        self._refuse_endless_restarts()
        config, run_pass = self._config, self._run_pass
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        maker = TraceMaker(
            tokenizer, config.think_format, self._answer_format(),
            config.output.raw_text, engine_type(config.engine).yarn_factor(config.engine),
        )  # fmt: skip
        ledger = Ledger(Storage(config.output.path))
        self._checkpoints = Checkpoints(ledger, self._name, run_pass.number)
        wait_until_placed()
        self._engine = self._build_engine(tokenizer)
        self._reporter = EngineReporter(
            self._coordinator, self._name, lambda: self._generator.load, self._stop_soon,
            lambda *control: self._generator.look_at_control_group(*control),  # noqa: PLW0108 (later)
        )  # fmt: skip
        renderer = PromptRenderer(tokenizer, self._engine.context_tokens, config.think_format)
        self._builder = SampleBuilder(config, self._columns, run_pass, renderer)
        self._generator = Generator(config, run_pass, self._engine, maker, self._reporter)
        self._mark = json.dumps(self._describe())
        gc.collect()
        gc.freeze()  # what exists by now stays
        gc.set_threshold(GARBAGE_THRESHOLD)

    def _describe(self) -> EngineMark:
        """What the footers of parts say of this engine."""
        engine = self._config.engine
        gpus = {gpu.name for gpu in gpus_here()} if engine.device == "gpu" else set[str]()
        return {
            "kind": engine.kind,
            "device": engine.device,
            **({"gpu": ", ".join(sorted(gpus))} if gpus else {}),
            "tensor_parallel": engine.tensor_parallel,
            "pipeline_parallel": engine.pipeline_parallel,
            "versions": software_versions(engine_type(engine).packages),
        }

    def _note_start(self, seconds: float, error: Exception | None = None) -> None:
        """Keep beside the output what the engine found, or why it did not start, if possible."""
        try:
            self._write_start(seconds, error)
        except Exception:  # it is for people, and must not end what goes on
            logger.warning("the engine's start could not be noted", exc_info=True)

    def _write_start(self, seconds: float, error: Exception | None) -> None:
        found: dict[str, Any] = {}
        reason = None if error is None else _reason(error)
        if error is None:
            found |= engine_type(self._config.engine).details(self._engine)
        gpus = gpus_here() if self._config.engine.device == "gpu" else ()
        if gpus:
            found |= {"GPUs of the node": f"{len(gpus)} x {gpus[0].name}", "driver": gpus[0].driver}
        found |= software_versions(engine_type(self._config.engine).packages)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        start = EngineStart(self._name, socket.gethostname(), round(seconds, 1), at, found, reason)
        logger.info("engine %s on %s: %s", start.name, start.host, reason or start.summary)
        engine_starts.write(Storage(self._config.output.path), start)

    def _build_engine(self, tokenizer: Any) -> Engine:
        """Start the engine; the first of a run at a second try if need be; raises `ModelError`."""
        try:
            return build_engine(self._config, tokenizer)
        except ModelError:
            if self._coordinator.was_ready():
                raise  # a process of its own tries again: `_failed_start`
            logger.exception("the engine did not start; trying once more")
            return build_engine(self._config, tokenizer)

    def _failed_start(self, error: Exception) -> QwqBatchError:
        """The error with which the run is to end, because this engine could not start.

        If another engine of this tier was ready, a bad GPU is the likely reason. Then this ends the
        process instead, after a while: Ray starts the actor again, on another node if one has
        room, and the other engines go on. Only if none of them generates anything meanwhile, the
        run ends.
        """
        if isinstance(error, EngineError):
            return error
        failed = self._coordinator.engine_start_failed(ray.get_runtime_context().get_node_id())
        if failed is None:
            return error if isinstance(error, QwqBatchError) else EngineError(_reason(error))
        if failed.idle > IDLE_RESTARTS:
            return EngineError(
                f"an engine could not start again ({failed.idle} tries, in which no engine "
                f"generated anything): {_reason(error)}"
            )
        logger.error("an engine could not start again; another try follows", exc_info=error)
        time.sleep(min(2.0**failed.doublings, MAX_RESTART_WAIT_SECONDS))
        os._exit(1)

    def _answer_format(self) -> AnswerFormat:
        try:
            return self._config.answer.load_format()
        except ValueError as error:  # this node lacks something that the driver's node has
            raise ModelError(f"answer: {error}") from None

    def _refuse_endless_restarts(self) -> None:
        """Raise `EngineError` when restarts finish no trace: Ray restarts dead actors for ever."""
        starts = self._coordinator.engine_starting(address_here(self._name))
        if starts > self._config.engine.max_replicas + IDLE_RESTARTS:
            raise EngineError(
                f"engines died {IDLE_RESTARTS + 1} times without finishing a row in between; "
                "finished rows are kept"
            )

    def __call__(self, block: pa.Table) -> pa.Table:
        """The traces of a block: a row for each sample of each of its rows, in order."""
        if self._failure is not None:
            raise self._failure
        self._close_with_actor()
        origins = origins_of(block)
        rows = self._samples(block, origins)
        running = asyncio.run_coroutine_threadsafe(self._generator.run(rows), self._loop)
        try:
            traces = running.result()
        except EngineDeadError as error:
            # Not passed on: Ray Data would end the run. When this process ends, Ray starts the
            # actor again elsewhere and repeats the blocks that it had.
            self._die(error)
        except concurrent.futures.CancelledError:
            threading.Event().wait()  # told to stop: the process ends, this block with it
        table = marked(with_traces(block, traces, self._config), self._mark)
        self._loop.call_soon_threadsafe(self._reporter.release, [o.row_key for o in origins])
        return table

    def _samples(self, block: pa.Table, origins: Sequence[Origin]) -> list[list[Sample]]:
        """The samples of each row, with what earlier engines have saved of them.

        The coordinator knows whose prompts are made at any time. Those of suspects are made alone.
        """
        rows = [origin.row_key for origin in origins]
        suspicions, living = self._coordinator.hold(self._name, rows)
        keys = [key for origin in origins for key in origin.keys]
        each = iter(self._checkpoints.start(keys, living))
        progress = [list(islice(each, len(origin.keys))) for origin in origins]
        samples: list[list[Sample]] = [[] for _ in rows]
        with self._rendering:  # threads that take turns waste less than threads that compete
            for together in rendered_together(suspicions):
                self._coordinator.rendering(self._name, [rows[i] for i in together])
                for i in together:
                    samples[i] = self._builder.samples(
                        TableRow(block, i), origins[i], progress[i], suspicions[i]
                    )
            self._coordinator.rendering(self._name, ())
        return samples

    def close(self) -> None:
        """Shut the engine down, then tell the coordinator."""
        self._reporting.cancel()
        self._saving_ends.set()
        try:
            self._engine.close()
        finally:
            self._reporter.close()

    def _close_with_actor(self) -> None:
        """Close when Ray Data ends the actor in good order, which drops its context object.

        `__del__` is not enough. An error that a row has raised can hold a reference to this object,
        in a cycle of frames, until a later garbage collection, and the process ends first.
        """
        context = map_actor_context()
        if context is not None and self._closing_once.acquire(blocking=False):
            weakref.finalize(context, self.close)

    def __del__(self) -> None:
        # For an actor that never had a block.
        if hasattr(self, "_reporting") and self._closing_once.acquire(blocking=False):
            self.close()

    def _die(self, error: EngineDeadError) -> None:
        """Report the rows on which the engine died, save the traces, end the process."""
        with self._stopping_once:  # never released: one of all blocks' threads does it
            logger.error("engine %s died: %s", self._name, error)
            rows = self._generator.in_flight.at_death
            self._coordinator.engine_died(self._name, rows or ())
            self._save()
            self._end_process()

    def _stop_soon(self, end_process: bool = False) -> None:
        """Begin to stop, in a thread: neither a signal handler nor the event loop may wait."""
        threading.Thread(target=self._stop, args=(end_process,), daemon=True).start()

    def _stop(self, end_process: bool) -> None:
        """End all generation and save the traces; then end the process or wait for its end."""
        if self._stopping_once.acquire(blocking=False):
            cancelling = asyncio.run_coroutine_threadsafe(self._generator.cancel(), self._loop)
            cancelling.result(ENGINE_SAVE_SECONDS)
            self._save()
            self._saved.set()
            self._coordinator.engine_closed(self._name)
        if end_process:
            self._saved.wait(ENGINE_SAVE_SECONDS)
            self._end_process()

    def _keep_saving(self) -> None:
        while not self._saving_ends.wait(self._config.output.checkpoint_seconds):
            self._save()

    def _save(self) -> None:
        try:
            self._checkpoints.save()
        except Exception:  # a checkpoint that can't be written costs time later, never a row
            logger.exception("the running traces could not be saved")

    def _end_process(self) -> None:
        """End at once, but try to end the engine's processes first."""
        closing = threading.Thread(target=self.close, daemon=True)
        closing.start()
        closing.join(ENGINE_CLOSE_SECONDS)
        os._exit(1)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, QwqBatchError) else repr(error)
