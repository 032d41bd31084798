"""Runs submitted to a Ray cluster as jobs, on nodes with GPUs that are only counted."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_shards
from tests.faults.conftest import NewCase
from tests.faults.harness import PIPELINE, Case, Driver, wait_until
from tests.faults.ray_cluster import WORKER_GPUS, RayCluster


class Jobs:
    """Runs of cases as jobs; a `Driver` is the command that submits one and follows its log."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self.followers: dict[str, Driver] = {}

    def submit(self, case: Case, *settings: str) -> Driver:
        name = f"{case.folder.parent.name}-{len(self.followers)}"
        self.followers[name] = case.start(self._cluster.job_command(name), settings)
        return self.followers[name]

    def stop_all(self) -> None:
        for name, follower in self.followers.items():
            if follower.code is None:
                self._cluster.stop_job(name)


@pytest.fixture
def jobs(new_case: NewCase, cluster: RayCluster) -> Iterator[Jobs]:
    jobs = Jobs(cluster)
    yield jobs
    jobs.stop_all()


@pytest.mark.long
def test_engine_over_two_nodes_loses_one_then_its_job_is_stopped_and_another_goes_on(
    new_case: NewCase, cluster: RayCluster, jobs: Jobs
) -> None:
    """The first job's engine takes the GPUs of two nodes, the second's two those of one each."""
    cluster.add_worker()
    case = new_case(
        "a node of an engine over two lost, another joins; then `ray job stop`",
        sizes=[80],
        engine={
            "device": "gpu", "replicas": 1, "tensor_parallel": WORKER_GPUS, "pipeline_parallel": 2,
        },
    )  # fmt: skip
    first = jobs.submit(case)
    first.must_reach(case.progress(), "a block")
    case.remember()
    [(group, nodes)] = cluster.placement_groups().items()
    assert len(nodes) == 2
    cluster.lose(next(worker for worker in cluster.workers if worker.engines()))
    cluster.add_worker()
    first.must_reach(
        lambda: len(cluster.placement_groups()[group] - nodes - {""}) == 1, "the new node's use"
    )
    first.must_reach(cluster.engines, "the engine's return")
    first.must_reach(case.progress(), "another block")
    assert len(cluster.placement_groups()) == 1
    jobs.stop_all()
    first.wait()  # with 0: a job that was stopped is no failure to `ray job submit`
    assert "ended by SIGTERM" in first.printed, first.told()
    wait_until(lambda: not cluster.placement_groups(), "the end of all groups", first.told)

    second = jobs.submit(case, "engine.replicas=2", "engine.pipeline_parallel=1")
    second.must_reach(
        lambda: all(worker.engines() for worker in cluster.workers), "an engine on each node"
    )
    case.finish(second)
    assert f"{case.traces} of {case.traces} traces in" in second.printed, second.told()
    assert case.check().carried_tokens > 0

    wrong = jobs.submit(case, "engine.replica=2")
    assert wrong.wait() != 0
    assert "engine.replica: unknown key" in wrong.printed, wrong.told()
    cluster.lose(cluster.workers[-1])


def test_doctor_looks_at_the_nodes_of_the_cluster(cluster: RayCluster, tmp_path: Path) -> None:
    """One of two nodes has a program that shows GPUs as nvidia-smi does."""
    program = tmp_path / "nvidia-smi"
    line = "NVIDIA H100 80GB HBM3, 81559, 4, 550.54.15"
    program.write_text(f"#!/bin/sh\necho '{line}'\necho '{line}'\n")
    program.chmod(0o755)
    worker = cluster.add_worker(PATH=f"{tmp_path}:{os.environ['PATH']}")
    write_shards(tmp_path / "in", [1])
    config = tmp_path / "run.yaml"
    config.write_text(
        f"input: {{path: {tmp_path}/in}}\noutput: {{path: {tmp_path}/out}}\n"
        f"model: {{path: qwq-nano}}\nengine: {{device: gpu, tensor_parallel: {WORKER_GPUS}}}\n"
    )
    told = subprocess.run(
        [*PIPELINE, "doctor", str(config)], env=cluster.environment, capture_output=True, text=True
    ).stdout
    here = socket.gethostname()
    assert f"{here}: 2 x NVIDIA H100 80GB HBM3, 80 GiB, driver 550.54.15" in told, told
    assert f"{here}: Ray counts 2 GPUs, and nvidia-smi shows 0" in told, told
    assert "2 x H100 could be used so" in told, told
    cluster.lose(worker)
