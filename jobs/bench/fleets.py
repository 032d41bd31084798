"""A fleet of workers on a clock that does not wait: the real claims, simulated engines.

Each worker does what `pipeline.execution.work` and `claimed_rows` do, with the real `Claims`,
`Worker` and `Ledger` on a storage in memory (`jobs.bench.virtual_workers`). The engines and the
lengths are those of `jobs.bench.tails`. Simplified: rows of a worker come one by one to whichever
of its engines has a free slot, and a row is durable as soon as it has ended. What engines take to
start is left out, and so is the end of a wait for others' rows. A worker that hands its last rows
over takes `SAVE_SECONDS` for it. The engine that goes on with them computes prompts and tokens
again, at the pace of two H100 by the roofline model, while its own traces wait.
"""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from jobs.bench.kv_cache import PROMPT, QWQ
from jobs.bench.tails import SEQUENCE_SECONDS, SLOTS, STEP_SECONDS
from jobs.bench.virtual_time import Clock
from jobs.bench.virtual_workers import MemoryStorage, VirtualWorker, virtual
from pipeline.config.sections import EngineConfig
from pipeline.engines.roofline import Speed, gpu_of
from pipeline.engines.vllm_arguments import memory_need
from pipeline.execution.block_sizes import oversubscription
from pipeline.execution.claimed_rows import FREE_STEPS, POLL_SECONDS
from pipeline.output.claims import Claims
from pipeline.output.layout import fragment_name, journal_folder
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass, Range, Shard, split_parts
from pipeline.time_limits import LEASE_RENEW_SECONDS as WAIT_SECONDS

SAVE_SECONDS = 10.0
FULL_STEP_SECONDS = STEP_SECONDS + SEQUENCE_SECONDS * SLOTS
IN_FLIGHT = round(oversubscription(1) * SLOTS)  # rows of an engine
RUN = Pass(0, 0, 1)


@dataclass
class Engine:
    """Slots; all running traces get a token with each step. ``slowness``: factor of its steps."""

    slowness: float
    running: list[tuple[float, int]] = field(default_factory=list)  # its last step, row
    steps: float = 0.0
    at: float = 0.0
    looks: int = 0

    @property
    def step_seconds(self) -> float:
        """Of a step now."""
        return (STEP_SECONDS + SEQUENCE_SECONDS * len(self.running)) * self.slowness

    def advance(self, now: float) -> None:
        """Count the steps until ``now``, unless prompts take it until later."""
        if now > self.at:
            if self.running:
                self.steps += (now - self.at) / self.step_seconds
            self.at = now

    def go_on(self, row: int, left: float, tokens: int, prefill: float) -> None:
        """Begin ``row``, which has ``tokens`` and its prompt and needs ``left`` more steps."""
        heapq.heappush(self.running, (self.steps + left, row))
        self.at += (PROMPT + tokens) * prefill * self.slowness  # its other traces wait

    def left(self) -> Iterator[tuple[int, float]]:
        """The running rows, with the steps that each still needs."""
        yield from ((row, last_step - self.steps) for last_step, row in self.running)


def prefill_seconds() -> float:
    """Of one token on two H100."""
    need, gpu = memory_need(EngineConfig(), QWQ), gpu_of("H100")
    assert need is not None
    assert gpu is not None
    return Speed(gpu, 2, need, QWQ).prefill_seconds(1)


class Engines:
    """The engines of one worker, and the rows that wait for them.

    ``saved``: of rows that others have begun, the tokens that these have.
    """

    def __init__(
        self,
        clock: Clock,
        slowness: Sequence[float],
        lengths: Sequence[int],
        ended: Callable[[int], object],
        saved: dict[int, int] | None = None,
    ) -> None:
        self._clock, self._lengths, self._ended = clock, lengths, ended
        self._saved = {} if saved is None else saved
        self._prefill = prefill_seconds()
        self._engines = [Engine(factor) for factor in slowness]
        self._queue: list[int] = []
        self._wake: Callable[[], object] | None = None
        self._few = 0
        self.rows = 0  # that wait or run

    def add(self, rows: Sequence[int]) -> None:
        """Give them rows, by number in the run."""
        self._queue = [*reversed(rows), *self._queue] if self._queue else list(reversed(rows))
        self.rows += len(rows)
        for engine in self._engines:
            self._fill(engine)

    def wait_for_few(self, few: int) -> None:
        """Let the current process wait until fewer than ``few`` rows are left."""
        if self.rows >= few:
            self._few, self._wake = few, self._clock.pause()
            self._clock.wait()

    def stop(self) -> None:
        """Save all rows and begin no more."""
        for engine in self._engines:
            engine.advance(self._clock.monotonic())
            for row, left in engine.left():
                self._saved[row] = self._lengths[row] - round(left)
            engine.running, engine.looks = [], engine.looks + 1
        self._queue, self.rows = [], 0

    @property
    def pace(self) -> float:
        """Tokens a second of each trace now."""
        running = sum(len(engine.running) for engine in self._engines)
        rates = (len(engine.running) / engine.step_seconds for engine in self._engines)
        return sum(rates) / running if running else math.inf

    def _fill(self, engine: Engine) -> None:
        if self._queue and len(engine.running) < SLOTS:
            engine.advance(self._clock.monotonic())
            while self._queue and len(engine.running) < SLOTS:
                row = self._queue.pop()
                if (saved := self._saved.get(row)) is None:
                    heapq.heappush(engine.running, (engine.steps + self._lengths[row], row))
                else:
                    engine.go_on(row, self._lengths[row] - saved, saved, self._prefill)
            self._look_later(engine)

    def _look_later(self, engine: Engine) -> None:
        """Look again when the next trace ends, unless something else happens before."""
        engine.looks += 1
        if engine.running:
            look = engine.looks
            seconds = (engine.running[0][0] - engine.steps) * engine.step_seconds
            seconds += engine.at - self._clock.monotonic()
            self._clock.after(seconds, lambda: self._look(engine, look))

    def _look(self, engine: Engine, look: int) -> None:
        if look != engine.looks:
            return
        engine.advance(self._clock.monotonic())
        row = heapq.heappop(engine.running)[1]
        self._fill(engine)
        if look == engine.looks:
            self._look_later(engine)
        self.rows -= 1
        self._ended(row)
        if self._wake is not None and self.rows < self._few:
            wake, self._wake = self._wake, None
            self._clock.after(POLL_SECONDS / 2, wake)  # half a poll, on average


@dataclass(frozen=True)
class Shape:
    """A fleet: ``slowness`` of each worker's engines, ``engines`` of a worker."""

    slowness: Sequence[float]
    engines: int = 1
    rows_a_shard: int = 4096


class Fleet:
    """Workers that share the rows of a run, one for each of ``lengths``."""

    def __init__(self, shape: Shape, lengths: Sequence[int]) -> None:
        self.clock = Clock()
        self.store = MemoryStorage(self.clock)
        self.ledger = Ledger(self.store)
        self._shape, self._lengths = shape, lengths
        size = shape.rows_a_shard
        shards = [
            Shard(f"shard-{i:05}.parquet", "", min(size, len(lengths) - start), 1, "t")
            for i, start in enumerate(range(0, len(lengths), size))
        ]
        self._start_of = {shard.name: i * size for i, shard in enumerate(shards)}
        self.parts = split_parts(shards, 4096)
        self._parts = [
            (self._start_of[p.shard.name] + p.start, p, PartRef.of(p)) for p in self.parts
        ]
        self._rows_left = [part.rows for part in self.parts]
        self._part_of = [i for i, part in enumerate(self.parts) for _ in range(part.rows)]
        self._done = bytearray(len(lengths))
        self._saved = dict[int, int]()
        self.twice = self.takes = self.moves = 0
        self.cpu_seconds = 0.0
        self.claim_seconds: list[float] = []
        self.workers_ended: list[float] = []
        self.last_row = 0.0

    def run(self) -> float:
        """The seconds until the last row has ended."""
        with virtual(self.clock):
            for number in range(len(self._shape.slowness)):
                self.clock.start(partial(self._work, number))
            self.clock.run()
        assert all(self._done), "rows are left"
        return self.last_row

    def _work(self, number: int) -> None:
        joined = 0
        while self._work_until_handed_over(number, joined):
            joined += 1

    def _work_until_handed_over(self, number: int, joined: int) -> bool:
        """Be a worker; returns whether it has handed its last rows over, and joins again."""
        shape, clock = self._shape, self.clock
        worker = VirtualWorker(self.store, clock, f"{number:06x}{joined:06x}")
        worker.join()
        slowness = [shape.slowness[number]] * shape.engines
        engines = Engines(clock, slowness, self._lengths, self._row_ended, self._saved)
        claims = Claims(self.ledger, self.parts, RUN, worker, SLOTS * shape.engines)
        hands_over = False
        while not hands_over and (claim := self._take(claims)) is not None:
            while claim:
                engines.add(self._rows(claim))
                claims.at_once = IN_FLIGHT * shape.engines
                claims.pace = float(f"{1 / (FULL_STEP_SECONDS * slowness[0]):.2g}")
                engines.wait_for_few(claims.at_once)
                claim = self._take(claims, engines)
                while claim == [] and not hands_over and (engines.rows or claims.may_get_rows):
                    clock.sleep(WAIT_SECONDS)
                    claim = self._take(claims, engines)
                    if claim == [] and engines.rows:
                        hands_over = claims.hand_over(engines.rows, engines.pace)
            if hands_over:
                self.moves += engines.rows
                engines.stop()
                clock.sleep(SAVE_SECONDS)
            else:
                clock.sleep(WAIT_SECONDS)
            claims.again()
        claims.give_back()
        worker.leave()
        self.workers_ended.append(clock.monotonic())
        return hands_over

    def _take(self, claims: Claims, engines: Engines | None = None) -> list[Range] | None:
        if engines is not None:
            slots = SLOTS * self._shape.engines
            step = slots // FREE_STEPS
            claims.free = max(0, slots - engines.rows) // step * step
        began, cpu = self.clock.monotonic(), self.clock.cpu_seconds()
        claim = claims.take()
        self.cpu_seconds += self.clock.cpu_seconds() - cpu
        self.takes += 1
        if claim:
            self.claim_seconds.append(self.clock.monotonic() - began)
        return claim

    def _rows(self, claim: Sequence[Range]) -> list[int]:
        return [
            self._start_of[piece.part.shard.name] + row
            for piece in claim
            for row in range(piece.start, piece.stop)
        ]

    def _row_ended(self, row: int) -> None:
        self.last_row = self.clock.monotonic()
        if self._done[row]:
            self.twice += 1
            return
        self._done[row] = 1
        part = self._part_of[row]
        start, whole, ref = self._parts[part]
        self._rows_left[part] -= 1
        if self._rows_left[part]:
            at = whole.start + row - start
            self.store.set(fragment_name(ref, at, at + 1, 0))
        else:
            self.store.set(whole.name)
            self.store.drop(journal_folder(ref))


def bound(lengths: Sequence[int], slowness: Sequence[float], engines: int = 1) -> float:
    """The seconds that no order could beat, as in `jobs.bench.tails`.

    All tokens at full slots, or the longest trace by itself on the fastest engine.
    """
    full = FULL_STEP_SECONDS / SLOTS
    rate = engines * sum(1 / (full * factor) for factor in slowness)
    longest = max(lengths) * (STEP_SECONDS + SEQUENCE_SECONDS) * min(slowness)
    return max(sum(lengths) / rate, longest)


def one_queue(lengths: Sequence[int], slowness: Sequence[float], engines: int = 1) -> float:
    """The seconds if every free slot took its next row from one queue: no claims at all."""
    clock = Clock()
    Engines(clock, [*slowness] * engines, lengths, id).add(range(len(lengths)))
    clock.run()
    return clock.monotonic()
