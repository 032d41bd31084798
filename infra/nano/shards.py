"""Write the demos' inputs: Parquet files in the folder on the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def write_shards(description: str | None, files: Sequence[str], table: pa.Table) -> None:
    """Divide ``table`` among ``files``, all of equal size but the last.

    ``description``: that of the command; its first line is its help.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-table.num_rows // len(files))
    for i, name in enumerate(files):
        pq.write_table(table.slice(i * size, size), folder / name)
