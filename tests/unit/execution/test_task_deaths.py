"""A task whose process is killed each time ends the run, with its rows and the reason."""

import ast
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import EngineError, TaskKilledError
from pipeline.execution import ray_private
from pipeline.execution.cluster import explain
from pipeline.execution.sink import TraceSink
from pipeline.execution.task_deaths import (
    MOST_NAMES,
    READ_DEATHS,
    TASK_DEATHS,
    ends_of,
    refuse_endless_deaths,
)
from pipeline.planning import PartRef, Range, Shard, split_parts
from pipeline.schema import PART_COLUMN, ROW_COLUMN

EXECUTION = Path(__file__).parents[3] / "pipeline" / "execution"
RAYS_OWN_RETRIES = 3


@pytest.fixture
def attempt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list whose only value is how often the present task was started before."""
    attempt = [0]
    monkeypatch.setattr(ray_private, "task_attempt", lambda: attempt[0])
    return attempt


def test_task_goes_on_until_it_has_died_too_often(attempt: list[int]) -> None:
    for attempt[0] in range(TASK_DEATHS):
        refuse_endless_deaths("writes", lambda: [("a", 1)])
    attempt[0] = TASK_DEATHS
    with pytest.raises(TaskKilledError, match=r"writes rows 1 to 7 of a was killed 3 times"):
        refuse_endless_deaths("writes", lambda: [("a", 7), ("a", 1)])
    refuse_endless_deaths("reads", list, READ_DEATHS)


def test_task_that_ray_gives_up_by_itself_has_named_its_rows_before() -> None:
    assert TASK_DEATHS <= RAYS_OWN_RETRIES


def test_only_some_of_many_files_are_named(attempt: list[int]) -> None:
    attempt[0] = TASK_DEATHS
    shards = [Shard(f"s{i}.parquet", f"/s{i}.parquet", 9, 1, "t") for i in range(MOST_NAMES + 2)]
    ranges = [Range(part, part.start, part.stop) for part in split_parts(shards, 4)]
    with pytest.raises(TaskKilledError) as raised:
        refuse_endless_deaths("reads", lambda: ends_of(ranges))
    message = raised.value.message
    assert "rows 0 to 8 of s0.parquet" in message
    assert "s2.parquet and of 2 more files was killed" in message


def test_sink_names_the_part_that_it_was_to_write(attempt: list[int]) -> None:
    attempt[0] = TASK_DEATHS
    part = str(PartRef("en/s.00001.parquet", 32, 64))
    block = pa.table({PART_COLUMN: [part, part], ROW_COLUMN: [40, 41]})
    sink = TraceSink(None, None, 1)  # type: ignore[arg-type]
    with pytest.raises(TaskKilledError, match=r"writes rows 40 to 41 of en/s.00001.parquet was"):
        sink.write([block, block], None)


def test_message_does_not_promise_that_the_same_command_goes_on_as_it_is(
    attempt: list[int],
) -> None:
    attempt[0] = TASK_DEATHS
    with pytest.raises(TaskKilledError) as raised:
        refuse_endless_deaths("writes", lambda: [("a", 1)])
    told = explain(raised.value).message
    assert "more memory, or run less beside it; then the same command continues" in told
    assert told.count("the same command") == 1
    assert "the same command continues" in explain(EngineError("another")).message


def test_each_remote_task_refuses_to_die_for_ever() -> None:
    """All that Ray may repeat: tasks of our own, and what Ray Data calls of a source and a sink."""
    tasks = dict[str, ast.FunctionDef]()
    for path in EXECUTION.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "ray.remote" in map(
                ast.unparse, node.decorator_list
            ):
                tasks[f"{path.name}:{node.name}"] = node
    assert len(tasks) == 3, tasks.keys()
    for name, node in tasks.items():
        first = ast.unparse(node.body[0])
        assert first.startswith("refuse_endless_deaths("), f"{name} begins with {first}"
