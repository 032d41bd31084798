"""Passes over the parts of two shards, without engines: their traces are written by hand."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.output import passes
from pipeline.output.ledger import Ledger
from pipeline.output.passes import to_retry, to_run
from pipeline.planning import Part, PartRef, Pass, Picks, Range, Shard, split_parts
from tests.unit.output.blocks import METADATA, SCHEMA, block

SETTINGS: dict[str, Any] = {"sampling.n": 1, "sampling.temperature": 0.6, "model.path": "m"}
# Two shards: parts of 4, 4 and 2 rows, and one of 3.
PARTS = split_parts([Shard("a.parquet", "", 10, 1, "t"), Shard("b.parquet", "", 3, 1, "t")], 4)
A0, A1, A2, B0 = PARTS
Traces = dict[tuple[str, int, int], dict[str, Any]]  # by part, row and sample


def write(ledger: Ledger, run_pass: Pass, piece: Range, traces: Traces) -> int:
    """Make the traces of ``piece`` durable; returns how many."""
    ref, made = PartRef.of(piece.part), 0
    rows: Picks = piece.picks or tuple(
        (row, run_pass.samples) for row in range(piece.start, piece.stop)
    )
    borders = [piece.start, *(row for row, _ in rows[1:]), piece.stop]
    if piece.picks is None:
        borders = list(range(piece.start, piece.stop + 1))
    for i, (row, samples) in enumerate(rows):
        table = block([row], f"p{run_pass.number}", ref, samples, [(borders[i], borders[i + 1])])
        for name, kind in (
            ("state", pa.string()), ("think_foreign", pa.float32()), ("answer_foreign", pa.float32()),
        ):  # fmt: skip
            given = [traces.get((ref.name, row, sample), {}).get(name) for sample in samples]
            values = [v or ("finished" if name == "state" else None) for v in given]
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values, kind))
        at = table.column_names.index("attempt")
        attempts = pa.array([run_pass.attempt] * len(samples), pa.int32())
        table = table.set_column(at, table.schema.field(at), attempts)
        ledger.write_block(table, run_pass.number)
        made += len(samples)
    return made


def carry_out(
    ledger: Ledger,
    parts: Iterable[Part],
    run_pass: Pass,
    traces: Traces | None = None,
    closes: bool = True,
) -> int:
    """Do what ``run_pass`` has still to do in ``parts``; returns the traces that it made."""
    made = 0
    if run_pass.number:
        passes.recover_marks(ledger, list(parts), run_pass)
    for piece in passes.plan_pass(ledger, list(parts), run_pass).todo:
        made += write(ledger, run_pass, piece, traces or {})
        metadata = {**METADATA, "settings": {"sampling.n": run_pass.stop}}
        ledger.commit(PartRef.of(piece.part), run_pass, SCHEMA, metadata)
    if run_pass.number and closes:
        ledger.close_pass(run_pass)
    return made


def work(ledger: Ledger, samples: int, parts: list[Part] = PARTS) -> list[tuple[int, int]]:
    """What `run` with ``samples`` does: the number of each pass, and the traces that it makes."""
    return [(p.number, carry_out(ledger, parts, p)) for p in to_run(ledger, parts, samples)]


def retry(ledger: Ledger, states: list[str], traces: Traces | None = None) -> tuple[int, int]:
    run_pass = to_retry(ledger, SETTINGS, states, None)
    return run_pass.number, carry_out(ledger, PARTS, run_pass, traces)


def rows_to_do(plan_or_ranges: Iterable[Range]) -> list[tuple[str, int, int]]:
    return [(piece.part.name, piece.start, piece.stop) for piece in plan_or_ranges]


def picked(ranges: Iterable[Range]) -> list[tuple[str, Picks]]:
    return [(piece.part.name, piece.picks or ()) for piece in ranges]
