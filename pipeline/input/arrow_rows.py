"""Arrow files (also called Feather), and Arrow streams, as Parquet shards."""

from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa

from pipeline.errors import InputError, first_line
from pipeline.input.column_types import plain
from pipeline.input.converted import Format, write_tables
from pipeline.schema import conform
from pipeline.storage import Storage

ROWS_A_TABLE = 4096
MAGIC = b"ARROW1"


class ArrowFiles(Format):
    """Files that tell the types of their columns, as Parquet files do."""

    def write(
        self,
        store: Storage,
        name: str,
        schema: pa.Schema | None,
        shard: IO[bytes],
    ) -> None:
        """Write the rows of the file ``name``; see `converted.Format`."""
        try:
            with store.open(name) as file:
                is_file = file.read(len(MAGIC)) == MAGIC
                file.seek(0)
                reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(file)
                columns = plain(reader.schema)
                write_tables(_tables(_batches(reader, is_file), columns), columns, shard)
        except (pa.ArrowException, OSError, ValueError) as error:
            if getattr(error, "errno", None):  # of the disk or the network, not of the file
                raise
            raise InputError(
                f"{store.path(name)} can't be read as an Arrow file: {first_line(error)}; replace "
                "it, or write it as Parquet"
            ) from None


def _batches(reader: Any, is_file: bool) -> Iterator[pa.RecordBatch]:
    if not is_file:
        yield from reader
        return
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number)


def _tables(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    """``batches`` as tables of `ROWS_A_TABLE` rows; small ones are put together."""
    group, rows = list[pa.Table](), 0
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_A_TABLE):
            group.append(conform(pa.Table.from_batches([batch.slice(start, ROWS_A_TABLE)]), schema))
            rows += group[-1].num_rows
            if rows >= ROWS_A_TABLE:
                yield pa.concat_tables(group)
                group, rows = [], 0
    if group:
        yield pa.concat_tables(group)
