"""The run, from configuration to report: the whole flow on one screen.

summary = run(load_config("configs/demo.yaml"))
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from pipeline.actor import EngineActor, engine_slots
from pipeline.cluster import (
    cluster,
    configure_ray_data,
    engine_resources,
    explain,
    wait_until_closed,
)
from pipeline.config import RunConfig
from pipeline.engines.vllm import check_engine_args
from pipeline.errors import OutputError
from pipeline.ledger import Extent, Ledger
from pipeline.manifest import run_settings, software_versions
from pipeline.model import load_tokenizer
from pipeline.plan import Plan, make_plan, split_parts
from pipeline.report import Summary, summarize
from pipeline.schema import TRACE_COLUMNS, PromptColumns, output_schema, prompt_columns
from pipeline.sink import TraceSink
from pipeline.source import PromptSource, find_shards
from pipeline.storage import Storage
from pipeline.telemetry import start_board

Watch = Callable[[Any, int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Job:
    """A run made ready: everything that can be refused has been."""

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    traces: pa.Schema
    settings: dict[str, Any]
    ledger: Ledger
    plan: Plan

    @property
    def metadata(self) -> dict[str, Any]:
        """What each output file says of its making."""
        names = {name: self.config.output.rename.get(name, name) for name in TRACE_COLUMNS}
        return {"columns": names, "settings": self.settings, "versions": software_versions()}


def prepare(config: RunConfig) -> Job:
    """Read footers and names only; raises a `QwqBatchError` for whatever would fail later."""
    check_engine_args(config.engine.vllm)
    shards, prompts = find_shards(config.input.path)
    wanted = config.input
    columns = prompt_columns(
        prompts, PromptColumns(wanted.prompt_column, wanted.messages_column, wanted.tools_column)
    )
    traces = output_schema(prompts, config.output.rename, config.output.raw_text)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    settings = run_settings(config, columns, tokenizer.chat_template)
    ledger = Ledger(Storage(config.output.path))
    _refuse_output_in_input(config, ledger.store)
    ledger.check_run(settings)
    done = ledger.contents()
    plan = make_plan(split_parts(shards, config.output.rows_per_part), done.parts, done.fragments)
    return Job(config, columns, prompts, traces, settings, ledger, plan)


def _refuse_output_in_input(config: RunConfig, output: Storage) -> None:
    """An output below the input folder would be read as prompts by the next run."""
    folder = Storage(config.input.path)
    if folder.is_folder() and f"{output.root}/".startswith(f"{folder.root}/"):
        raise OutputError(
            f"output.path {config.output.path} lies in input.path {config.input.path}; choose a "
            "folder outside it"
        )


def unwatched(board: Any, rows: int) -> AbstractContextManager[None]:  # noqa: ARG001
    """Show nothing."""
    return nullcontext()


def run(config: RunConfig, watch: Watch = unwatched) -> Summary:
    """Do what is still to do, and report on the whole output."""
    job = prepare(config)
    job.ledger.open_run(job.settings, software_versions())
    if job.plan.todo:
        with cluster(config):
            execute(job, watch)
    settle(job)
    return summarize(job.ledger.store, job.plan, config.policy.n)


def execute(job: Job, watch: Watch) -> None:
    """Source, engines, sink: the part that Ray Data runs."""
    engine, board = job.config.engine, start_board()
    _, blocks_in_flight = concurrency(job.config)
    source = PromptSource(job.plan.todo, job.config.input.path, job.prompts)
    configure_ray_data(job.config)
    traces = (
        ray.data.read_datasource(source, override_num_blocks=source.read_tasks)
        .repartition(target_num_rows_per_block=engine.block_rows)
        .map_batches(
            EngineActor,
            fn_constructor_args=(job.config, job.columns, board),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=engine.replicas,
                max_tasks_in_flight_per_actor=blocks_in_flight,
                max_concurrent_calls_per_actor=blocks_in_flight,
                enable_true_multi_threading=True,
            ),
            **engine_resources(engine),
        )
    )
    with watch(board, job.plan.rows_todo):
        try:
            traces.write_datasink(TraceSink(job.ledger.store.location, job.traces, job.metadata))
        except Exception as error:  # Ray raises what tasks raised, and all kinds of its own
            raise explain(error) from None
        finally:
            del traces  # it holds the actors' handles, and an actor ends with its last handle
        wait_until_closed(board)


def concurrency(config: RunConfig) -> tuple[int, int]:
    """Rows and blocks in flight at one engine.

    A block holds its place until its slowest row ends, so that four times the engine's slots must
    be in flight to keep them full; a row with n samples takes n slots.
    """
    rows = config.engine.rows_in_flight or 4 * math.ceil(engine_slots(config) / config.policy.n)
    blocks = max(2, math.ceil(rows / config.engine.block_rows))
    return blocks * config.engine.block_rows, blocks


def settle(job: Job) -> None:
    """Commit what is complete but was not committed, and remove fragments of finished parts."""
    done = job.ledger.contents()
    for part in job.plan.parts:
        if part.name in done.parts:
            if part.name in done.fragments:
                job.ledger.discard(Extent.of(part))
        elif part.name in done.fragments or part.rows == 0:
            job.ledger.commit(Extent.of(part), job.traces, job.metadata)
