"""An engine of two dies, and what takes its place can't start: once, or for as long as one tries."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ray.exceptions import GetTimeoutError

from pipeline.config.run_config import RunConfig
from pipeline.errors import EngineError, ModelError
from pipeline.execution import run as flow
from pipeline.monitor.coordinator import CoordinatorClient
from tests.conftest import MakeConfig, write_shards

ROWS = 200


def config_of(folder: Path, make_config: MakeConfig) -> RunConfig:
    write_shards(folder / "in", [ROWS])
    return make_config(
        engine={
            "replicas": 2, "block_rows": 4, "vllm": {"max_num_seqs": 8},
            "simulated": {
                "tokens_median": 100, "seconds_per_token": 0.002,
                "dies_with": str(folder / "die"), "fails_to_start_with": str(folder / "bad-gpu"),
            },
        }
    )  # fmt: skip


def observer_of(
    harm: Callable[[], Any],
) -> Callable[[CoordinatorClient, int, str], AbstractContextManager[None]]:
    """Do ``harm`` as soon as both engines are ready."""

    @contextmanager
    def observer(coordinator: CoordinatorClient, _: int, __: str) -> Iterator[None]:
        def wait() -> None:
            engines = 0
            while engines < 2:
                time.sleep(0.1)
                with suppress(GetTimeoutError):  # a busy machine
                    engines = len(coordinator.snapshot().engines)
            harm()

        thread = threading.Thread(target=wait)
        thread.start()
        yield
        thread.join()

    return observer


def test_restart_that_fails_once_is_tried_again(tmp_path: Path, make_config: MakeConfig) -> None:
    def harm() -> None:
        (tmp_path / "bad-gpu").touch()
        (tmp_path / "die").touch()

    summary = flow.run(config_of(tmp_path, make_config), observer_of(harm))
    assert not (tmp_path / "bad-gpu").exists(), "no start has failed, so this shows nothing"
    assert summary.is_complete


def test_restart_that_always_fails_ends_the_run_when_the_other_engine_has_nothing_left_to_do(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config = config_of(tmp_path, make_config)

    def harm() -> None:
        (tmp_path / "bad-gpu").mkdir()
        (tmp_path / "die").touch()

    with pytest.raises(EngineError, match=r"could not start again \(5 tries, .*\): the simulated"):
        flow.run(config, observer_of(harm))
    done = sum(pq.read_table(path).num_rows for path in (tmp_path / "out").rglob("*.rows"))
    assert done > ROWS // 2, "the other engine has not gone on"
    (tmp_path / "bad-gpu").rmdir()
    assert flow.run(config).is_complete


def test_first_start_that_fails_ends_the_run_at_once(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "bad-gpu").mkdir()
    with pytest.raises(ModelError, match="the simulated engine was told not to start"):
        flow.run(config_of(tmp_path, make_config))
