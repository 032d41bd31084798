"""The last traces of some engines moved to others, so that nodes are free sooner; computed.

    python -m jobs.bench moves

Engines and lengths are those of `jobs.bench.tails`; free slots take rows from one queue. Counted is
the time of engines from when the queue is empty: of all until the last trace has ended, as today;
of each until its own last trace has ended; and if an engine with few running traces gives them to
others with free slots. Such a trace waits `PAUSE_SECONDS`, until it is saved and read by the other.
That engine computes prompt and tokens again, at the pace of two H100 by the roofline model, while
its own traces wait. **The product moves traces to faster workers only** (`jobs.bench.pools`).
"""

import argparse
import heapq
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jobs.bench.fleets import Engine, prefill_seconds
from jobs.bench.kv_cache import PROMPT
from jobs.bench.queues import draw
from jobs.bench.tables import keep, markdown, spread
from jobs.bench.tails import SLOTS

PAUSE_SECONDS = 15.0
ROWS_A_SLOT = 20
FLEETS = (2, 8, 64)
# An engine with at most so many running traces gives them away.
FEW = (1, 2, 4, 8, 16, 32)


@dataclass
class Result:
    """What the tail of a run costs; ``few``: see `FEW`, 0 moves none.

    ``whole_seconds``: of the run. ``tail_seconds``: from the empty queue to the end. Engine seconds
    in that time: ``held`` if all stay to the end, ``used`` if each leaves after its last trace.
    ``carried``: tokens that were computed again.
    """

    engines: int
    few: int
    seed: int
    whole_seconds: float
    tail_seconds: float
    held: float
    used: float
    moves: int
    carried: int


@dataclass
class Tail:
    """Engines with a queue; `run` goes on until it is empty, then to the end."""

    lengths: Sequence[int]
    queue: list[int]
    engines: list[Engine]
    prefill: float
    now: float = 0.0
    ends: dict[int, float] = field(default_factory=dict)  # by engine
    moves: int = 0
    carried: int = 0

    def run(self, few: int = 0, *, until_empty: bool = False) -> None:
        """Until the queue is empty, or to the end, moving traces of engines with ``few``."""
        for engine in self.engines:
            self._fill(engine)
        while any(engine.running for engine in self.engines):
            if until_empty and not self.queue:
                return
            number = min(range(len(self.engines)), key=lambda i: _next_end(self.engines[i]))
            engine = self.engines[number]
            self.now = _next_end(engine)
            engine.advance(self.now)
            heapq.heappop(engine.running)
            self.ends[number] = self.now
            self._fill(engine)
            if not self.queue and few:
                self._move(few)

    def _fill(self, engine: Engine) -> None:
        if self.queue and len(engine.running) < SLOTS:
            engine.advance(self.now)
            while self.queue and len(engine.running) < SLOTS:
                row = self.queue.pop()
                heapq.heappush(engine.running, (engine.steps + self.lengths[row], row))

    def _move(self, few: int) -> None:
        """Empty the engine that has fewest traces, if these are few and fit elsewhere."""
        active = sorted(
            (i for i, engine in enumerate(self.engines) if engine.running),
            key=lambda i: len(self.engines[i].running),
        )
        if len(active) < 2:
            return
        source, others = self.engines[active[0]], [self.engines[i] for i in active[:0:-1]]
        free = sum(SLOTS - len(engine.running) for engine in others)
        if len(source.running) > min(few, free):
            return
        source.advance(self.now)
        for row, left in source.left():
            other = next(engine for engine in others if len(engine.running) < SLOTS)
            other.advance(self.now)
            tokens = self.lengths[row] - round(left)
            pause = PAUSE_SECONDS / other.step_seconds
            other.go_on(row, left + pause, tokens, self.prefill)
            self.moves, self.carried = self.moves + 1, self.carried + PROMPT + tokens
        source.running = []
        self.ends[active[0]] = self.now + PAUSE_SECONDS  # until all is saved


def _next_end(engine: Engine) -> float:
    if not engine.running:
        return math.inf
    return engine.at + (engine.running[0][0] - engine.steps) * engine.step_seconds


def simulate(engines: int, seed: int) -> list[Result]:
    """One run, and its end in all ways."""
    lengths, _ = draw(ROWS_A_SLOT * SLOTS * engines, seed)
    start = Tail(lengths, [*range(len(lengths))], [Engine(1) for _ in range(engines)],
                 prefill_seconds())  # fmt: skip
    start.run(until_empty=True)
    results = list[Result]()
    for few in (0, *FEW):
        tail = deepcopy(start)
        tail.run(few)
        seconds = tail.now - start.now
        used = sum(max(0.0, end - start.now) for end in tail.ends.values())
        results.append(Result(
            engines, few, seed, tail.now, seconds, engines * seconds, used, tail.moves, tail.carried
        ))  # fmt: skip
    return results


def table(results: Sequence[Result]) -> str:
    """A line for each fleet and way."""
    lines = []
    for engines in dict.fromkeys(r.engines for r in results):
        plain = {r.seed: r for r in results if (r.engines, r.few) == (engines, 0)}
        held = [r.held / (engines * r.whole_seconds) for r in plain.values()]
        lines.append([f"{engines} engines, all held", spread(held, ".1%"), "–", "–", "–"])
        for few in (0, *FEW):
            runs = [r for r in results if (r.engines, r.few) == (engines, few)]
            whole = [engines * plain[r.seed].whole_seconds for r in runs]
            used = [r.used / w for r, w in zip(runs, whole, strict=True)]
            saved = [(plain[r.seed].used - r.used) / 3600 for r in runs]
            longer = [r.tail_seconds - plain[r.seed].tail_seconds for r in runs]
            name = f"moved at {few} of {SLOTS} slots" if few else "each until its last trace"
            lines.append([
                f"{engines} engines, {name}", spread(used, ".1%"),
                spread(saved, ".2f") if few else "–", spread(longer) if few else "–",
                spread([r.moves for r in runs]) if few else "–",
            ])  # fmt: skip
    head = ["", "the tail, of all engine time", "engine hours saved", "run longer, s", "moves"]
    return markdown(head, lines)


def main(args: argparse.Namespace, folder: Path) -> None:
    """All fleets, with ``args.seeds`` seeds."""
    results = list[Result]()
    for engines in FLEETS:
        for seed in range(args.seeds if engines < FLEETS[-1] else max(1, args.seeds // 4)):
            results += simulate(engines, seed)
    keep(folder, "moves", table(results), {"results": [asdict(r) for r in results]})
