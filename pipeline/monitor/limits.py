"""Where a run ends though rows are left: at a time, a number of tokens, a cost."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.errors import LimitReachedError, QwqBatchError
from pipeline.monitor.figures import EnginePool, Snapshot, Totals

logger = logging.getLogger(__name__)
# What it takes to save what is running, to end the engines and to leave Ray.
STOP_SECONDS = 60.0
POLL_SECONDS = 1.0


# Follows a coordinator, of the rows to do and the tier's name, while the body runs.
RunObserver = Callable[[Any, int, str], AbstractContextManager[None]]


class Limits:
    """The limits of one run, from now on.

    ``seconds``: a time besides that of the config, such as what a scheduler leaves.
    """

    def __init__(self, config: RunConfig, seconds: float | None = None) -> None:
        self._started = time.monotonic()
        self._most_tokens = config.limits.output_tokens
        minutes = {
            "limits.minutes": config.limits.minutes,
            "limits.cost": cost_minutes(config),
            "the scheduler's time limit": None if seconds is None else seconds / 60,
        }
        ends = [(most * 60, why) for why, most in minutes.items() if most is not None]
        self._end = min(ends, default=None)
        self._coordinator: Any = (
            None  # of the engines at work; it must not be asked when Ray is gone
        )
        self._said: list[Totals] = []  # what it has said last, and those before it
        self._asks = threading.Lock()

    @property
    def totals(self) -> Totals:
        """What the engines have done since the start, as far as it is known."""
        totals = Totals()
        for said in self._said:
            totals.add(said)
        return totals

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._started

    def tracking(self, watch: RunObserver) -> RunObserver:
        """``watch``, with the tokens counted as well."""

        @contextmanager
        def both(coordinator: Any, rows: int, tier: str) -> Iterator[None]:
            with self._asks:
                self._coordinator = coordinator
                self._said.append(Totals())
            try:
                with watch(coordinator, rows, tier):
                    yield
            finally:
                self._count()
                with self._asks:
                    self._coordinator = None

        return both

    @contextmanager
    def enforced(self, end: Callable[[QwqBatchError], None]) -> Iterator[None]:
        """While the body runs, call ``end``, in another thread, when a limit is near."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(end, over), daemon=True, name="limits")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, end: Callable[[QwqBatchError], None], over: threading.Event) -> None:
        while (why := self._reached()) is None:
            if over.wait(POLL_SECONDS):
                return
            self._count()
        end(
            LimitReachedError(
                f"{why} is reached; what is finished is kept, what was running is saved, the same "
                "command goes on"
            )
        )

    def _reached(self) -> str | None:
        if self._end is not None:
            seconds, why = self._end
            if self.seconds >= seconds - min(STOP_SECONDS, seconds / 2):
                return why
        most = self._most_tokens
        if most is not None and self.totals.spent_tokens >= most:
            return "limits.output_tokens"
        return None

    def _count(self) -> None:
        with self._asks:
            if self._coordinator is None:
                return
            try:
                snapshot: Snapshot = ray.get(self._coordinator.snapshot.remote(), timeout=5)
            except Exception:  # the coordinator's node may be gone
                logger.debug("no figures from the coordinator", exc_info=True)
            else:
                self._said[-1] = snapshot.totals


def pool_of(config: RunConfig) -> EnginePool:
    """The engines that a run asks for."""
    engine = config.engine
    return EnginePool(engine.replicas, engine.ranks, engine_slots(config), config.prices.gpu_hour)


def cost_minutes(config: RunConfig) -> float | None:
    """How long all engines may be there for ``limits.cost``, from the start of the run."""
    cost = config.limits.cost
    each = None if cost is None else pool_of(config).cost(60)
    return None if cost is None or each is None else cost / each
