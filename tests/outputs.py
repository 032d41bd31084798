"""Outputs of runs made by hand: traces that no engine would write, at once."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.load import parse_config
from pipeline.monitor.figures import EngineFigures, EnginePool, Figures
from pipeline.monitor.history import Recorder
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import run_settings
from pipeline.planning import PartRef, Pass, Shard
from pipeline.prompts.columns import PromptColumns
from pipeline.schema import ORIGIN_FIELDS, TRACE_COLUMNS, output_schema
from pipeline.storage import Storage

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
SCHEMA = output_schema(PROMPTS, {}, raw_text=False)
PLAIN = {
    "state": "finished", "finish_reason": "stop", "prompt_tokens": 5, "think_tokens": 2,
    "answer_tokens": 1, "carried_tokens": 0, "wasted_tokens": 0, "loop_retries": 0, "attempt": 0,
    "sample": 0, "seed": 9,
}  # fmt: skip


def write_output(folder: Path, traces: Sequence[dict[str, Any]], durable: int | None = None) -> str:
    """An output with a row for each of ``traces`` (what differs from a plain one), ten to a part.

    ``durable``: only so many of the first are there. Returns its location.
    """
    config = parse_config(
        {
            "input": {"path": str(folder / "in")},
            "output": {"path": str(folder / "out"), "rows_per_part": 10},
            "model": {"path": "qwq-nano"},
            "engine": {"kind": "simulated", "device": "cpu"},
        }
    )
    ledger = Ledger(Storage(config.output.path))
    settings = run_settings(config, PromptColumns("prompt"), "template")
    ledger.open_run(settings, {})
    ledger.record_shards([Shard("s.parquet", "s", len(traces), 1, "t")], PROMPTS, "in")
    metadata = {"columns": {n: n for n in TRACE_COLUMNS}, "settings": settings, "versions": {}}
    there = list(traces)[: len(traces) if durable is None else durable]
    for start in range(0, len(traces), 10):
        ref = PartRef(f"s.{start // 10:05}.parquet", start, min(start + 10, len(traces)))
        rows = there[start : start + 10]
        if rows:
            ledger.write_block(_block(rows, ref))
            ledger.commit(ref, Pass(0, 0, 1), SCHEMA, metadata)
    return config.output.path


def _block(traces: Sequence[dict[str, Any]], ref: PartRef) -> pa.Table:
    rows = range(ref.start, ref.start + len(traces))
    made = [
        {"id": row, "prompt": f"prompt {row}", **PLAIN, **trace}
        for row, trace in zip(rows, traces, strict=True)
    ]
    table = pa.Table.from_pylist(made, SCHEMA)
    origins = [(str(ref), row, [0], row, row + 1) for row in rows]
    for field, column in zip(ORIGIN_FIELDS, zip(*origins, strict=True), strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


def write_record(url: str, engine_pool: EnginePool, seconds: int = 60, rows: int = 1000) -> None:
    """Figures of a run whose engines make 100 tokens/s each, full but for the last quarter."""
    recorder = Recorder(Storage(url))
    for at in range(0, seconds + 1, 2):
        busy = engine_pool.slots if at < 0.75 * seconds else engine_pool.slots // 8
        engines = [EngineFigures(f"e{i}", busy, 0, 0.5, 100.0) for i in range(engine_pool.replicas)]
        spent = at * 100 * engine_pool.replicas
        figures = Figures(
            at=(BEGUN + timedelta(seconds=at)).isoformat(),
            seconds=float(at),
            rows=rows * at // seconds,
            rows_to_do=rows,
            ready_seconds=4.0,
            tokens={"prompt": 0, "output": spent, "spent": spent},
            engines=engines,
            engine_pool=engine_pool,
        )
        recorder.add(figures, at >= seconds)
