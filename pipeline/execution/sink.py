"""The Ray Data sink: makes every block of traces durable at once and commits full parts."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block

from pipeline.answers.references import cells
from pipeline.config.sections import AnswerConfig
from pipeline.execution.prepare import PassContext
from pipeline.execution.task_deaths import refuse_endless_deaths
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef
from pipeline.schema import PART_COLUMN, ROW_COLUMN
from pipeline.storage import Storage

BY_ROW = (PART_COLUMN, ROW_COLUMN)


class TraceSink(Datasink[None]):
    """Writes blocks to the journal of a pass, and a full part to its file.

    The ``coordinator`` knows which parts are full. One task writes small blocks together until they
    have ``rows_a_write`` rows.
    """

    def __init__(
        self, context: PassContext, coordinator: CoordinatorClient, rows_a_write: int
    ) -> None:
        self._context, self._coordinator = context, coordinator
        self._rows_a_write = rows_a_write

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Traces"

    @property
    def min_rows_per_write(self) -> int:
        """How many rows Ray Data collects for a task, unless the run ends first."""
        return self._rows_a_write

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write the blocks of one task."""
        context, rows = self._context, dict[str, list[int]]()
        refuse_endless_deaths("writes", lambda: _places(blocks))
        names, kind = context.metadata["columns"], context.reference_kind
        ledger = Ledger(Storage(context.output))
        for block in blocks:
            assert isinstance(block, pa.Table)
            if block.num_rows:
                block = compared(block, context.config.answer, names, kind)
                ledger.write_block(block, context.run_pass.number)
                for part, row in zip(*(block[n].to_pylist() for n in BY_ROW), strict=True):
                    rows.setdefault(part, []).append(row)
        for part in self._coordinator.mark_durable(rows):
            ref = PartRef.parse(part)
            ledger.commit(ref, context.run_pass, context.traces, context.metadata)


def _places(blocks: Iterable[Block]) -> Iterator[tuple[str, int]]:
    """The part and number of each row of ``blocks``."""
    for block in blocks:
        assert isinstance(block, pa.Table)
        for part, row in zip(*(block[name].to_pylist() for name in BY_ROW), strict=True):
            yield PartRef.parse(part).name, row


def compared(
    block: pa.Table, answer: AnswerConfig, names: Mapping[str, str], kind: str = ""
) -> pa.Table:
    """``block`` with its column of right and wrong answers filled in, if there is a reference.

    ``kind``: of the references' `Reading`. Not in the engine's process: a formula that takes
    seconds would hold it up.
    """
    column, verdicts = answer.reference_column, {"parsed": "correct"}
    if column is None:
        return block
    if "early_answer" in names:
        verdicts["early_answer"] = "early_correct"
    references, is_correct = cells(block[column]), answer.load_format().is_correct
    for name, verdict in verdicts.items():
        pairs = zip(block[names[name]].to_pylist(), references, strict=True)
        correct = [
            # Without an early answer there is nothing to be wrong.
            None if parsed is None and name != "parsed" else is_correct(parsed, reference, kind)
            for parsed, reference in pairs
        ]
        at = block.column_names.index(names[verdict])
        block = block.set_column(at, block.schema.field(at), pa.array(correct, pa.bool_()))
    return block
