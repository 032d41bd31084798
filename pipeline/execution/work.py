"""One of several workers: drivers that share an output, each with engines of its own.

summary = work(load_config("configs/demo.yaml"))

Workers need no common cluster, only the output. They may come, go and die at any time. What may
differ between them is what does not identify the run: engines, their number, layout and memory.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.errors import (
    ConfigError,
    ExpelledError,
    HandedOverError,
    PassOpenedError,
    QwqBatchError,
)
from pipeline.execution.claimed_rows import ClaimedRows
from pipeline.execution.cluster import cluster
from pipeline.execution.context_tiers import AS_CONFIGURED
from pipeline.execution.notify import notified
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.run import (
    RunControl,
    commit_leftovers,
    execute_tier,
    no_observer,
    summary_of,
)
from pipeline.execution.shutdown import Shutdown
from pipeline.monitor.history import recorded
from pipeline.monitor.limits import Limits, RunObserver
from pipeline.output import passes, workers
from pipeline.output.claims import Claims
from pipeline.output.ledger import Ledger
from pipeline.output.summary import Summary
from pipeline.output.workers import Worker
from pipeline.planning import Pass
from pipeline.storage import Storage
from pipeline.time_limits import LEASE_RENEW_SECONDS as WAIT_SECONDS

logger = logging.getLogger(__name__)


def work(
    config: RunConfig, observer: RunObserver = no_observer, limits: Limits | None = None
) -> Summary:
    """Do rows that no other worker has until none is left, and report on the whole output.

    Raises as `run`, and `ConfigError` for settings that need a driver alone.
    """
    refuse_unshared(config)
    limits = limits or Limits(config)
    with notified(config):
        while True:
            had_begun = has_begun(config)
            prepared = prepare(config)
            try:
                with one_of_several(prepared, observer, limits) as (control, worker):
                    if has_begun(config) and not had_begun:
                        continue  # what another worker has decided meanwhile holds: schema, types
                    prepared = prepared.open_output()
                    for run_pass in passes.to_run(
                        prepared.ledger, prepared.parts, config.sampling.n
                    ):
                        share_pass(prepared, run_pass, control, worker)
                return summary_of(prepared, config.sampling.n)
            except ExpelledError as error:
                logger.warning("%s; it joins again", error)
            except HandedOverError as error:
                logger.warning("%s; this one waits, in case they leave them", error)
            except PassOpenedError:
                logger.debug("another worker has opened the pass: look again")


def has_begun(config: RunConfig) -> bool:
    """Whether the output is that of a run."""
    return Ledger(Storage(config.output.path)).manifest() is not None


def refuse_unshared(config: RunConfig) -> None:
    """Raise `ConfigError` for settings that count or compare all rows of a run."""
    alone = {
        "input.dedupe": config.input.dedupe and "equal rows may be in different workers' hands",
        "engine.context: auto": config.engine.context == "auto"
        and "it sorts all rows by their length first; give each worker one context",
        "engine.replicas: a range": config.engine.is_elastic
        and "each worker claims rows for all its engines, also for those that are not there; "
        "workers may come and go themselves",
        "limits.output_tokens": config.limits.output_tokens is not None
        and "each worker counts its own tokens only; limit each one's time with limits.minutes",
        "limits.cost": config.limits.cost is not None
        and "each worker counts its own cost only; limit each one's time with limits.minutes",
    }
    for setting, reason in alone.items():
        if reason:
            raise ConfigError(
                f"{setting} is not possible with several workers: {reason}; or use qwq-batch run"
            )


@contextmanager
def one_of_several(
    prepared: PreparedRun, observer: RunObserver, limits: Limits
) -> Iterator[tuple[RunControl, Worker]]:
    """Be one of the workers of this output, until a signal, a limit or other workers end it."""
    for note in prepared.notes:
        logger.warning(note)
    store = prepared.ledger.store
    with (
        Shutdown().listening() as shutdown,
        workers.joined(store, shutdown.request) as worker,
        limits.enforced(shutdown.request),
    ):
        follow = recorded(limits.tracking(observer), store, worker.name)
        yield RunControl(follow, shutdown), worker


def share_pass(prepared: PreparedRun, run_pass: Pass, control: RunControl, worker: Worker) -> None:
    """Do rows of ``run_pass`` until all are durable, whoever does them, and finish its parts."""
    if run_pass.number:
        passes.recover_marks(prepared.ledger, prepared.parts, run_pass)
    config = prepared.config
    at_once = max(1, engine_slots(config) * config.engine.max_replicas // len(run_pass.samples))
    claims = Claims(prepared.ledger, prepared.parts, run_pass, worker, at_once)
    try:
        while (claim := claims.take()) is not None:
            if claim:
                with cluster(config):
                    rows = ClaimedRows(claims, claim, hands_over=control.shutdown.can_break)
                    execute_tier(prepared, run_pass, AS_CONFIGURED, rows, control)
                control.shutdown.take_signals()
                claims.again()
            else:
                time.sleep(WAIT_SECONDS)
            control.shutdown.check()
    finally:
        control.shutdown.take_signals()  # `ray.shutdown` has replaced them
        give_back(claims)
    claims.end()
    commit_leftovers(prepared, run_pass)
    if run_pass.number and not passes.plan_pass(prepared.ledger, prepared.parts, run_pass).todo:
        prepared.ledger.close_pass(run_pass)


def give_back(claims: Claims) -> None:
    """Leave the claims to others at once; if that fails, they learn it by this worker's silence."""
    try:
        claims.give_back()
    except QwqBatchError as error:
        logger.warning("the rows of this worker could not be left to others: %s", error)
