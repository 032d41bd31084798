"""The run, from configuration to report: the whole flow on one screen.

summary = run(load_config("configs/demo.yaml"))
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import ray
from ray.data import ActorPoolStrategy

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.errors import OutputError
from pipeline.execution.actor import EngineActor
from pipeline.execution.block_sizes import concurrency, rows_a_write
from pipeline.execution.cluster import (
    cluster,
    configure_ray_data,
    explain,
    wait_until_closed,
)
from pipeline.execution.context_tiers import NO_ENGINE, ContextTier
from pipeline.execution.duplicates import split_duplicates
from pipeline.execution.ending_nodes import node_lives, nodes_told
from pipeline.execution.hung_engines import hung_engines_killed
from pipeline.execution.notify import notified
from pipeline.execution.pilot import still_to_do, stratified_rows
from pipeline.execution.placement import EnginePlacements, fitted_to_cluster
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.prompt_lengths import by_tier
from pipeline.execution.ray_private import map_blocks
from pipeline.execution.shutdown import Shutdown
from pipeline.execution.sink import TraceSink
from pipeline.execution.slots import with_slots
from pipeline.execution.source import Feed, PlannedRows
from pipeline.monitor.coordinator import CoordinatorClient, start_coordinator
from pipeline.monitor.figures import EnginePool
from pipeline.monitor.history import recorded
from pipeline.monitor.limits import Limits, RunObserver, pool_of
from pipeline.output import lease, passes, workers
from pipeline.output.manifest import RETRY_MAY_CHANGE
from pipeline.output.summary import Summary, summarize
from pipeline.planning import PartRef, Pass, Range

logger = logging.getLogger(__name__)


def no_observer(
    coordinator: CoordinatorClient,  # noqa: ARG001
    rows: int,  # noqa: ARG001
    tier: str,  # noqa: ARG001
) -> AbstractContextManager[None]:
    """Show nothing."""
    return nullcontext()


def run(
    config: RunConfig, observer: RunObserver = no_observer, limits: Limits | None = None
) -> Summary:
    """Do what is still to do, and report on the whole output.

    ``limits``: those of ``config``, unless others are given. Raises `LimitReachedError` when one is
    reached, `StoppedError` after a signal, and other `QwqBatchError`s.
    """
    with notified(config):
        prepared = prepare(config)
        with exclusive_driver(prepared, observer, limits) as control:
            prepared = prepared.open_output()
            for run_pass in passes.to_run(prepared.ledger, prepared.parts, config.sampling.n):
                execute_pass(prepared, run_pass, control)
    return summary_of(prepared, config.sampling.n)


def retry(
    config: RunConfig,
    states: Sequence[str] = (),
    foreign: float | None = None,
    observer: RunObserver = no_observer,
) -> Summary:
    """Generate again, with the policy of ``config``, the traces that ended in ``states``.

    And those in which more than the share ``foreign`` of letters is in scripts that their prompt
    does not use. Raises as `run` does.
    """
    with notified(config):
        prepared = prepare(config, RETRY_MAY_CHANGE)
        with exclusive_driver(prepared, observer) as control:
            run_pass = passes.to_retry(prepared.ledger, prepared.settings, states, foreign)
            execute_pass(prepared, run_pass, control)
            samples = passes.samples_per_row(prepared.ledger)
    return summary_of(prepared, samples)


def summary_of(prepared: PreparedRun, samples: int) -> Summary:
    """The summary of the output, with ``samples`` of each row."""
    agree = prepared.config.sampling.agree
    return summarize(prepared.ledger.store, prepared.parts, samples, agree, prepared.floor)


def pilot(config: RunConfig, rows: int, observer: RunObserver = no_observer) -> PreparedRun:
    """Do ``rows`` rows from all over the run, with one engine, unless they are done.

    They are part of the run. `pipeline.insight.estimate` projects the whole run from them.
    """
    one = config.engine.model_copy(update={"replicas": 1})
    prepared = prepare(config.model_copy(update={"engine": one}))
    with exclusive_driver(prepared, observer) as control:
        prepared = prepared.open_output()
        first = next(iter(passes.to_run(prepared.ledger, prepared.parts, config.sampling.n)))
        if first.stop != config.sampling.n:
            raise OutputError(
                f"output.path {config.output.path} has {first.stop} samples of each row, and a "
                "pilot of more is not possible; set sampling.n to that, or choose another "
                "output.path"
            )
        execute_pass(prepared, first, control, stratified_rows(prepared.parts, rows))
    return prepared


@dataclass(frozen=True)
class RunControl:
    """What follows a run, and what ends it early."""

    observer: RunObserver
    shutdown: Shutdown


@contextmanager
def exclusive_driver(
    prepared: PreparedRun, observer: RunObserver, limits: Limits | None = None
) -> Iterator[RunControl]:
    """Be the only driver of this output, until a signal, a limit or another driver ends it."""
    for note in prepared.notes:
        logger.warning(note)
    limits = limits or Limits(prepared.config)
    store = prepared.ledger.store
    with (
        Shutdown().listening() as shutdown,
        lease.hold(store, shutdown.request),
        limits.enforced(shutdown.request),
    ):
        workers.refuse_workers(store)
        yield RunControl(recorded(limits.tracking(observer), store), shutdown)


def execute_pass(
    prepared: PreparedRun,
    run_pass: Pass,
    control: RunControl,
    only: Sequence[Range] | None = None,
) -> None:
    """Run what is to do of ``run_pass`` (nothing: no engine starts) and finish its parts.

    ``only``: of these single rows.
    """
    if run_pass.number:
        passes.recover_marks(prepared.ledger, prepared.parts, run_pass)
    plan = passes.plan_pass(prepared.ledger, prepared.parts, run_pass)
    if only is not None:
        plan = replace(plan, todo=still_to_do(only, plan.todo))
    if plan.todo:
        with cluster(prepared.config):
            control.shutdown.take_signals()
            to_generate, copies = split_duplicates(prepared, run_pass, plan.todo)
            copies.write(ready=True)
            for tier, todo in by_tier(
                prepared.config, prepared.columns, prepared.prompts, prepared.tiers, to_generate
            ):
                control.shutdown.check()
                execute_tier(prepared, run_pass, tier, PlannedRows(todo), control)
            control.shutdown.check()
            copies.write(ready=False)
        control.shutdown.take_signals()
    control.shutdown.check()
    commit_leftovers(prepared, run_pass)
    if run_pass.number and not passes.plan_pass(prepared.ledger, prepared.parts, run_pass).todo:
        prepared.ledger.close_pass(run_pass)


def execute_tier(
    prepared: PreparedRun, run_pass: Pass, tier: ContextTier, feed: Feed, control: RunControl
) -> None:
    """Source, engines of one tier, sink: the part that Ray Data runs."""
    config = fitted_to_cluster(tier.applied(prepared.config))
    config = with_slots(config, prepared, tier.name, feed.todo)
    context = prepared.context(run_pass)
    placements = EnginePlacements(config.engine)
    engine_pool = EnginePool(0, 0) if tier.name == NO_ENGINE else pool_of(config)
    coordinator = start_coordinator(
        feed.todo, prepared.ledger.store.url, engine_pool, placements.avoid, node_lives
    )
    control_group = prepared.control_group()
    if control_group is not None:
        coordinator.note_control_group(control_group)
    samples = min(len(run_pass.samples), config.sampling.first_draw)
    sized = prepared.sized(config)
    block_rows, blocks_in_flight = concurrency(sized, samples, feed.rows)
    rows_at_once = max(1, engine_slots(config) * config.engine.max_replicas // samples)
    rows_in_flight = block_rows * blocks_in_flight * config.engine.max_replicas
    source = feed.source(context, prepared.lengths(run_pass), rows_at_once)
    sink = TraceSink(
        context, coordinator, rows_a_write(rows_at_once, sized.sampling.max_tokens, feed.rows)
    )
    configure_ray_data(sized)
    # One read task at a time keeps rows in order, and is a thousand times as fast as the engines.
    prompts = ray.data.read_datasource(
        source, override_num_blocks=source.read_tasks, concurrency=1, num_cpus=feed.read_cpus
    ).repartition(target_num_rows_per_block=block_rows)
    traces = map_blocks(
        prompts,
        EngineActor,
        fn_constructor_args=(config, prepared.columns, run_pass, coordinator),
        compute=ActorPoolStrategy(
            size=config.engine.max_replicas,
            max_tasks_in_flight_per_actor=blocks_in_flight,
            max_concurrent_calls_per_actor=blocks_in_flight,
            enable_true_multi_threading=True,
        ),
        **placements.options,
    )
    with (
        control.observer(coordinator, feed.rows, tier.name),
        placements,
        feed.feeding(coordinator, rows_in_flight, control.shutdown.request),
        hung_engines_killed(coordinator),
        nodes_told(coordinator),
        control.shutdown.engines_of(coordinator),
    ):
        try:
            traces.write_datasink(sink)
        except Exception as error:  # Ray raises what tasks raise, and all kinds of its own
            raise explain(error) from None
        finally:
            del traces  # it holds the actors' handles, and an actor ends with its last handle
        wait_until_closed(coordinator)


def commit_leftovers(prepared: PreparedRun, run_pass: Pass) -> None:
    """Commit parts that are complete but not committed; remove fragments of finished parts."""
    listing = prepared.ledger.listing()
    prepared.ledger.remove_closed(listing)
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
