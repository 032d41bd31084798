"""The Ray Data sink: every block of traces becomes durable at once, full parts are committed."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasink
from ray.data.block import Block

from pipeline.config.sections import AnswerConfig
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.schema import PART_COLUMN, ROW_COLUMN
from pipeline.storage import Storage

BY_ROW = (PART_COLUMN, ROW_COLUMN)


class TraceSink(Datasink[None]):
    """Writes blocks to the journal of the run at ``url``; a full part to its file.

    The ``coordinator`` knows which part is full. ``rows_a_write``: small blocks are written together, by
    one task, when they have so many rows.
    """

    def __init__(
        self,
        url: str,
        run_pass: Pass,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
        answer: AnswerConfig,
        coordinator: Any,
        rows_a_write: int,
    ) -> None:
        self._rows_a_write = rows_a_write
        self._url, self._run_pass, self._schema, self._metadata = (
            url,
            run_pass,
            schema,
            dict(metadata),
        )
        self._answer, self._coordinator = answer, coordinator

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Traces"

    @property
    def min_rows_per_write(self) -> int:
        """How many rows Ray Data collects for a task, if no more are to come sooner."""
        return self._rows_a_write

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write the blocks of one task."""
        ledger, rows = Ledger(Storage(self._url)), dict[str, list[int]]()
        for block in blocks:
            assert isinstance(block, pa.Table)
            if block.num_rows:
                block = compared(block, self._answer, self._metadata["columns"])
                ledger.write_block(block, self._run_pass.number)
                for part, row in zip(*(block[n].to_pylist() for n in BY_ROW), strict=True):
                    rows.setdefault(part, []).append(row)
        for part in ray.get(self._coordinator.mark_durable.remote(rows)):
            ledger.commit(PartRef.parse(part), self._run_pass, self._schema, self._metadata)


def compared(block: pa.Table, answer: AnswerConfig, names: Mapping[str, str]) -> pa.Table:
    """``block`` with the column that says which answers are right, where that is known.

    Here and not in the engine's process, which a formula that takes seconds would hold up; a
    task runs in its process's main thread, which `AnswerFormat.is_correct` needs.
    """
    column = answer.reference_column
    if column is None:
        return block
    pairs = zip(block[names["parsed"]].to_pylist(), block[column].to_pylist(), strict=True)
    is_correct = answer.load_format().is_correct
    correct = [is_correct(parsed, reference) for parsed, reference in pairs]
    at = block.column_names.index(names["correct"])
    return block.set_column(at, block.schema.field(at), pa.array(correct, pa.bool_()))
