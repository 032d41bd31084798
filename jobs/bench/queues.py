"""How rows wait at engines, computed: block sizes, rows in flight, stealing, order.

    python -m jobs.bench queues

The engines and lengths of `jobs.bench.tails` without the pipeline: in seconds instead of minutes,
and for 64 engines, which one machine can't run.
"""

import argparse
import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.bench.tables import keep, markdown, spread
from jobs.bench.tails import (
    ENDLESS,
    LOG_ERROR,
    LONGEST,
    MEDIAN,
    SEQUENCE_SECONDS,
    SIGMA,
    SLOTS,
    STEP_SECONDS,
)
from pipeline.execution.block_sizes import oversubscription
from pipeline.input.longest_first import LONGEST_FIRST_WAVES


@dataclass
class Engine:
    """Slots and a queue; all running traces get a token with each step."""

    queue: list[int] = field(default_factory=list)
    running: list[tuple[float, int]] = field(default_factory=list)  # its last step, row
    blocks: int = 0
    steps: float = 0.0
    at: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Of a step now."""
        return STEP_SECONDS + SEQUENCE_SECONDS * len(self.running)

    @property
    def next_end(self) -> float:
        """When the next trace ends."""
        if not self.running:
            return math.inf
        return self.at + (self.running[0][0] - self.steps) * self.step_seconds

    def advance(self, now: float) -> None:
        """Count the steps until ``now``."""
        if self.running:
            self.steps += (now - self.at) / self.step_seconds
        self.at = now


@dataclass(frozen=True)
class Way:
    """How rows come to engines.

    ``oversubscription``: rows in flight for each slot, in blocks that hold their places.
    """

    block_rows: int
    oversubscription: float
    steals: bool = False
    ordered: bool = False


class Pool:
    """Engines and the blocks that wait for them; ``order``: the rows as they are given out."""

    def __init__(self, lengths: Sequence[int], order: list[int], engines: int, way: Way) -> None:
        self._lengths, self._way = lengths, way
        self._engines = [Engine() for _ in range(engines)]
        size = way.block_rows
        self._blocks = [order[i : i + size] for i in range(0, len(order), size)][::-1]
        self._block_of = {row: n for n, block in enumerate(self._blocks) for row in block}
        self._rows_left = {n: len(block) for n, block in enumerate(self._blocks)}
        self._owner: dict[int, Engine] = {}
        self._most_blocks = max(2, math.ceil(way.oversubscription * SLOTS / size))

    def run(self) -> float:
        """The seconds until all rows have ended."""
        now = 0.0
        self._give_blocks()
        self._fill_all(now)
        while (engine := min(self._engines, key=lambda engine: engine.next_end)).running:
            now = engine.next_end
            engine.advance(now)
            self._end_row(heapq.heappop(engine.running)[1])
            self._fill_all(now)
        return now

    def _end_row(self, row: int) -> None:
        block = self._block_of[row]
        self._rows_left[block] -= 1
        if not self._rows_left[block]:
            self._owner[block].blocks -= 1
            self._give_blocks()

    def _give_blocks(self) -> None:
        while self._blocks:
            engine = min(self._engines, key=lambda engine: engine.blocks)
            if engine.blocks == self._most_blocks:
                return
            block = self._blocks.pop()
            engine.blocks += 1
            engine.queue += block
            self._owner[self._block_of[block[0]]] = engine

    def _fill_all(self, now: float) -> None:
        for engine in self._engines:
            self._fill(engine, now)

    def _fill(self, engine: Engine, now: float) -> None:
        while len(engine.running) < SLOTS:
            source = engine
            if not engine.queue and self._way.steals and not self._blocks:
                source = max(self._engines, key=lambda other: len(other.queue))
            if not source.queue:
                return
            engine.advance(now)
            row = source.queue.pop(0)
            heapq.heappush(engine.running, (engine.steps + self._lengths[row], row))


def efficiency(lengths: Sequence[int], guesses: Sequence[float], engines: int, way: Way) -> float:
    """The share of the bound (see `jobs.bench.tails`) that ``way`` reaches."""
    rows = list(range(len(lengths)))
    if way.ordered:
        last = LONGEST_FIRST_WAVES * SLOTS * engines
        rows[-last:] = sorted(rows[-last:], key=lambda row: -guesses[row])
    seconds = Pool(lengths, rows, engines, way).run()
    full = sum(lengths) * (STEP_SECONDS + SEQUENCE_SECONDS * SLOTS) / SLOTS / engines
    longest = max(lengths) * (STEP_SECONDS + SEQUENCE_SECONDS)
    return max(full, longest) / seconds


def draw(rows: int, seed: int) -> tuple[list[int], list[float]]:
    """Lengths as QwQ's are, and guesses at them."""
    rng = random.Random(seed)

    def length() -> int:
        drawn = MEDIAN * math.exp(rng.gauss(0, SIGMA))
        return LONGEST if rng.random() < ENDLESS else max(1, min(LONGEST, round(drawn)))

    lengths = [length() for _ in range(rows)]
    return lengths, [n * math.exp(rng.gauss(0, LOG_ERROR)) for n in lengths]


WAYS: dict[str, Way] = {
    **{f"blocks of {n}": Way(n, oversubscription(n)) for n in (1, 2, 4, 16, 64)},
    "blocks of 1, queued rows stolen": Way(1, oversubscription(1), steals=True),
    "blocks of 1, lengths guessed": Way(1, oversubscription(1), ordered=True),
    "blocks of 16, rows in flight = slots": Way(16, 1),
    "blocks of 16, four times that": Way(16, 4),
}


def main(args: argparse.Namespace, folder: Path) -> None:
    """A column for each size of a run."""
    sizes = [(8, 5000, args.seeds), (8, 50_000, 1), (1, 5000, 1), (64, 5000, args.seeds // 2)]
    found: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for engines, rows, seeds in sizes:
        drawn = [draw(rows, seed) for seed in range(max(1, seeds))]
        for name, way in WAYS.items():
            found[name].append([efficiency(*one, engines, way) for one in drawn])
    head = ["share of the bound", *(f"{n} x {SLOTS} slots, {rows:,} rows" for n, rows, _ in sizes)]
    lines = [
        [name, *(spread(column, ".3f") for column in columns)] for name, columns in found.items()
    ]
    keep(folder, "queues", markdown(head, lines), {"sizes": sizes, "shares": found})
