"""Engines that need several nodes: their placement groups follow them, and do not stay behind."""

from signal import SIGTERM

from tests.faults.conftest import NewCase
from tests.faults.harness import wait_until
from tests.faults.ray_cluster import RayCluster


def test_engine_larger_than_any_node_outlives_a_node_and_leaves_nothing(
    new_case: NewCase, cluster: RayCluster
) -> None:
    """Four GPUs on nodes of two; the third node stands by."""
    for _ in range(3):
        cluster.add_worker(gpus=2)
    engine = {"device": "gpu", "replicas": 1, "tensor_parallel": 2, "pipeline_parallel": 2}
    case = new_case("a node of an engine over two nodes lost", sizes=[80], engine=engine)
    driver = case.start()
    driver.must_reach(case.progress(), "a block")
    [(group, nodes)] = cluster.placement_groups().items()
    assert len(nodes) == 2
    case.remember()
    cluster.lose(next(worker for worker in cluster.workers if worker.engines()))
    driver.must_reach(
        lambda: len(cluster.placement_groups()[group] - nodes - {""}) == 1, "the third node's use"
    )
    driver.must_reach(cluster.engines, "the engine's return")
    driver.must_reach(case.progress(), "another block")
    assert len(cluster.placement_groups()) == 1
    driver.signal(SIGTERM)
    assert driver.wait() == 128 + SIGTERM, driver.told()
    wait_until(lambda: not cluster.placement_groups(), "the end of all groups", driver.told)
    case.finish()
    assert not cluster.placement_groups()
    case.check()
    for worker in cluster.workers[-2:]:
        cluster.lose(worker)
