"""One local Ray cluster for all runs of the simulated engine."""

from collections.abc import Iterator

import pytest

from pipeline.config.load import parse_config
from pipeline.execution.cluster import cluster


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    config = parse_config(
        {
            "input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "qwq-nano"},
            "engine": {"kind": "simulated", "device": "cpu", "replicas": 2}, "ray": {"num_cpus": 6},
        }
    )  # fmt: skip
    with cluster(config):
        yield
