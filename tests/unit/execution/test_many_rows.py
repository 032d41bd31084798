"""More rows than a part, a batch or a table holds, from the shards to the finished parts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution import ray_private
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.source import PromptSource
from pipeline.input import rows as reading
from pipeline.input.longest_first import ROWS_A_TABLE, ByColumn, longest_first
from pipeline.output.summary import summarize
from pipeline.planning import PartRef, Pass
from pipeline.schema import (
    PART_COLUMN,
    ROW_COLUMN,
    START_COLUMN,
    STOP_COLUMN,
    TRACE_COLUMNS,
    trace_fields,
)
from tests.conftest import MakeConfig
from tests.outputs import PLAIN

RUN = Pass(0, 0, 1)
# A shard of two parts, whose second has one row; no row; one batch; less than one; a whole part.
SIZES = (4097, 0, 1024, 903, 4096)
ROW_GROUP_ROWS = 1500  # no multiple of a batch


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The read tasks are called here, not by Ray."""
    monkeypatch.setattr(ray_private, "task_attempt", lambda: 0)


def write_numbered_shards(folder: Path) -> list[int]:
    """Shards of `SIZES` rows, each with a number and a prompt that names it; returns the numbers."""
    folder.mkdir()
    first = 0
    for shard, size in enumerate(SIZES):
        numbers = range(first, first + size)
        table = pa.table(
            {
                "id": pa.array(numbers, pa.int64()),
                "prompt": pa.array([f"What is {n}?" for n in numbers], pa.string()),
                "length": pa.array([(n * 7919) % 10_007 for n in numbers], pa.int64()),
            }
        )
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=ROW_GROUP_ROWS)
        first += size
    return list(range(first))


def tables(run: PreparedRun, run_pass: Pass = RUN, last: int = 0) -> Iterator[pa.Table]:
    """What the read tasks of ``run`` give, one task after the other."""
    lengths = run.lengths(run_pass) if last else None
    source = PromptSource(run.context(run_pass), run.plan.todo, lengths, last)
    tasks = source.get_read_tasks(source.read_tasks)
    assert len(tasks) == source.read_tasks
    for task in tasks:
        read = 0
        for table in task():
            read += table.num_rows
            yield table
        assert read == task.metadata.num_rows


def traces(prompts: pa.Table) -> pa.Table:
    """A trace for each of ``prompts`` whose answer repeats the prompt, as the sink gets them."""
    table = prompts
    rows = [
        {**PLAIN, "think": "So.", "answer": f"{id_}: {prompt}"}
        for id_, prompt in zip(*(prompts[n].to_pylist() for n in ("id", "prompt")), strict=True)
    ]
    for name, field in zip(TRACE_COLUMNS, trace_fields({}, raw_text=False), strict=False):
        table = table.append_column(field, pa.array([row.get(name) for row in rows], field.type))
    return table


@pytest.mark.parametrize("rows_a_read_task", [reading.ROWS_A_READ_TASK, 1700])
def test_every_row_of_many_comes_out_once_in_its_place(
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
    rows_a_read_task: int,
) -> None:
    """With the defaults of parts and batches; then with read tasks that begin within a batch."""
    monkeypatch.setattr("pipeline.execution.source.ROWS_A_READ_TASK", rows_a_read_task)
    numbers = write_numbered_shards(tmp_path / "in")
    run = prepare(make_config())
    assert [part.rows for part in run.parts] == [4096, 1, 0, 1024, 903, 4096]
    run.open_output()
    for table in tables(run):
        for start in range(0, table.num_rows, 700):  # a block can hold the ends of two parts
            for ref in run.ledger.write_block(traces(table.slice(start, 700))):
                run.ledger.commit(ref, RUN, run.traces, run.metadata(RUN))
    run.ledger.commit(PartRef.of(run.parts[2]), RUN, run.traces, run.metadata(RUN))
    summary = summarize(run.ledger.store, run.parts, 1, None)
    assert (summary.is_complete, summary.rows, summary.traces) == (True, 10_120, 10_120)
    found = [
        pq.read_table(run.ledger.store.path(part.name), columns=["id", "prompt", "answer"])
        for part in run.parts
    ]
    assert [table.num_rows for table in found] == [part.rows for part in run.parts]
    rows: list[dict[str, Any]] = pa.concat_tables(found).to_pylist()
    assert [row["id"] for row in rows] == numbers
    for row in rows:
        assert row["prompt"] == f"What is {row['id']}?"
        assert row["answer"] == f"{row['id']}: {row['prompt']}"
    assert run.plan.rows_todo == 0


def test_rows_know_their_part_and_number_wherever_they_are_read(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the shards, then the last rows longest first."""
    monkeypatch.setattr("pipeline.execution.source.ROWS_A_READ_TASK", 1700)
    numbers = write_numbered_shards(tmp_path / "in")
    run = prepare(make_config(input={"path": str(tmp_path / "in"), "length_column": "length"}))
    last = 1650
    rows = pa.concat_tables(tables(run, last=last)).to_pylist()
    first_of = [0, 4097, 4097, 5121, 6024]  # the number of each shard's first row
    assert [row["id"] for row in rows[:-last]] == numbers[:-last]
    lengths = [row["length"] for row in rows[-last:]]
    assert sorted(row["id"] for row in rows[-last:]) == numbers[-last:]
    assert lengths == sorted(lengths, reverse=True)
    for row in rows:
        ref = PartRef.parse(row[PART_COLUMN])
        assert row["id"] == first_of[int(ref.shard)] + row[ROW_COLUMN]
        assert ref.start <= row[ROW_COLUMN] < ref.stop
        assert (row[START_COLUMN], row[STOP_COLUMN]) == (row[ROW_COLUMN], row[ROW_COLUMN] + 1)


@pytest.mark.parametrize("rows", [1, ROWS_A_TABLE, ROWS_A_TABLE + 1, 2 * ROWS_A_TABLE, 2500])
def test_ordered_rows_are_all_there_at_the_borders_of_tables(rows: int) -> None:
    lengths = pa.array([(n * 7919) % 10_007 for n in range(rows)], pa.int64())
    table = pa.table({"id": pa.array(range(rows)), "n": lengths})
    pieces = [table.slice(start, 999) for start in range(0, rows, 999)]
    found = list(longest_first(pieces, ByColumn("n")))
    whole, rest = divmod(rows, ROWS_A_TABLE)
    assert [t.num_rows for t in found] == [ROWS_A_TABLE] * whole + [rest] * bool(rest)
    ordered = pa.concat_tables(found)
    assert sorted(ordered["id"].to_pylist()) == list(range(rows))
    assert ordered["n"].to_pylist() == sorted(lengths.to_pylist(), reverse=True)
