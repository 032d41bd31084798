"""A fleet of workers with eight engines each: requests, boards, CPU time, share of the bound.

    python -m jobs.bench fleet

Computed, see `jobs.bench.fleets`: the real claims on a storage in memory that counts requests.
Those of the rows themselves (fragments, parts, checkpoints) are not counted; they are the same in
a run without workers. So is what a worker does before it claims rows.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.bench.fleets import Fleet, Shape, bound
from jobs.bench.queues import draw
from jobs.bench.tables import keep, markdown
from jobs.bench.tails import SLOTS

ENGINES, ROWS_A_SHARD = 8, 50_000


@dataclass
class Result:
    """One fleet.

    ``requests``: by kind. ``worker_hours``: of all workers. ``claim_seconds``: of the slowest of a
    hundred claims. ``cpu_seconds``: of all claims, without a client of S3. ``share``: of the bound.
    """

    workers: int
    rows: int
    requests: dict[str, int]
    worker_hours: float
    claims: int
    lost_creates: int
    claim_seconds: float
    board_bytes: int
    cpu_seconds: float
    share: float
    rows_twice: int


def simulate(workers: int, rows_a_slot: int) -> Result:
    """Run one fleet."""
    lengths, _ = draw(rows_a_slot * SLOTS * ENGINES * workers, 0)
    slowness = [1.0] * workers
    fleet = Fleet(Shape(slowness, ENGINES, ROWS_A_SHARD), lengths)
    share = bound(lengths, slowness, ENGINES) / fleet.run()
    times = sorted(fleet.claim_seconds)
    return Result(
        workers, len(lengths), dict(fleet.store.requests), sum(fleet.workers_ended) / 3600,
        len(times), fleet.store.lost_creates, times[len(times) * 99 // 100],
        fleet.store.largest_board, fleet.cpu_seconds, share, fleet.twice,
    )  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """A line for each fleet."""
    kinds = sorted({kind for r in results for kind in r.requests})
    lines = [
        [
            f"{r.workers} x {ENGINES} engines, {r.rows:,} rows",
            f"{r.share:.3f}",
            *(f"{r.requests[kind] / r.worker_hours:,.0f}" for kind in kinds),
            f"{1000 * sum(r.requests.values()) / r.rows:.0f}",
            f"{r.lost_creates / r.claims:.1f}",
            f"{r.claim_seconds:.1f}",
            f"{r.board_bytes / 1024:.1f}",
            f"{r.cpu_seconds / r.worker_hours:.1f}",
        ]
        for r in results
    ]
    head = [
        "", "share of the bound", *(f"{kind} a worker hour" for kind in kinds),
        "requests for 1,000 rows", "creates lost a claim", "slow claim, s", "largest board, KiB",
        "CPU s a worker hour",
    ]  # fmt: skip
    return markdown(head, lines)


def main(args: argparse.Namespace, folder: Path) -> None:
    """All sizes; print the table."""
    results = list[Result]()
    for workers in map(int, args.workers.split(",")):
        results.append(simulate(workers, args.rows))
        print(results[-1], file=sys.stderr)
    keep(folder, "fleet", table(results), {"results": [asdict(r) for r in results]})
