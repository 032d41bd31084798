"""The Ray Data sink: every block of traces becomes durable at once, full parts are committed."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block

from pipeline.ledger import Ledger
from pipeline.plan import Pass
from pipeline.sections import AnswerConfig
from pipeline.storage import Storage
from pipeline.verify import is_correct


class TraceSink(Datasink[None]):
    """Writes blocks to the journal of the run at ``url``; a full part to its file."""

    def __init__(
        self,
        url: str,
        work: Pass,
        schema: pa.Schema,
        metadata: Mapping[str, Any],
        answer: AnswerConfig,
    ) -> None:
        self._url, self._work, self._schema, self._metadata = url, work, schema, dict(metadata)
        self._answer = answer

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Traces"

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write the blocks of one task."""
        ledger = Ledger(Storage(self._url))
        for block in blocks:
            assert isinstance(block, pa.Table)
            if block.num_rows:
                block = compared(block, self._answer, self._metadata["columns"])
                for extent in ledger.write_block(block, self._work.number):
                    ledger.commit(extent, self._work, self._schema, self._metadata)


def compared(block: pa.Table, answer: AnswerConfig, names: Mapping[str, str]) -> pa.Table:
    """``block`` with the column that says which answers are right, where that is known.

    Here and not in the engine's process, which a formula that takes seconds would hold up; a
    task runs in its process's main thread, as `is_correct` wants it.
    """
    column = answer.reference_column
    if column is None:
        return block
    pairs = zip(block[names["parsed"]].to_pylist(), block[column].to_pylist(), strict=True)
    found = [is_correct(parsed, reference, answer.format) for parsed, reference in pairs]
    at = block.column_names.index(names["correct"])
    return block.set_column(at, block.schema.field(at), pa.array(found, pa.bool_()))
