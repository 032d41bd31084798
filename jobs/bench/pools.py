"""Workers of unequal speed that share one output: how much of the bound they reach.

    python -m jobs.bench pools            # computed, see `jobs.bench.fleets`
    python -m jobs.bench pools --real     # two processes of qwq-batch work, simulated engines

Each worker has one engine of 64 slots. Every second worker's takes three times as long for a step.
The bound is that of `jobs.bench.tails`. "One queue": every free slot takes its next row from one
queue, and keeps it to its end.
"""

import argparse
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import yaml

from jobs.bench.fleets import Fleet, Shape, bound, one_queue
from jobs.bench.queues import draw
from jobs.bench.tables import keep, markdown, spread
from jobs.bench.tails import (
    ENDLESS,
    LONGEST,
    MEDIAN,
    SEQUENCE_SECONDS,
    SIGMA,
    SLOTS,
    STEP_SECONDS,
    elapsed,
    lengths_of,
    write_prompts,
)
from pipeline.errors import EngineError
from pipeline.output import board

RATIOS = (1, 3)
# Of real processes: lengths, and how long a worker waits until it looks and hands rows over, are
# divided by this. The time to end engines and save their traces is what it is.
SHORTER = 20
HASTY = (
    "import pipeline.execution.claimed_rows as rows; "
    f"rows.WAIT_SECONDS /= {SHORTER}; rows.WORTH_SECONDS /= {SHORTER}; "
    "from pipeline.cli import main; main()"
)


class Policy(NamedTuple):
    """The most and least waves that a worker claims; how much faster those are that get rows."""

    most: float = board.MOST_WAVES
    least: float = board.LEAST_WAVES
    faster: float = board.FASTER


# None: one queue.
POLICIES: dict[str, Policy | None] = {
    "one queue": None,
    f"ours: {board.MOST_WAVES:g} to {board.LEAST_WAVES:g} waves": Policy(),
    "the same, none handed over": Policy(faster=math.inf),
    "2 to 0.25 waves": Policy(2, 0.25),
    "always 1 wave": Policy(1, 1),
    "always 4 waves": Policy(4, 4),
}


@dataclass
class Result:
    """One fleet: its share of the bound, and creates of boards that others were faster with.

    ``moves``: rows that were handed over.
    """

    policy: str
    workers: int
    ratio: int
    rows_a_slot: int
    seed: int
    share: float
    takes: int = 0
    lost_creates: int = 0
    rows_twice: int = 0
    moves: int = 0


@contextmanager
def claiming(policy: Policy) -> Iterator[None]:
    """While the body runs, workers claim and hand over by ``policy``."""
    with (
        patch.object(board, "MOST_WAVES", policy.most),
        patch.object(board, "LEAST_WAVES", policy.least),
        patch.object(board, "FASTER", policy.faster),
    ):
        yield


def slowness_of(workers: int, ratio: float) -> list[float]:
    """Every second worker is slower."""
    return [1.0 if i % 2 == 0 else ratio for i in range(workers)]


def simulate(policy: str, workers: int, ratio: int, rows_a_slot: int, seed: int) -> Result:
    """Run one fleet."""
    slowness = slowness_of(workers, ratio)
    lengths, _ = draw(rows_a_slot * SLOTS * workers, seed)
    best, claims = bound(lengths, slowness), POLICIES[policy]
    key = (policy, workers, ratio, rows_a_slot, seed)
    if claims is None:
        return Result(*key, best / one_queue(lengths, slowness))
    fleet = Fleet(Shape(slowness), lengths)
    with claiming(claims):
        share = best / fleet.run()
    return Result(*key, share, fleet.takes, fleet.store.lost_creates, fleet.twice, fleet.moves)


def table(results: Sequence[Result]) -> str:
    """Rows by workers, ratio and rows a slot; columns by policy."""
    keys = dict.fromkeys((r.workers, r.ratio, r.rows_a_slot) for r in results)
    policies = list(dict.fromkeys(r.policy for r in results))
    lines = []
    for workers, ratio, rows in keys:
        here = [r for r in results if (r.workers, r.ratio, r.rows_a_slot) == (workers, ratio, rows)]
        cells = [spread([r.share for r in here if r.policy == name], ".3f") for name in policies]
        lines.append([f"{workers} workers, 1:{ratio}, {rows} rows a slot", *cells])
    return markdown(["share of the bound", *policies], lines)


def config(folder: Path, slowness: float) -> dict[str, Any]:
    """One of two workers below ``folder``."""
    return {
        "input": {"path": str(folder / "prompts")}, "output": {"path": str(folder / "output")},
        "model": {"path": "qwq-nano"}, "sampling": {"max_tokens": LONGEST // SHORTER},
        "thinking": {"rescue": False, "detect_loops": False},
        "engine": {
            "kind": "simulated", "device": "cpu", "block_rows": 1, "vllm": {"max_num_seqs": SLOTS},
            "simulated": {
                "tokens_median": MEDIAN // SHORTER, "tokens_sigma": SIGMA, "endless": ENDLESS,
                "seconds_per_token": STEP_SECONDS * slowness,
                "seconds_per_sequence": SEQUENCE_SECONDS * slowness,
                "log": str(folder / "steps.jsonl"),
            },
        },
    }  # fmt: skip


def run_real(folder: Path, rows_a_slot: int, ratio: int) -> Result:
    """Two workers in processes of their own; their start does not count."""
    shutil.rmtree(folder, ignore_errors=True)
    slowness = slowness_of(2, ratio)
    write_prompts(folder / "prompts", rows_a_slot * SLOTS * 2)
    workers = []
    for number, factor in enumerate(slowness):
        path = folder / f"worker-{number}.yaml"
        path.write_text(yaml.safe_dump(config(folder, factor)))
        with (folder / f"worker-{number}.log").open("wb") as log:
            command = [sys.executable, "-c", HASTY, "work", str(path)]
            workers.append(subprocess.Popen(command, stdout=log, stderr=log))  # noqa: S603 (our own)
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise EngineError(f"a worker failed; see {folder}/worker-*.log")
    seconds, _ = elapsed(folder / "steps.jsonl", 2 * SLOTS)
    best = bound(lengths_of(folder / "output").tolist(), slowness)
    return Result("two processes", 2, ratio, rows_a_slot, 0, best / seconds)


def main(args: argparse.Namespace, folder: Path) -> None:
    """All policies with each size of a fleet; print the table after each size."""
    results = list[Result]()
    if args.real:
        results.append(run_real(folder / "pools-real", 50, RATIOS[-1]))
        keep(folder, "pools-real", table(results), {"results": [asdict(r) for r in results]})
        return
    for workers in map(int, args.workers.split(",")):
        for rows in map(int, args.rows.split(",")):
            for ratio in RATIOS:
                for policy in POLICIES:
                    for seed in range(args.seeds):
                        results.append(simulate(policy, workers, ratio, rows, seed))
                print(asdict(results[-1]), file=sys.stderr)
    name = f"pools-{args.workers.replace(',', '-')}"
    keep(folder, name, table(results), {"results": [asdict(r) for r in results]})
