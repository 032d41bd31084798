"""The time and the KV cache of a simulated engine: steps, slots, admission and preemption."""

import asyncio
import heapq
import itertools
import math
from collections import deque
from dataclasses import dataclass

from pipeline.config.simulated import SimulatedConfig

# A clock that shows large times can't wait for a billionth of a step.
ROUNDING = 1e-6


class Steps:
    """The clock of an engine, in steps. Sequences wait for their steps in one event loop."""

    def __init__(self, config: SimulatedConfig) -> None:
        self._config = config
        # An engine whose steps take no time needs no clock.
        self._instant = not (
            config.seconds_per_token or config.seconds_per_sequence or config.seconds_per_kv_token
        )
        # Steps done, the time of that count, and seconds of prefill still to pass.
        self._done, self._at, self._owed = 0.0, 0.0, 0.0
        # Running sequences; their tokens at step 0, had they all run since then.
        self._sequences = self._kv_tokens = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, context: int) -> float:
        """Begin a sequence with a context of so many tokens; returns the argument of `leave`."""
        if self._instant:
            return 0.0
        self._advance()
        self._owed += context * self._config.seconds_per_prompt_token
        begun = context - self._done
        self._sequences, self._kv_tokens = self._sequences + 1, self._kv_tokens + begun
        return begun

    def leave(self, begun: float) -> None:
        """End a sequence."""
        if self._instant:
            return
        self._advance()
        self._sequences, self._kv_tokens = self._sequences - 1, self._kv_tokens - begun
        self._set_timer()

    async def take(self, steps: int) -> None:
        """Wait for so many steps."""
        if self._instant:
            await asyncio.sleep(0)
            return
        self._advance()
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self._done + steps, next(self._order), future))
        self._set_timer()
        await future

    def _step_seconds(self) -> float:
        config = self._config
        return (
            config.seconds_per_token
            + config.seconds_per_sequence * self._sequences
            + config.seconds_per_kv_token * (self._kv_tokens + self._sequences * self._done)
        )

    def _advance(self) -> None:
        """Count the steps since the last call, at the pace since then."""
        now = asyncio.get_running_loop().time()
        elapsed, self._at = now - self._at, now
        if self._sequences and self._step_seconds():
            paid = min(elapsed, self._owed)
            self._owed -= paid
            self._done += (elapsed - paid) / self._step_seconds()

    def _set_timer(self) -> None:
        """Wake up when the next waiting sequence has its steps."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting and self._waiting[0][2].cancelled():
            heapq.heappop(self._waiting)
        if self._waiting:
            left = (self._waiting[0][0] - self._done) * self._step_seconds() + self._owed
            self._timer = asyncio.get_running_loop().call_later(max(left, 0), self._wake)

    def _wake(self) -> None:
        self._advance()
        while self._waiting and self._waiting[0][0] <= self._done + ROUNDING:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)
        self._set_timer()


@dataclass(eq=False)
class Sequence:
    """A request that waits or runs; ``tokens``: its context, which the KV cache holds if it runs.

    ``pending``: those of them that are still to be generated. ``admitted``: done while it runs;
    another future after each preemption. ``begun``: the argument of `Steps.leave`.
    """

    tokens: int
    admitted: asyncio.Future[None]
    pending: int = 0
    begun: float = 0.0
    is_new: bool = True


class Scheduler:
    """Slots and a KV cache, shared as vLLM's V1 scheduler does.

    Requests are admitted first come first served. One that waits gets in if its whole context fits
    and the share ``watermark`` of the cache stays free, or if nothing else runs. When a running
    sequence needs room and there is none, the newest one loses all that it has in the cache and
    waits at the head of the queue; when it gets back in, its context is computed again.
    ``capacity``: tokens.
    """

    def __init__(
        self, slots: int, steps: Steps, capacity: float = math.inf, watermark: float = 0.0
    ) -> None:
        self._slots, self._steps = slots, steps
        self._capacity = capacity
        self._reserve = 0.0 if math.isinf(capacity) else watermark * capacity
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self.used = 0
        self.preemptions = self.recomputed_tokens = 0

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot, or for room in the cache."""
        return len(self._waiting)

    @property
    def usage(self) -> float | None:
        """The share of the cache in use; None if it has no end."""
        return None if math.isinf(self._capacity) else self.used / self._capacity

    async def enter(self, context: int) -> Sequence:
        """Wait for a slot and for room for ``context`` tokens."""
        sequence = Sequence(context, asyncio.get_running_loop().create_future())
        self._waiting.append(sequence)
        self._admit()
        try:
            await sequence.admitted
        except BaseException:
            self.leave(sequence)
            raise
        return sequence

    async def step(self, sequence: Sequence, tokens: int) -> None:
        """Wait until ``tokens`` more are generated, whatever preemptions come in between."""
        while True:
            admitted = sequence.admitted
            await admitted
            if sequence.admitted is not admitted or not self._make_room(sequence, tokens):
                continue
            await self._steps.take(tokens)
            if sequence.admitted is admitted:
                sequence.pending = 0
                return

    def leave(self, sequence: Sequence) -> None:
        """End a sequence, running or waiting."""
        if sequence in self._running:
            self._free(sequence)
        elif sequence in self._waiting:
            self._waiting.remove(sequence)
        self._admit()

    def _make_room(self, sequence: Sequence, tokens: int) -> bool:
        """Take ``tokens`` more of the cache; False if that costs ``sequence`` its own place."""
        while self.used + tokens > self._capacity and len(self._running) > 1:
            newest = self._running[-1]
            self._preempt(newest)
            if newest is sequence:
                return False
        self.used += tokens
        sequence.tokens, sequence.pending = sequence.tokens + tokens, tokens
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._free(sequence)
        sequence.tokens, sequence.pending = sequence.tokens - sequence.pending, 0
        sequence.admitted = asyncio.get_running_loop().create_future()
        sequence.is_new = False
        self.preemptions += 1
        self._waiting.appendleft(sequence)

    def _free(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._steps.leave(sequence.begun)
        self.used -= sequence.tokens

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            first = self._waiting[0]
            reserve = self._reserve if self._running else 0.0
            if self._running and self.used + first.tokens + reserve > self._capacity:
                return
            self._waiting.popleft()
            self._running.append(first)
            self.used += first.tokens
            first.begun = self._steps.enter(first.tokens)
            if not first.is_new:
                self.recomputed_tokens += first.tokens
            if not first.admitted.done():
                first.admitted.set_result(None)
