"""One local Ray cluster for all runs of the simulated engine."""

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.execution.cluster import cluster
from tests.conftest import MakeConfig


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


@pytest.fixture
def make_config(make_config: MakeConfig) -> MakeConfig:
    """With blocks of 16 rows: of one row each, as long traces have them, a run takes twice as long."""

    def make(**sections: dict[str, Any]) -> RunConfig:
        engine = {"block_rows": 16, **sections.get("engine", {})}
        return make_config(**{**sections, "engine": engine})

    return make
