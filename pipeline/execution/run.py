"""The run, from configuration to report: the whole flow on one screen.

summary = run(load_config("configs/demo.yaml"))
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import ray
from ray.data import ActorPoolStrategy

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.errors import OutputError
from pipeline.execution.actor import EngineActor
from pipeline.execution.cluster import (
    cluster,
    configure_ray_data,
    explain,
    wait_until_closed,
)
from pipeline.execution.context_tiers import NO_ENGINE, ContextTier
from pipeline.execution.duplicates import split_duplicates
from pipeline.execution.pilot import still_to_do, stratified_rows
from pipeline.execution.placement import EnginePlacements, fitted_to_cluster
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.prompt_lengths import by_tier
from pipeline.execution.shutdown import Shutdown
from pipeline.execution.sink import TraceSink
from pipeline.execution.source import PromptSource
from pipeline.input.longest_first import LONGEST_FIRST_WAVES
from pipeline.monitor.coordinator import start_coordinator
from pipeline.monitor.figures import EnginePool
from pipeline.monitor.history import recorded
from pipeline.monitor.limits import Limits, RunObserver, pool_of
from pipeline.output import lease, passes
from pipeline.output.manifest import RETRY_MAY_CHANGE
from pipeline.output.summary import Summary, summarize
from pipeline.planning import PartRef, Pass, Plan, Range

# Measured, see pipeline/DESIGN.md: what keeps engines full, and what a block costs.
TOKENS_A_BLOCK, MOST_BLOCK_ROWS, BLOCKS_AN_ENGINE = 60_000, 256, 8
# One task writes the rows that end while each slot makes so many tokens, at most: some seconds.
# But it takes so many tasks at least, so that what is durable grows with what is finished.
TOKENS_A_WRITE, LEAST_WRITES = 512, 64


def no_observer(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:  # noqa: ARG001
    """Show nothing."""
    return nullcontext()


def run(
    config: RunConfig, watch: RunObserver = no_observer, limits: Limits | None = None
) -> Summary:
    """Do what is still to do, and report on the whole output.

    ``limits`` are those of ``config``, unless others are given; to reach one raises
    `LimitReachedError`.
    """
    prepared = prepare(config)
    limits = limits or Limits(config)
    watch = recorded(limits.tracking(watch), prepared.ledger.store)
    with exclusive_driver(prepared) as stop, limits.enforced(stop.request):
        prepared.ledger.open_run(prepared.settings, prepared.versions)
        prepared.ledger.record_shards(
            prepared.shards, prepared.prompts, prepared.settings["input.path"]
        )
        for run_pass in passes.to_run(prepared.ledger, config.sampling.n):
            execute_pass(prepared, run_pass, watch, stop)
    return summarize(
        prepared.ledger.store, prepared.parts, config.sampling.n, config.sampling.agree
    )


def retry(
    config: RunConfig,
    states: Sequence[str] = (),
    foreign: float | None = None,
    watch: RunObserver = no_observer,
) -> Summary:
    """Do the traces again that ended in ``states``, with the policy of ``config``.

    And those with more than the share ``foreign`` of letters in scripts that their prompt does not
    use.
    """
    prepared = prepare(config, RETRY_MAY_CHANGE)
    limits = Limits(config)
    watch = recorded(limits.tracking(watch), prepared.ledger.store)
    with exclusive_driver(prepared) as stop, limits.enforced(stop.request):
        run_pass = passes.to_retry(prepared.ledger, prepared.settings, states, foreign)
        execute_pass(prepared, run_pass, watch, stop)
        samples = passes.samples_per_row(prepared.ledger)
    return summarize(prepared.ledger.store, prepared.parts, samples, config.sampling.agree)


def pilot(config: RunConfig, rows: int, watch: RunObserver = no_observer) -> PreparedRun:
    """Do ``rows`` rows from all over the run, with one engine, unless they are done.

    They are part of the run. `pipeline.insight.estimate` projects what comes out.
    """
    one = config.engine.model_copy(update={"replicas": 1})
    prepared = prepare(config.model_copy(update={"engine": one}))
    limits = Limits(prepared.config)
    watch = recorded(limits.tracking(watch), prepared.ledger.store)
    with exclusive_driver(prepared) as stop, limits.enforced(stop.request):
        prepared.ledger.open_run(prepared.settings, prepared.versions)
        prepared.ledger.record_shards(
            prepared.shards, prepared.prompts, prepared.settings["input.path"]
        )
        first = next(iter(passes.to_run(prepared.ledger, config.sampling.n)))
        if first.stop != config.sampling.n:
            raise OutputError(
                f"output.path {config.output.path} has {first.stop} samples of each row, and a "
                "pilot of more is not possible; set sampling.n to that, or choose another "
                "output.path"
            )
        execute_pass(prepared, first, watch, stop, stratified_rows(prepared.parts, rows))
    return prepared


@contextmanager
def exclusive_driver(prepared: PreparedRun) -> Iterator[Shutdown]:
    """The one driver at work on this output, until a signal or another driver ends it."""
    with Shutdown().listening() as stop, lease.hold(prepared.ledger.store, stop.request):
        yield stop


def execute_pass(
    prepared: PreparedRun,
    run_pass: Pass,
    watch: RunObserver,
    stop: Shutdown,
    only: Sequence[Range] | None = None,
) -> None:
    """Run what is to do of ``run_pass`` (nothing: no engine starts) and finish its parts.

    ``only``: of these single rows.
    """
    plan = passes.plan_pass(prepared.ledger, prepared.parts, run_pass)
    if only is not None:
        plan = replace(plan, todo=still_to_do(only, plan.todo))
    if plan.todo:
        with cluster(prepared.config):
            stop.take_signals()
            to_generate, copies = split_duplicates(prepared, run_pass, plan.todo)
            copies.write(ready=True)
            for tier, todo in by_tier(
                prepared.config, prepared.columns, prepared.prompts, prepared.tiers, to_generate
            ):
                stop.check()
                execute_tier(prepared, run_pass, tier, replace(plan, todo=todo), watch, stop)
            stop.check()
            copies.write(ready=False)
        stop.take_signals()
    stop.check()
    commit_leftovers(prepared, run_pass)
    if run_pass.number and not passes.plan_pass(prepared.ledger, prepared.parts, run_pass).todo:
        prepared.ledger.close_pass(run_pass)


def execute_tier(
    prepared: PreparedRun,
    run_pass: Pass,
    tier: ContextTier,
    plan: Plan,
    watch: RunObserver,
    stop: Shutdown,
) -> None:
    """Source, engines of one tier, sink: the part that Ray Data runs."""
    config = fitted_to_cluster(tier.applied(prepared.config))
    engine, places = config.engine, EnginePlacements(config.engine)
    engine_pool = EnginePool(0, 0) if tier.name == NO_ENGINE else pool_of(config)
    coordinator = start_coordinator(plan.todo, prepared.ledger.store.url, engine_pool)
    samples = min(len(run_pass.samples), config.sampling.first_draw)
    block_rows, blocks_in_flight = concurrency(config, samples, plan.rows_todo)
    rows_at_once = max(1, engine_slots(config) * engine.replicas // samples)
    source = PromptSource(
        plan.todo, run_pass.samples, config.input.path, prepared.prompts, prepared.lengths(run_pass),
        LONGEST_FIRST_WAVES * rows_at_once,
    )  # fmt: skip
    configure_ray_data(config)
    traces = (
        # One read task at a time: rows stay in order, and to read them is a thousand times as fast
        # as to run them.
        ray.data.read_datasource(source, override_num_blocks=source.read_tasks, concurrency=1)
        .repartition(target_num_rows_per_block=block_rows)
        .map_batches_internal(  # `map_batches` refuses GPUs without a batch size; a block is one
            EngineActor,
            fn_constructor_args=(config, prepared.columns, run_pass, coordinator),
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
    metadata, answer = prepared.metadata(run_pass), config.answer
    sink = TraceSink(
        prepared.ledger.store.location, run_pass, prepared.traces, metadata, answer, coordinator,
        rows_a_write(rows_at_once, config.sampling.max_tokens, plan.rows_todo),
    )  # fmt: skip
    with watch(coordinator, plan.rows_todo, tier.name), places, stop.engines_of(coordinator):
        try:
            traces.write_datasink(sink)
        except Exception as error:  # Ray raises what tasks raised, and all kinds of its own
            raise explain(error) from None
        finally:
            del traces  # it holds the actors' handles, and an actor ends with its last handle
        wait_until_closed(coordinator)


def concurrency(config: RunConfig, samples: int, rows: int) -> tuple[int, int]:
    """The rows of a block, and the blocks in flight at one engine; ``samples``: of a row at once.

    A block holds its place until its slowest row ends. So blocks of long traces are small, and the
    larger they are, the more rows must be in flight to keep the engine's slots full.
    """
    engine, policy = config.engine, config.sampling
    block_rows = engine.block_rows or max(
        1,
        min(
            TOKENS_A_BLOCK // (policy.max_tokens * samples),
            MOST_BLOCK_ROWS,
            rows // (BLOCKS_AN_ENGINE * engine.replicas),
        ),
    )
    in_flight = (
        engine.rows_in_flight or oversubscription(block_rows) * engine_slots(config) / samples
    )
    return block_rows, max(2, math.ceil(in_flight / block_rows))


def rows_a_write(at_once: int, max_tokens: int, rows: int) -> int:
    """How many finished rows one task writes, of ``rows``, so many of them running ``at_once``."""
    return max(1, min(at_once * TOKENS_A_WRITE // max_tokens, rows // LEAST_WRITES))


def oversubscription(block_rows: int) -> float:
    """How many times its slots an engine must have in flight, in blocks of so many rows."""
    return 1.25 + 0.75 * math.log2(block_rows)


def commit_leftovers(prepared: PreparedRun, run_pass: Pass) -> None:
    """Commit what is complete but was not committed, and remove fragments of finished parts."""
    listing = prepared.ledger.listing()
    done, journal = (
        listing.finished_parts(run_pass.number),
        listing.journal.get(run_pass.number, {}),
    )
    for part in prepared.parts:
        if part.name in done:
            if part.name in journal:
                prepared.ledger.discard(PartRef.of(part), run_pass.number)
        elif part.name in journal or (part.rows == 0 and run_pass.number == 0):
            prepared.ledger.commit(
                PartRef.of(part), run_pass, prepared.traces, prepared.metadata(run_pass)
            )
