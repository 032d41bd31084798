"""The run, from configuration to report: the whole flow on one screen.

summary = run(load_config("configs/demo.yaml"))
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from pipeline import lease, passes
from pipeline.actor import EngineActor
from pipeline.cluster import (
    cluster,
    configure_ray_data,
    explain,
    wait_until_closed,
)
from pipeline.config import RunConfig
from pipeline.duplicates import set_apart
from pipeline.engines import engine_slots
from pipeline.engines.vllm import check_engine_args
from pipeline.errors import InputError, OutputError
from pipeline.figures import Fleet
from pipeline.journal import Extent
from pipeline.lanes import AS_CONFIGURED, NO_ENGINE, Lane, make_lanes
from pipeline.ledger import SAMPLES, Ledger
from pipeline.lengths import by_lane
from pipeline.limits import Limits, Watch, fleet_of
from pipeline.manifest import RETRY_MAY_CHANGE, run_settings, software_versions
from pipeline.model import load_model_config, load_tokenizer
from pipeline.order import WAVES, ByColumn, ByTraces, Lengths, check_column
from pipeline.pilot import spread, still_to_do
from pipeline.placement import Places, with_backend
from pipeline.plan import Part, Pass, Plan, Range, Shard, split_parts
from pipeline.record import recorded
from pipeline.report import Summary, summarize
from pipeline.schema import TRACE_COLUMNS, PromptColumns, output_schema, prompt_columns
from pipeline.sink import TraceSink
from pipeline.source import PromptSource, find_shards
from pipeline.stop import Stop
from pipeline.storage import Storage, check_reachable
from pipeline.telemetry import start_board

# Measured, see pipeline/DESIGN.md: what keeps engines full, and what a block costs.
TOKENS_A_BLOCK, MOST_BLOCK_ROWS, BLOCKS_AN_ENGINE = 60_000, 256, 8
# One task writes the rows that end while each slot makes so many tokens, at most: some seconds.
# But it takes so many tasks at least, so that what is durable grows with what is finished.
TOKENS_A_WRITE, LEAST_WRITES = 512, 64


@dataclass(frozen=True)
class Job:
    """A run made ready: everything that can be refused has been."""

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    traces: pa.Schema
    settings: dict[str, Any]
    ledger: Ledger
    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    lanes: tuple[Lane, ...]

    @property
    def plan(self) -> Plan:
        """What is to do of the run itself, by a listing made now."""
        return passes.plan_run(self.ledger, self.parts)

    def lengths(self, work: Pass) -> Lengths | None:
        """What says how long the traces of ``work`` will be, if anything does."""
        if work.first:
            return ByTraces(self.ledger.store.location, self.names)
        column = self.config.input.length_column
        return None if column is None else ByColumn(column)

    @property
    def names(self) -> dict[str, str]:
        """Our columns: their names in this run."""
        return {name: self.config.output.rename.get(name, name) for name in TRACE_COLUMNS}

    def metadata(self, work: Pass) -> dict[str, Any]:
        """What each output file of ``work`` says of its making."""
        settings = {**self.settings, SAMPLES: work.stop}
        return {"columns": self.names, "settings": settings, "versions": software_versions()}


def prepare(config: RunConfig, may_change: Sequence[str] = ()) -> Job:
    """Read footers and names only; raises a `QwqBatchError` for whatever would fail later.

    ``may_change``: how settings begin that need not be those of the run that is there.
    """
    check_engine_args(config.engine.vllm)
    for url in (config.input.path, config.output.path):
        check_reachable(url)
    ledger = Ledger(Storage(config.output.path))
    shards, prompts = find_shards(config.input.path, ledger.known_shards())
    wanted = config.input
    columns = prompt_columns(
        prompts,
        PromptColumns(
            wanted.prompt_column,
            wanted.messages_column,
            wanted.tools_column,
            config.prompt.template,
        ),
    )
    reference = config.answer.reference_column
    if reference is not None and reference not in prompts.names:
        raise InputError(
            f"answer.reference_column is {reference}, but the input has only the columns "
            f"{', '.join(prompts.names)}"
        )
    check_column(prompts, wanted.length_column)
    traces = output_schema(prompts, config.output.rename, config.output.raw_text)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    settings = run_settings(config, columns, tokenizer.chat_template)
    refuse_output_in_input(config, ledger.store)
    ledger.check_run(settings, may_change)
    ledger.check_shards(shards)
    parts = tuple(split_parts(shards, config.output.rows_per_part))
    lanes: tuple[Lane, ...] = (AS_CONFIGURED,)
    if config.engine.context == "auto":
        model = load_model_config(config.model.path, config.model.revision)
        lanes = make_lanes(config, model)
    return Job(config, columns, prompts, traces, settings, ledger, tuple(shards), parts, lanes)


def refuse_output_in_input(config: RunConfig, output: Storage) -> None:
    """An output below the input folder would be read as prompts by the next run."""
    folder = Storage(config.input.path)
    if folder.is_folder() and f"{output.root}/".startswith(f"{folder.root}/"):
        raise OutputError(
            f"output.path {config.output.path} lies in input.path {config.input.path}; choose a "
            "folder outside it"
        )


def unwatched(board: Any, rows: int, lane: str) -> AbstractContextManager[None]:  # noqa: ARG001
    """Show nothing."""
    return nullcontext()


def run(config: RunConfig, watch: Watch = unwatched, limits: Limits | None = None) -> Summary:
    """Do what is still to do, and report on the whole output.

    ``limits`` are those of ``config``, unless others are given; to reach one raises
    `LimitReachedError`.
    """
    job = prepare(config)
    limits = limits or Limits(config)
    watch = recorded(limits.counted(watch), job.ledger.store)
    with at_work(job) as stop, limits.kept(stop.because):
        job.ledger.open_run(job.settings, software_versions())
        job.ledger.record_shards(job.shards, job.prompts, job.settings["input.path"])
        for work in passes.to_run(job.ledger, config.policy.n):
            carry_out(job, work, watch, stop)
    return summarize(job.ledger.store, job.parts, config.policy.n, config.policy.agree)


def retry(
    config: RunConfig,
    states: Sequence[str] = (),
    foreign: float | None = None,
    watch: Watch = unwatched,
) -> Summary:
    """Do the traces again that ended in ``states``, with the policy of ``config``.

    And those with more than the share ``foreign`` of letters in scripts that their prompt does not
    use.
    """
    job = prepare(config, RETRY_MAY_CHANGE)
    limits = Limits(config)
    watch = recorded(limits.counted(watch), job.ledger.store)
    with at_work(job) as stop, limits.kept(stop.because):
        work = passes.to_retry(job.ledger, job.settings, states, foreign)
        carry_out(job, work, watch, stop)
        samples = passes.samples_there(job.ledger)
    return summarize(job.ledger.store, job.parts, samples, config.policy.agree)


def pilot(config: RunConfig, rows: int, watch: Watch = unwatched) -> Job:
    """Do ``rows`` rows from all over the run, with one engine, unless they are done.

    They are part of the run. `pipeline.estimate` projects what comes out.
    """
    one = config.engine.model_copy(update={"replicas": 1})
    job = prepare(config.model_copy(update={"engine": one}))
    limits = Limits(job.config)
    watch = recorded(limits.counted(watch), job.ledger.store)
    with at_work(job) as stop, limits.kept(stop.because):
        job.ledger.open_run(job.settings, software_versions())
        job.ledger.record_shards(job.shards, job.prompts, job.settings["input.path"])
        first = next(iter(passes.to_run(job.ledger, config.policy.n)))
        if first.stop != config.policy.n:
            raise OutputError(
                f"output.path {config.output.path} has {first.stop} samples of each row, and a "
                "pilot of more is not possible; set sampling.n to that, or choose another "
                "output.path"
            )
        carry_out(job, first, watch, stop, spread(job.parts, rows))
    return job


@contextmanager
def at_work(job: Job) -> Iterator[Stop]:
    """The one driver at work on this output, until a signal or another driver ends it."""
    with Stop().listening() as stop, lease.hold(job.ledger.store, stop.because):
        yield stop


def carry_out(
    job: Job, work: Pass, watch: Watch, stop: Stop, only: Sequence[Range] | None = None
) -> None:
    """Run what is to do of ``work`` (nothing: no engine starts) and finish its parts.

    ``only``: of these single rows.
    """
    plan = passes.plan(job.ledger, job.parts, work)
    if only is not None:
        plan = replace(plan, todo=still_to_do(only, plan.todo))
    if plan.todo:
        with cluster(job.config):
            stop.take_signals()
            own, copies = set_apart(job, work, plan.todo)
            copies.write(ready=True)
            for lane, todo in by_lane(job.config, job.columns, job.prompts, job.lanes, own):
                stop.check()
                execute(job, work, lane, replace(plan, todo=todo), watch, stop)
            stop.check()
            copies.write(ready=False)
        stop.take_signals()
    stop.check()
    settle(job, work)
    if work.number and not passes.plan(job.ledger, job.parts, work).todo:
        job.ledger.close_pass(work)


def execute(job: Job, work: Pass, lane: Lane, plan: Plan, watch: Watch, stop: Stop) -> None:
    """Source, engines of one lane, sink: the part that Ray Data runs."""
    config = with_backend(lane.applied(job.config))
    engine, places = config.engine, Places(config.engine)
    fleet = Fleet(0, 0) if lane.name == NO_ENGINE else fleet_of(config)
    board = start_board(plan.todo, job.ledger.store.url, fleet)
    samples = min(len(work.samples), config.policy.first_draw)
    block_rows, blocks_in_flight = concurrency(config, samples, plan.rows_todo)
    rows_at_once = max(1, engine_slots(config) * engine.replicas // samples)
    source = PromptSource(
        plan.todo, work.samples, config.input.path, job.prompts, job.lengths(work),
        WAVES * rows_at_once,
    )  # fmt: skip
    configure_ray_data(config)
    traces = (
        # One read task at a time: rows stay in order, and to read them is a thousand times as fast
        # as to run them.
        ray.data.read_datasource(source, override_num_blocks=source.read_tasks, concurrency=1)
        .repartition(target_num_rows_per_block=block_rows)
        .map_batches_internal(  # `map_batches` refuses GPUs without a batch size; a block is one
            EngineActor,
            fn_constructor_args=(config, job.columns, work, board),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(
                size=engine.replicas,
                max_tasks_in_flight_per_actor=blocks_in_flight,
                max_concurrent_calls_per_actor=blocks_in_flight,
                enable_true_multi_threading=True,
            ),
            **places.options,
        )
    )
    metadata, answer = job.metadata(work), config.answer
    sink = TraceSink(
        job.ledger.store.location, work, job.traces, metadata, answer, board,
        rows_a_write(rows_at_once, config.policy.max_tokens, plan.rows_todo),
    )  # fmt: skip
    with watch(board, plan.rows_todo, lane.name), places, stop.engines_of(board):
        try:
            traces.write_datasink(sink)
        except Exception as error:  # Ray raises what tasks raised, and all kinds of its own
            raise explain(error) from None
        finally:
            del traces  # it holds the actors' handles, and an actor ends with its last handle
        wait_until_closed(board)


def concurrency(config: RunConfig, samples: int, rows: int) -> tuple[int, int]:
    """The rows of a block, and the blocks in flight at one engine; ``samples``: of a row at once.

    A block holds its place until its slowest row ends. So blocks of long traces are small, and the
    larger they are, the more rows must be in flight to keep the engine's slots full.
    """
    engine, policy = config.engine, config.policy
    block_rows = engine.block_rows or max(
        1,
        min(
            TOKENS_A_BLOCK // (policy.max_tokens * samples),
            MOST_BLOCK_ROWS,
            rows // (BLOCKS_AN_ENGINE * engine.replicas),
        ),
    )
    in_flight = engine.rows_in_flight or waves(block_rows) * engine_slots(config) / samples
    return block_rows, max(2, math.ceil(in_flight / block_rows))


def rows_a_write(at_once: int, max_tokens: int, rows: int) -> int:
    """How many finished rows one task writes, of ``rows``, so many of them running ``at_once``."""
    return max(1, min(at_once * TOKENS_A_WRITE // max_tokens, rows // LEAST_WRITES))


def waves(block_rows: int) -> float:
    """How many times its slots an engine must have in flight, in blocks of so many rows."""
    return 1.25 + 0.75 * math.log2(block_rows)


def settle(job: Job, work: Pass) -> None:
    """Commit what is complete but was not committed, and remove fragments of finished parts."""
    contents = job.ledger.contents()
    done, journal = contents.parts(work.number), contents.journal.get(work.number, {})
    for part in job.parts:
        if part.name in done:
            if part.name in journal:
                job.ledger.discard(Extent.of(part), work.number)
        elif part.name in journal or (part.rows == 0 and work.number == 0):
            job.ledger.commit(Extent.of(part), work, job.traces, job.metadata(work))
