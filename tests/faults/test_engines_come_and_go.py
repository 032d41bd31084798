"""A run whose engines follow the nodes of its cluster: `engine.replicas: [1, 3]`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.monitor.figures import Figures
from pipeline.monitor.history import all_figures
from pipeline.output import engine_starts
from pipeline.storage import Storage
from tests.faults.conftest import NewCase
from tests.faults.harness import Case
from tests.faults.ray_cluster import WORKER_GPUS, Node, RayCluster

# Traces wait after their first tokens, unless a file is there.
GATE = """
import asyncio
from pathlib import Path
from pipeline.engines.simulated_scheduler import Scheduler
step = Scheduler.step
async def step_and_wait(*arguments):
    await step(*arguments)
    while not Path({gate!r}).exists():
        await asyncio.sleep(0.1)
Scheduler.step = step_and_wait
"""


@pytest.fixture
def first(cluster: RayCluster) -> Iterator[Node]:
    """The only worker before the test, and after it."""
    [worker] = cluster.workers
    yield worker
    for other in [other for other in cluster.workers if other is not worker]:
        cluster.lose(other)


def record_of(case: Case) -> list[Figures]:
    """The figures of its only run; at least one line, which may have no engines."""
    return next(all_figures(Storage(case.output.url)), [Figures("", 0, 0, 0)])


def test_run_grows_to_three_nodes_and_shrinks_to_one_and_loses_nothing(
    new_case: NewCase, cluster: RayCluster, first: Node, tmp_path: Path
) -> None:
    """One node is drained, so its engine saves its traces; another is lost without a word.

    Their rows are done on the first node, one engine after the other, once its engine is idle and
    has been given back. Nothing but the drain saves traces here.
    """
    gate = tmp_path / "open"
    case = new_case(
        "one node becomes three, then one again: drained, and lost",
        sizes=[60, 60],
        in_workers=GATE.format(gate=str(gate)),
        output={"checkpoint_seconds": 3600},
        engine={
            "device": "gpu", "replicas": [1, 3], "tensor_parallel": WORKER_GPUS, "block_rows": 2,
            "simulated": {"seconds_per_token": 0.005},
        },
    )  # fmt: skip
    driver = case.start()
    driver.must_reach(lambda: len(record_of(case)[-1].engines) == 1, "an engine on the first node")
    with ThreadPoolExecutor(2) as pool:
        drained, lost = pool.map(lambda _: cluster.add_worker(), range(2))
    driver.must_reach(lambda: len(record_of(case)[-1].engines) == 3, "an engine on each node")
    gate.touch()
    driver.must_reach(case.progress(), "a block")
    gate.unlink()
    case.remember()
    cluster.drain(drained)
    driver.must_reach(lambda: not drained.engines(), "the end of the engine on the drained node")
    cluster.lose(drained)
    cluster.lose(lost)
    gate.touch()
    case.finish(driver)
    assert case.check().carried_tokens > 0, "the engine on the drained node saved no trace"

    record = record_of(case)
    engines = [len(figures.engines) for figures in record]
    peak = engines.index(3)
    assert sorted(engines[:peak]) == engines[:peak], "it grew one by one"
    alone = engines.index(1, peak)
    assert max(engines[alone:]) == 1, "one node has room for one engine"
    assert record[alone].rows < case.rows, "it shrank in the middle of the run"
    starts = list(engine_starts.read(Storage(case.output.url)))
    assert len(starts) == 5, "an idle engine is given back, and its GPUs go to one that was lost"
    assert engines[-1] == 0
    ready = sum(len(now.engines) * (now.seconds - last.seconds) for last, now in pairwise(record))
    counted, whole = record[-1].engine_seconds, record[-1].seconds
    assert 0.8 * ready < counted < 0.9 * 3 * whole, "only the time of engines that are there counts"
