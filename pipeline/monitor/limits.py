"""Early-stop limits of a run: time, tokens, cost."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots
from pipeline.errors import LimitReachedError, QwqBatchError
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import EnginePool, Totals
from pipeline.time_limits import LIMIT_NOTICE_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 1.0


class RunObserver(Protocol):
    """Follows the engines of one tier while the body of its context runs."""

    def __call__(
        self, coordinator: CoordinatorClient, rows: int, tier: str, /
    ) -> AbstractContextManager[None]:
        """The context; ``rows``: to do in ``tier``, for all workers together if there are any."""
        ...


class Limits:
    """The limits of one run, counted from now on.

    ``seconds``: one more time limit, such as what a scheduler leaves.
    """

    def __init__(self, config: RunConfig, seconds: float | None = None) -> None:
        self._started = time.monotonic()
        self._max_tokens, self._max_cost = config.limits.output_tokens, config.limits.cost
        self._pool, self._engines = pool_of(config), 0
        minutes = {
            "limits.minutes": config.limits.minutes,
            "limits.cost": cost_minutes(config),
            "the scheduler's time limit": None if seconds is None else seconds / 60,
        }
        ends = [(limit * 60, name) for name, limit in minutes.items() if limit is not None]
        self._first_end = min(ends, default=None)
        # Of the engines that run now. Without engines there is none: after Ray's end, a question to
        # it would start Ray again.
        self._coordinator: CoordinatorClient | None = None
        self._totals: list[Totals] = []  # the last answer of each coordinator so far
        self._asking = threading.Lock()

    @property
    def totals(self) -> Totals:
        """What the engines have done since the start, as far as is known."""
        everything = Totals()
        for totals in self._totals:
            everything.add(totals)
        return everything

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self._started

    @property
    def cost(self) -> float | None:
        """What the engines have cost since the start, as far as is known; None without a price."""
        paid = self._pool.paid_seconds(self.seconds, self.totals.engine_seconds)
        return self._pool.cost(paid)

    def tracking(self, observer: RunObserver) -> RunObserver:
        """``observer``, with the tokens counted as well."""

        @contextmanager
        def observe(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:
            with self._asking:
                self._coordinator = coordinator
                self._totals.append(Totals())
            try:
                with observer(coordinator, rows, tier):
                    yield
            finally:
                self._count()
                with self._asking:
                    self._coordinator = None

        return observe

    @contextmanager
    def enforced(self, end: Callable[[QwqBatchError], None]) -> Iterator[None]:
        """While the body runs, call ``end``, in another thread, when a limit is near."""
        over = threading.Event()
        thread = threading.Thread(
            target=self._enforce, args=(end, over), daemon=True, name="limits"
        )
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _enforce(self, end: Callable[[QwqBatchError], None], over: threading.Event) -> None:
        while (limit := self._reached()) is None:
            if over.wait(POLL_SECONDS):
                return
            self._count()
        end(
            LimitReachedError(
                f"{limit} is reached; finished rows are kept and running traces are saved; the "
                "same command continues"
            )
        )

    def _reached(self) -> str | None:
        """The name of the limit that the run has come to, if any."""
        if self._first_end is not None:
            seconds, name = self._first_end
            if self.seconds >= seconds - min(LIMIT_NOTICE_SECONDS, seconds / 2):
                return name
        if self._max_tokens is not None and self.totals.spent_tokens >= self._max_tokens:
            return "limits.output_tokens"
        if self._max_cost is not None and self._pool.is_elastic:
            # What the present engines cost until they have ended.
            notice = self._pool.cost(self._engines / self._pool.replicas * LIMIT_NOTICE_SECONDS)
            if (self.cost or 0) >= self._max_cost - min(notice or 0, self._max_cost / 2):
                return "limits.cost"
        return None

    def _count(self) -> None:
        with self._asking:
            if self._coordinator is None:
                return
            try:
                snapshot = self._coordinator.snapshot()
                self._totals[-1], self._engines = snapshot.totals, len(snapshot.engines)
            except Exception:  # the coordinator's node may be gone
                logger.debug("no figures from the coordinator", exc_info=True)


def pool_of(config: RunConfig) -> EnginePool:
    """The engines that a run asks for."""
    engine, price = config.engine, config.prices.gpu_hour
    least = engine.min_replicas if engine.is_elastic else None
    return EnginePool(engine.max_replicas, engine.ranks, engine_slots(config), price, least)


def cost_minutes(config: RunConfig) -> float | None:
    """How long ``limits.cost`` pays for all engines, from the start of the run.

    None without such a limit, and if the number of engines is a range.
    """
    cost = None if config.engine.is_elastic else config.limits.cost
    cost_per_minute = None if cost is None else pool_of(config).cost(60)
    return None if cost is None or cost_per_minute is None else cost / cost_per_minute
