"""Rows for the engines of a worker, claimed a few at a time while the engines work.

Ray Data starts no engine twice in one execution, and an execution without rows ends. So a read task
waits until the driver has claimed rows, and yields them; meanwhile the engines do what they have.
The driver claims more as soon as they have no more than keeps their slots full. When no more are to
be had, it hands the last ones over if faster workers have room for all of them.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import HandedOverError, QwqBatchError
from pipeline.execution.cluster import explain
from pipeline.execution.prepare import PassContext
from pipeline.execution.source import RowSource
from pipeline.execution.task_deaths import READ_DEATHS, refuse_endless_deaths
from pipeline.input.longest_first import Lengths
from pipeline.input.rows import read_bundle
from pipeline.monitor.coordinator import CoordinatorClient, rows_by_part
from pipeline.monitor.figures import EngineFigures, Snapshot
from pipeline.output.board import MOST_WAVES
from pipeline.output.claims import Claims
from pipeline.planning import Range
from pipeline.schema import with_origin
from pipeline.time_limits import CALL_SECONDS
from pipeline.time_limits import LEASE_RENEW_SECONDS as WAIT_SECONDS

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.5
# Of short rows, engines must have those of some seconds, since a claim takes a moment.
AT_ONCE_SECONDS = 5.0
# Longer than rows are on their way to an engine.
IDLE_SECONDS = 60.0
# Ray Data must know the number of read tasks beforehand, and each has one claim: what a task yields
# is passed on at its end only. Tasks without a claim cost some milliseconds each. So there are as
# many as this worker needs for all rows that are left, and for the small claims at the end. When
# they are used up nevertheless, another execution begins.
SMALL_CLAIMS, MOST_TASKS = 16, 1000
# To save traces, end the engines and read the tokens elsewhere takes some ten seconds. So rows stay
# where their traces take less than this on average. The speed now is that of this time, too: the
# first tokens of new rows come late.
WORTH_SECONDS = 60.0
# Free slots are told in eighths of all, so that the board seldom changes.
FREE_STEPS = 8
# How long engines without rows are kept for those of slower workers. Their own last rows may wait
# as long until they are written. (Ray Data ends an execution in which nothing moves for an hour.)
KEEP_SECONDS = 300.0


class RowQueue:
    """The claims of one execution, in order: a Ray actor between driver and read tasks."""

    def __init__(self) -> None:
        self._claims = list[Sequence[Range]]()
        self._ended = False

    def add(self, claim: Sequence[Range]) -> None:
        """One more claim."""
        self._claims.append(claim)

    def end(self) -> None:
        """There will be no more."""
        self._ended = True

    def claim(self, number: int) -> Sequence[Range] | None:
        """Claim ``number``, from 0, always the same; None: not there yet, empty: no more."""
        if number < len(self._claims):
            return self._claims[number]
        return () if self._ended else None


class ClaimedSource(RowSource):
    """The rows of the first ``claims`` in ``queue``, a `RowQueue` actor."""

    def __init__(self, context: PassContext, queue: Any, claims: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._context, self._queue, self.read_tasks = context, queue, claims

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Tasks for all claims that there may be; those without claims end at once."""
        context, schema = self._context, with_origin(self._context.prompts)
        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        read = partial(
            _read, self._queue, context.config.input.path, context.run_pass.samples, schema
        )
        return [
            ReadTask(partial(read, number), metadata, schema=schema)
            for number in range(self.read_tasks)
        ]


def _read(
    queue: Any, input_url: str, samples: tuple[int, ...], schema: pa.Schema, task: int
) -> Iterator[pa.Table]:
    refuse_endless_deaths("reads", lambda: [("the claims", task)], READ_DEATHS)
    while (claim := ray.get(queue.claim.remote(task))) is None:
        time.sleep(POLL_SECONDS)
    yield from read_bundle(input_url, claim, samples, schema)


class ClaimedRows:
    """The rows that a worker claims during one execution.

    ``todo``: its first claim, taken. ``hands_over``: whether the execution can be broken off.
    """

    # A read task waits most of the time; holding a CPU, it might keep others from starting.
    read_cpus: float | None = 0

    def __init__(self, claims: Claims, todo: Sequence[Range], *, hands_over: bool) -> None:
        self._claims, self.todo, self._hands_over = claims, todo, hands_over
        self.rows = max(claims.rows_left, sum(piece.rows for piece in todo))
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0)(RowQueue).options(scheduling_strategy=here)
        self._queue: Any = actor.remote()
        self._over = threading.Event()
        self._most_claims, self._slots = MOST_TASKS, 1

    def source(self, context: PassContext, _lengths: Lengths | None, at_once: int) -> ClaimedSource:
        """See `Feed`. The rows keep their order: claims are small near the end."""
        self._slots = at_once
        claims = SMALL_CLAIMS + math.ceil(self.rows / (MOST_WAVES * at_once))
        self._most_claims = min(claims, MOST_TASKS)
        return ClaimedSource(context, self._queue, self._most_claims)

    @contextmanager
    def feeding(
        self, coordinator: CoordinatorClient, in_flight: int, end: Callable[[QwqBatchError], None]
    ) -> Iterator[None]:
        """Claim rows in another thread, until no more are to be had; see `Feed`."""
        pace = _Pace(coordinator, self._slots)
        thread = threading.Thread(
            target=self._claim, args=(coordinator, pace, in_flight, end), daemon=True, name="claims"
        )
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _claim(
        self,
        coordinator: CoordinatorClient,
        pace: "_Pace",
        in_flight: int,
        end: Callable[[QwqBatchError], None],
    ) -> None:
        try:
            claim, given = self.todo, 0
            for _ in range(self._most_claims):
                # The coordinator began with the first claim.
                more = rows_by_part(claim) if given else {}
                coordinator.add_rows(more, self._claims.rows_to_come)
                ray.get(self._queue.add.remote(claim))
                given += sum(piece.rows for piece in claim)
                while pace.left(given) >= self._at_once(in_flight, pace):
                    if self._over.wait(POLL_SECONDS):
                        return
                claim = self._next(pace, given)
                if not claim:
                    break
            coordinator.add_rows({}, 0)
        except QwqBatchError as error:
            end(error)
        except RayActorError:  # the execution has failed, and says why
            logger.debug("no more claims", exc_info=True)
        except Exception as error:
            end(explain(error))
        finally:
            with suppress(RayError):  # else the read tasks would wait for ever
                ray.get(self._queue.end.remote(), timeout=CALL_SECONDS)

    def _next(self, pace: "_Pace", given: int) -> Sequence[Range]:
        """Another claim; empty if no more are to be had while the engines have work.

        Others may have all that is left. Should one of them leave, engines at work go on with it,
        and engines without work wait a while for what a slower worker will hand over. Raises
        `HandedOverError` if faster ones take what these engines have.
        """
        claim, asked = self._take(pace, given), time.monotonic()
        worked = asked
        while claim == [] and not self._over.wait(POLL_SECONDS):
            now = time.monotonic()
            if pace.left(given) or self._claims.is_promised:
                worked = now
            elif not self._claims.may_get_rows or now - worked > KEEP_SECONDS:
                break
            if now - asked >= WAIT_SECONDS:
                claim, asked = self._take(pace, given), now
                if claim == []:
                    self._hand_over(pace, given)
        return claim or ()

    def _take(self, pace: "_Pace", given: int) -> list[Range] | None:
        """Claim rows, and tell others how many more could begin here."""
        step = max(1, self._slots // FREE_STEPS)
        self._claims.free = max(0, self._slots - pace.left(given)) // step * step
        return self._claims.take()

    def _hand_over(self, pace: "_Pace", given: int) -> None:
        """Raise `HandedOverError` if faster workers have room for all rows that these engines have.

        The announcement is on the board then, and the traces are to be saved next.
        """
        left = pace.left(given)
        if not left or not self._hands_over or self._over.is_set():
            return
        if pace.trace_seconds >= WORTH_SECONDS and self._claims.hand_over(left, pace.now):
            raise HandedOverError(f"the last {left:,} rows go to faster workers")

    def _at_once(self, in_flight: int, pace: "_Pace") -> int:
        """How many rows this worker works on at once, as its claims say it to others."""
        self._claims.at_once = max(in_flight, pace.rows_in(AT_ONCE_SECONDS))
        self._claims.pace = pace.at_full_slots or self._claims.pace
        return self._claims.at_once


class _Pace:
    """How many ``rows`` the engines have done, and how fast; all ``slots`` together hold so many.

    An engine that dies may not have reported its last rows. So when all engines have had nothing to
    do for `IDLE_SECONDS`, all rows count as done.
    """

    def __init__(self, coordinator: CoordinatorClient, slots: int) -> None:
        self.rows = self._unreported = self._traces = 0
        self._coordinator, self._slots = coordinator, slots
        self._seconds: float | None = None  # since the engines were ready
        self._began = self._busy = time.monotonic()
        # Looks at the time, the tokens so far, and the seconds of all traces so far added up.
        self._looks = deque([(self._began, 0, 0.0)])
        self._full_seconds = self._full_tokens = 0.0  # of these, while all slots were full

    def left(self, given: int) -> int:
        """How many of the ``given`` rows are not done; asks the coordinator."""
        try:
            snapshot = self._coordinator.snapshot()
        except GetTimeoutError:  # a busy machine; the figures stay as they are
            return max(0, given - self.rows - self._unreported)
        now, engines = time.monotonic(), snapshot.engines
        if snapshot.totals.rows > self.rows or not engines or any(map(_has_work, engines)):
            self._busy = now
        self.rows = snapshot.totals.rows
        if now - self._busy > IDLE_SECONDS:
            self._unreported = given - self.rows
        if snapshot.ready_seconds is not None:
            self._seconds = now - self._began - snapshot.ready_seconds
        left = max(0, given - self.rows - self._unreported)
        self._look(snapshot, now, is_full=left >= self._slots)
        return left

    def rows_in(self, seconds: float) -> int:
        """How many rows the engines do in ``seconds``."""
        return 0 if self._seconds is None else round(seconds * self.rows / max(1.0, self._seconds))

    @property
    def at_full_slots(self) -> float:
        """Tokens a second of each trace while all slots were full, to two digits.

        0: not known, as they have not been full for `WORTH_SECONDS`.
        """
        if self._full_seconds < WORTH_SECONDS * self._slots:
            return 0.0
        return float(f"{self._full_tokens / self._full_seconds:.2g}")

    @property
    def now(self) -> float:
        """Tokens a second of each trace in the last `WORTH_SECONDS`, or with full slots if more.

        Infinite if there is nothing to tell it by.
        """
        (since, tokens, seconds), (until, all_tokens, all_seconds) = self._looks[0], self._looks[-1]
        if until - since < WORTH_SECONDS or all_seconds == seconds:
            return math.inf
        return max((all_tokens - tokens) / (all_seconds - seconds), self.at_full_slots)

    @property
    def trace_seconds(self) -> float:
        """How long a trace takes at least, on average: those that run count as if they ended."""
        return self._looks[-1][2] / max(1, self._traces)

    def _look(self, snapshot: Snapshot, now: float, *, is_full: bool) -> None:
        totals, running = snapshot.totals, sum(engine.running for engine in snapshot.engines)
        before, tokens, seconds = self._looks[-1]
        if is_full:
            self._full_seconds += running * (now - before)
            self._full_tokens += totals.spent_tokens - tokens
        self._traces = totals.generated + running
        self._looks.append((now, totals.spent_tokens, seconds + running * (now - before)))
        while now - self._looks[1][0] >= WORTH_SECONDS:
            self._looks.popleft()


def _has_work(engine: EngineFigures) -> bool:
    return bool(engine.running or engine.waiting)
