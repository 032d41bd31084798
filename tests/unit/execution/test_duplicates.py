"""Duplicates: found by their hash; they get the traces of a durable row, and its name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OutputError
from pipeline.execution.copies import Copies, RowIndex, fill
from pipeline.execution.duplicates import find_copies, hash_rows
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.output import passes
from pipeline.output.merge import interleaved
from pipeline.output.parts import part_metadata
from pipeline.planning import PartRef, Pass, Range, Shard, split_parts
from pipeline.schema import ORIGIN_FIELDS, ROW_COLUMN
from tests.conftest import MakeConfig

RUN = Pass(0, 0, 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3))), st.data())
def test_of_equal_rows_the_first_is_the_source(keys: list[Any], data: st.DataObject) -> None:
    done = data.draw(st.integers(0, len(keys)))
    copied, sources = find_copies(np.array(keys, np.uint64).reshape(-1, 2).T, done)
    firsts = [i if key == (0, 0) else keys.index(key) for i, key in enumerate(keys)]
    assert copied.tolist() == [firsts[i] != i for i in range(done, len(keys))]
    assert sources.tolist() == [firsts[i] for i in range(done, len(keys)) if firsts[i] != i]


def test_row_index_counts_over_the_rows_to_do() -> None:
    parts = split_parts([Shard("s", "", 20, 1, "t")], 10)
    index = RowIndex([
        Range(parts[0], 3, 5), Range(parts[1], 10, 20, ((12, (0,)), (17, (1,)))), Range(parts[0], 0, 1)
    ])  # fmt: skip
    assert [(part.start, row) for part, row in map(index.__getitem__, range(5))] == [
        (0, 3),
        (0, 4),
        (10, 12),
        (10, 17),
        (0, 0),
    ]


def job_of(make_config: MakeConfig, rows: list[dict[str, Any]], **sections: Any) -> PreparedRun:
    """A run over one shard with these rows, in parts of four."""
    config = make_config(**{"output": {"rows_per_part": 4}, **sections})
    Path(config.input.path).mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), Path(config.input.path) / "a.parquet")
    return prepare(config)


def hashes(job: PreparedRun, pieces: Sequence[Range] = ()) -> list[tuple[int, ...]]:
    pieces = pieces or [Range(part, part.start, part.stop) for part in job.parts]
    return [tuple(row) for row in hash_rows(job.context(RUN), pieces).T.tolist()]


def test_rows_with_the_same_model_input_are_equal(make_config: MakeConfig) -> None:
    def ask(text: str | None, tools: str | None = None, role: str = "user") -> dict[str, Any]:
        return {"messages": [{"role": role, "content": text}], "tools": tools, "id": str(text)}

    tool = '[{"type": "function", "function": {"name": "f"}}]'
    job = job_of(
        make_config,
        [
            ask("a"), ask("b"), {**ask("a"), "id": "another"}, ask("a", tool),
            ask("a", tool.replace(" ", "")), ask("a", role="system"), ask(None), ask(None),
            ask("a", "{"), ask("a", "{"),
        ],
    )  # fmt: skip
    found = hashes(job)
    assert found[0] == found[2]
    assert found[3] == found[4], "the same tools, otherwise spaced"
    assert found[5:] == [(0, 0)] * 5, "rows without a prompt are nothing's duplicates"
    assert len(set(found)) == 4
    picked = [Range(job.parts[0], 0, 4, ((0, (0,)), (2, (1,))))]
    assert len({*hashes(job, picked), found[0]}) == 2, "other samples are wanted of row 2"


def test_template_makes_rows_equal_that_have_other_columns(make_config: MakeConfig) -> None:
    rows = [{"a": "x", "b": "y", "id": 1}, {"a": "x", "b": "z", "id": 2}]
    by_a = job_of(make_config, rows, prompt={"template": "What is {a}?", "system": "Be brief."})
    assert len(set(hashes(by_a))) == 1
    by_both = job_of(make_config, rows, prompt={"template": "What is {a}, {b}?"})
    assert len(set(hashes(by_both))) == 2


def test_rows_with_other_settings_are_no_duplicates(make_config: MakeConfig) -> None:
    own = [
        None, {"temperature": 0.6}, {"temperature": 0.7}, {"temperature": 0.7, "max_tokens": None},
        {"seed": 0}, {"seed": 0, "top_k": 40}, {"json_schema": '{"type": "object"}'},
        {"json_schema": '{"type":"object"}'},
    ]  # fmt: skip
    rows = [{"prompt": "a", "own": cell and json.dumps(cell)} for cell in own]
    found = hashes(job_of(make_config, rows, input={"sampling_column": "own"}))
    assert [found.index(each) for each in found] == [0, 0, 2, 2, 4, 4, 6, 6]


# Of eight rows in two parts: 0, 2, 5 and 6 are equal, and so are 3 and 4.
ROWS = [
    {"prompt": "abaccaad"[i], "reference": "7" if i % 2 else "0", "id": i} for i in range(8)
]  # fmt: skip


def write(
    job: PreparedRun, rows: Sequence[int], run_pass: Pass = RUN, text: str = "", **own: Any
) -> None:
    """The traces of ``rows`` as the sink writes them; a part that is whole is committed."""
    for row in rows:
        ref = PartRef.of(job.parts[row // 4])
        traces = [
            {
                **ROWS[row], "think": f"{text}{row}.{sample}", "answer": "\\boxed{7}", "parsed": "7",
                "state": "finished", "sample": sample, "think_tokens": 2, "answer_tokens": 1,
                "prompt_tokens": 5, "carried_tokens": 0, "attempt": run_pass.attempt, "seed": row,
                "loop_retries": 0, "wasted_tokens": 0, **own,
            }
            for sample in run_pass.samples
        ]  # fmt: skip
        table = pa.Table.from_pylist(traces, job.traces)
        origin = (str(ref), row, list(run_pass.samples), row, row + 1)
        for field, value in zip(ORIGIN_FIELDS, origin, strict=True):
            table = table.append_column(field, pa.array([value] * len(traces), field.type))
        job.ledger.write_block(table, run_pass.number)
        job.ledger.commit(ref, run_pass, job.traces, job.metadata(run_pass))


def copies_of(job: PreparedRun, run_pass: Pass = RUN) -> Copies:
    """What `split_duplicates` finds, without Ray's tasks."""
    done = passes.durable_ranges(job.ledger, job.parts, run_pass)
    todo = passes.plan_pass(job.ledger, job.parts, run_pass).todo
    context = job.context(run_pass)
    found = [hash_rows(context, pieces) for pieces in (done, todo) if pieces]
    copied, sources = find_copies(np.concatenate(found, 1), sum(piece.rows for piece in done))
    return Copies(context, todo, copied, sources, RowIndex([*done, *todo]))


def finish(copies: Copies) -> None:
    for tasks in copies.bundles():
        fill(copies.context, tasks)


def read(job: PreparedRun) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(job.config.output.path).to_pylist()
    return rows


def test_copies_finish_their_parts_from_the_journal(make_config: MakeConfig) -> None:
    answer = {"format": "boxed", "reference_column": "reference"}
    job = job_of(make_config, ROWS, answer=answer)
    assert not any("dedupe" in name for name in job.settings), "it can be changed between runs"
    copies = copies_of(job)
    assert copies.copied.tolist() == [False, False, True, False, True, True, True, False]
    write(job, [0, 1, 3, 7])
    assert job.ledger.listing().finished_parts() == frozenset()
    finish(copies)
    assert job.ledger.listing().journal == {}
    rows = read(job)
    assert [row["think"] for row in rows] == [f"{i}.0" for i in (0, 1, 0, 3, 3, 0, 0, 7)]
    named = [row["duplicate_of"] for row in rows]
    assert named == [None, None, "a.parquet:0", None, "a.parquet:3", *["a.parquet:0"] * 2, None]
    assert [row["id"] for row in rows] == list(range(8))
    assert [row["correct"] for row in rows if row["duplicate_of"]] == [False, False, True, False]
    assert [
        part_metadata(job.ledger.store, part.name)["summary"][name]
        for part in job.parts for name in ("rows", "traces", "duplicates", "think_tokens")
    ] == [4, 4, 1, 6, 4, 4, 3, 2]  # fmt: skip


def test_part_that_was_lost_gets_its_own_back_and_names_stay(make_config: MakeConfig) -> None:
    job = job_of(make_config, ROWS)
    copies = copies_of(job)
    write(job, [0, 1, 3, 7])
    finish(copies)
    before = read(job)
    job.ledger.store.delete([job.parts[0].name])
    again = copies_of(job)
    assert again.copied.tolist() == [True, False, True, True]
    write(job, [1])
    finish(again)
    assert read(job) == before


def test_copies_made_twice_or_half_leave_the_same(make_config: MakeConfig) -> None:
    job = job_of(make_config, ROWS)
    copies = copies_of(job)
    write(job, [0, 1, 3, 7])
    [tasks] = copies.bundles()
    fill(copies.context, tasks[1:])  # as if the driver had died then
    written = Path(job.ledger.store.path(job.parts[1].name)).stat().st_mtime_ns
    left = copies_of(job)
    assert left.copied.tolist() == [True]
    finish(left)
    before = read(job)
    assert Path(job.ledger.store.path(job.parts[1].name)).stat().st_mtime_ns == written
    finish(copies)
    assert read(job) == before


def test_source_that_is_not_durable_is_said(make_config: MakeConfig) -> None:
    job = job_of(make_config, ROWS)
    write(job, [1, 3])
    with pytest.raises(
        OutputError, match=r"a.00000.parquet lacks rows that are the sources of copies"
    ):
        finish(copies_of(job))


def test_copies_of_a_top_up_and_a_retry_have_the_samples_of_that_pass(
    make_config: MakeConfig,
) -> None:
    job = job_of(make_config, ROWS)
    copies = copies_of(job)
    write(job, [0, 1, 3, 7], think_tokens=9)
    finish(copies)
    more = Pass(1, 1, 3)
    copies = copies_of(job, more)
    assert copies.copied.tolist() == [False, False, True, False, True, True, True, False]
    write(job, [0, 1, 3], more)
    # The first part is broken off before its copies; of the second, 4 equals a row that is done.
    copies = copies_of(job, more)
    assert copies.copied.tolist() == [True, True, True, True, False]
    write(job, [7], more)
    finish(copies)
    rows = read(job)
    assert [(row["id"], row["sample"]) for row in rows] == [
        (i, s) for i in range(8) for s in (0, 1, 2)
    ]
    source = [0, 1, 0, 3, 3, 0, 0, 7]
    assert [row["think"] for row in rows] == [f"{i}.{s}" for i in source for s in (0, 1, 2)]
    summary = part_metadata(job.ledger.store, job.parts[0].name)["summary"]
    assert (summary["think_tokens"], summary["duplicates"]) == (3 * (9 + 2 + 2), 3)

    retry = Pass(2, 0, 3, ("finished",))
    write(job, [0, 1, 2, 3], retry, "again ")  # part 0 has been through it, each row by itself
    done = passes.durable_ranges(job.ledger, job.parts, retry)
    assert [(p.start, p.stop, p.rows) for p in done] == [(0, 4, 4)]
    copies = copies_of(job, retry)
    assert copies.copied.tolist() == [True, True, True, False]
    write(job, [7], retry, "again ")
    finish(copies)
    thoughts = [row["think"] for row in read(job) if row["id"] in (0, 2, 4, 6)]
    assert thoughts == [f"again {i}.{s}" for i in (0, 2, 3, 0) for s in (0, 1, 2)]
    assert passes.plan_pass(job.ledger, job.parts, retry).todo == ()


def test_tasks_take_whole_parts(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    copies = copies_of(job_of(make_config, ROWS))
    monkeypatch.setattr("pipeline.execution.copies.TRACES_A_TASK", 1)
    assert [[len(task.sources) for task in tasks] for tasks in copies.bundles()] == [[1], [3]]


def test_rows_are_put_between_those_of_tables() -> None:
    def rows(*numbers: int) -> pa.Table:
        return pa.table({ROW_COLUMN: pa.array(numbers, pa.int64())})

    tables = interleaved(iter([rows(2, 3), rows(6)]), rows(1, 4, 4, 5, 8))
    assert pa.concat_tables(tables)[ROW_COLUMN].to_pylist() == [1, 2, 3, 4, 4, 5, 6, 8]
