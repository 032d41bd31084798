"""The Ray Data sink: every block of traces becomes durable at once, full parts are committed."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
from ray.data import Datasink
from ray.data.block import Block

from pipeline.ledger import Ledger
from pipeline.plan import Pass
from pipeline.storage import Storage


class TraceSink(Datasink[None]):
    """Writes blocks to the journal of the run at ``url``; a full part to its file."""

    def __init__(
        self, url: str, work: Pass, schema: pa.Schema, metadata: Mapping[str, Any]
    ) -> None:
        self._url, self._work, self._schema, self._metadata = url, work, schema, dict(metadata)

    def get_name(self) -> str:
        """The name in Ray Data's own logs."""
        return "Traces"

    def write(self, blocks: Iterable[Block], ctx: Any) -> None:
        """Write the blocks of one task."""
        ledger = Ledger(Storage(self._url))
        for block in blocks:
            assert isinstance(block, pa.Table)
            if block.num_rows:
                for extent in ledger.write_block(block, self._work.number):
                    ledger.commit(extent, self._work, self._schema, self._metadata)
