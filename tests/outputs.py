"""Outputs written without Ray or an engine: for tests that need an output to work on.

They go through the run's own ledger, so files, footers and manifests are those of a run.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.input.rows import read_rows
from pipeline.monitor.figures import EngineFigures, EnginePool, Figures
from pipeline.monitor.history import Recorder
from pipeline.output.ledger import Ledger
from pipeline.output.manifest import run_settings
from pipeline.output.summary import Summary, summarize
from pipeline.planning import Part, PartRef, Pass, Range, Shard
from pipeline.prompts.columns import PromptColumns
from pipeline.schema import (
    ORIGIN_FIELDS,
    TRACE_COLUMNS,
    UNREADABLE_COLUMN,
    output_schema,
    trace_fields,
)
from pipeline.storage import Storage

BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])
PLAIN = {
    "state": "finished", "finish_reason": "stop", "prompt_tokens": 5, "think_tokens": 2,
    "answer_tokens": 1, "carried_tokens": 0, "wasted_tokens": 0, "loop_retries": 0, "attempt": 0,
    "sample": 0, "seed": 9, "control": False, "probes": 0, "probe_tokens": 0,
}  # fmt: skip


def write_output(
    folder: Path,
    traces: Sequence[dict[str, Any]],
    durable: int | None = None,
    early: dict[str, Any] | None = None,
) -> str:
    """An output with a row for each of ``traces`` (what differs from a plain one), ten to a part.

    ``durable``: only so many of the first are there. ``early``: the settings of early answers, if
    thinking may be closed early. Returns its location.
    """
    config = parse_config(
        {
            "input": {"path": str(folder / "in")},
            "output": {"path": str(folder / "out"), "rows_per_part": 10},
            "model": {"path": "qwq-nano"},
            "engine": {"kind": "simulated", "device": "cpu"},
            "answer": {} if early is None else {"format": "boxed"},
            "thinking": {"early_answer": early},
        }
    )
    schema = output_schema(PROMPTS, {}, raw_text=False, optional=config.optional_fields)
    columns = (*TRACE_COLUMNS, *(field.name for field in config.optional_fields))
    ledger = Ledger(Storage(config.output.path))
    settings = run_settings(config, PromptColumns("prompt"), "template")
    ledger.open_run(settings, {})
    ledger.record_shards([Shard("s.parquet", "s", len(traces), 1, "t")], PROMPTS, "in")
    metadata = {"columns": {n: n for n in columns}, "settings": settings, "versions": {}}
    there = list(traces)[: len(traces) if durable is None else durable]
    for start in range(0, len(traces), 10):
        ref = PartRef(f"s.{start // 10:05}.parquet", start, min(start + 10, len(traces)))
        rows = there[start : start + 10]
        if rows:
            ledger.write_block(_block(rows, ref, schema))
            ledger.commit(ref, Pass(0, 0, 1), schema, metadata)
    return config.output.path


def _block(traces: Sequence[dict[str, Any]], ref: PartRef, schema: pa.Schema) -> pa.Table:
    rows = range(ref.start, ref.start + len(traces))
    filled = [
        {"id": row, "prompt": f"prompt {row}", **PLAIN, **trace}
        for row, trace in zip(rows, traces, strict=True)
    ]
    return _with_origin(pa.Table.from_pylist(filled, schema), ref, list(rows))


def _with_origin(table: pa.Table, ref: PartRef, rows: Sequence[int]) -> pa.Table:
    """``table`` with the columns of where each trace comes from; ``rows``: their numbers."""
    origins = [(str(ref), row, [0], row, row + 1) for row in rows]
    for field, column in zip(ORIGIN_FIELDS, zip(*origins, strict=True), strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


MakeTrace = Callable[[int, int], dict[str, Any]]


def finish(config: RunConfig, trace: MakeTrace = lambda *_: {}) -> Summary:
    """Finish the run of ``config`` at once, without an engine; parts that are finished stay.

    ``trace``: how the trace of a row (its number in its shard) and sample differs from a plain one.
    """
    prepared = prepare(config)
    ledger, samples = prepared.ledger, int(prepared.settings["sampling.n"])
    run_pass = Pass(0, 0, samples)
    prepared = prepared.open_output()
    done = ledger.listing().finished_parts()
    for part in prepared.parts:
        if part.name not in done:
            ref = PartRef.of(part)
            if part.rows:
                ledger.write_block(_traces(prepared, part, samples, trace))
            ledger.commit(ref, run_pass, prepared.traces, prepared.metadata(run_pass))
    return summarize(ledger.store, prepared.parts, samples, None)


def _traces(prepared: PreparedRun, part: Part, samples: int, trace: MakeTrace) -> pa.Table:
    """All of a part's traces beside its prompts, as an engine hands them to the sink."""
    config = prepared.config
    keys = [(row, sample) for row in range(part.start, part.stop) for sample in range(samples)]
    traces = [
        {**PLAIN, "think": "So.", "answer": "1", "sample": sample, **trace(row, sample)}
        for row, sample in keys
    ]
    piece = Range(part, part.start, part.stop)
    prompts = pa.concat_tables(read_rows(config.input.path, piece, prepared.prompts))
    table = prompts.drop_columns(UNREADABLE_COLUMN).take([row - part.start for row, _ in keys])
    fields = trace_fields(config.output.rename, config.output.raw_text)
    for name, field in zip(TRACE_COLUMNS, fields, strict=False):
        column = pa.array([values.get(name) for values in traces], field.type)
        table = table.append_column(field, column)
    return _with_origin(table, PartRef.of(part), [row for row, _ in keys])


def write_record(
    url: str,
    engine_pool: EnginePool,
    seconds: int = 60,
    rows: int = 1000,
    begun: datetime = BEGUN,
    driver: str = "1f3c",
) -> None:
    """Figures of a run whose engines make 100 tokens/s each, full but for the last quarter."""
    recorder = Recorder(Storage(url), driver)
    for at in range(0, seconds + 1, 2):
        busy = engine_pool.slots if at < 0.75 * seconds else engine_pool.slots // 8
        engines = [
            EngineFigures(f"{driver}-{i}", busy, 0, 0.5, 100.0) for i in range(engine_pool.replicas)
        ]
        spent = at * 100 * engine_pool.replicas
        figures = Figures(
            at=(begun + timedelta(seconds=at)).isoformat(),
            seconds=float(at),
            rows=rows * at // seconds,
            rows_to_do=rows,
            ready_seconds=4.0,
            tokens={"prompt": 0, "output": spent, "spent": spent, "recomputed": spent // 40},
            preemptions=at // 2,
            engines=engines,
            engine_pool=engine_pool,
        )
        recorder.add(figures, at >= seconds)
