"""The status of an output that several workers share: all of them, added up."""

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.insight.status import Status, status
from pipeline.monitor.figures import EnginePool
from pipeline.output import engine_starts, lease
from pipeline.output.board import Board, Holding
from pipeline.output.engine_starts import EngineStart
from pipeline.output.layout import CLAIMS, WORKERS
from pipeline.storage import Storage
from tests.outputs import write_output, write_record


@pytest.fixture
def url(tmp_path: Path) -> str:
    return write_output(tmp_path, [{}] * 20, durable=10)


def at(minutes_ago: float) -> datetime:
    return datetime.now(UTC) - timedelta(minutes=minutes_ago)


def worker(url: str, name: str, since: datetime, silent: float = 0) -> None:
    """A worker of another machine, which gave a sign of life ``silent`` seconds ago."""
    content = {
        "host": f"node-{name}", "pid": 7, "process": "boot ns 1",
        "since": f"{since:%Y-%m-%dT%H:%M:%SZ}", "at": time.time() - silent, "beat": 3,
    }  # fmt: skip
    Storage(url).put(f"{WORKERS}/{name}.yaml", yaml.safe_dump(content).encode())


def holds(url: str, **rows: int) -> None:
    held = {name: Holding(9, (("s.parquet", 0, n),)) for name, n in rows.items()}
    Storage(url).put(f"{CLAIMS}/00000.00000002.json", Board(holdings=held).to_json())


def lines(found: Status, first: str) -> list[str]:
    return [line.split(maxsplit=1)[1] for line in found.lines() if line.startswith(first)]


def test_workers_are_shown_each_with_its_rows_and_their_figures_added_up(url: str) -> None:
    worker(url, "one", at(5))
    worker(url, "two", at(3), silent=30)
    worker(url, "three", at(9), silent=100)
    holds(url, one=4, three=6)
    pools = {"one": EnginePool(2, 4, 64, 3.0), "two": EnginePool(1, 2, 16, 3.0)}
    for name, pool in {**pools, "three": EnginePool(5), "gone": EnginePool(7)}.items():
        write_record(url, pool, seconds=60, rows=100, begun=at(1), driver=name)
    found = status(url)
    assert found.is_running
    assert lines(found, "driver") == ["none alone: workers share the output"]
    shown = lines(found, "worker")
    assert len(shown) == 3
    assert "node-one" in shown[0]
    assert shown[0].endswith(": at work, has 4 rows")
    assert re.search(r": silent, its last sign of life 0:01:4\d ago, has 6 rows$", shown[1])
    assert shown[2].endswith(": at work, has 0 rows")
    figures = found.figures
    assert figures is not None
    assert len(figures.engines) == 3, "neither the silent worker's nor one's that has ended"
    assert figures.tokens_per_second == 300
    assert (figures.rows, figures.rows_to_do) == (200, 210), "10 rows are not durable"
    assert figures.tokens["spent"] == 3 * 60 * 100
    assert figures.engine_pool == EnginePool(3, 4, 64, 3.0)
    assert any("300 tokens/s" in line for line in lines(found, "now"))
    told: dict[str, Any] = found.to_json()
    assert told["running"]
    assert [(w["host"], w["is_at_work"], w["rows"]) for w in told["workers"]] == [
        ("node-one", True, 4), ("node-three", False, 6), ("node-two", True, 0),
    ]  # fmt: skip
    assert len(told["figures"]["engines"]) == 3


def test_driver_that_begins_another_execution_counts_once(url: str) -> None:
    worker(url, "one", at(5))
    for begun in (at(3), at(1.5)):
        write_record(url, EnginePool(2), seconds=60, begun=begun, driver="one")
    figures = status(url).figures
    assert figures is not None
    assert len(figures.engines) == 2


def test_figures_of_a_driver_alone_are_the_last_ones(url: str) -> None:
    with lease.hold(Storage(url), lambda _: None):
        for begun, driver in ((at(3), "one"), (at(1.5), "two")):
            write_record(url, EnginePool(2), seconds=60, begun=begun, driver=driver)
        found = status(url)
        assert found.is_running
        assert lines(found, "driver")[0].startswith("running: process")
        assert found.figures is not None
        assert [engine.name for engine in found.figures.engines] == ["two-0", "two-1"]
        assert found.to_json()["workers"] == []


def test_engine_starts_are_those_since_the_first_living_worker(url: str) -> None:
    for minutes in (20, 7, 2):
        start = EngineStart(f"e{minutes}", "node", 1.0, at(minutes).isoformat())
        engine_starts.write(Storage(url), start)
    worker(url, "dead", at(30), silent=500)
    worker(url, "one", at(8))
    worker(url, "two", at(3))
    assert {start.name for start in status(url).starts} == {"e7", "e2"}


def test_workers_that_are_all_silent_do_not_run(url: str) -> None:
    worker(url, "one", at(30), silent=500)
    found = status(url)
    assert not found.is_running
    assert lines(found, "driver") == ["none at work"]
