"""Write the rows of an output as JSON lines.

    qwq-batch export OUTPUT traces.jsonl.zst

``OUTPUT`` is a run's, or any folder of Parquet files, such as the samples or labels of a job. A
folder with several tables is refused, with their names: that of a job, of stages, or of an export.
"""

import base64
import io
import json
import re
from collections.abc import Iterator, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.export import CONFIGS
from jobs.job import TRACES
from pipeline.errors import ConfigError, OutputError
from pipeline.input.files import named
from pipeline.output.layout import MANIFEST
from pipeline.output.ledger import Ledger
from pipeline.output.parts import damage_named
from pipeline.planning import PARQUET
from pipeline.schema import plain_rows
from pipeline.storage import Storage

BATCH_ROWS = 1024
SHOWN = 8  # folders in a message
_NAME = re.compile(r"\.(jsonl|ndjson)(\.(?P<codec>gz|zst))?$", re.IGNORECASE)
_CODECS = {"gz": "gzip", "zst": "zstd"}


def export(output: str, target: str) -> int:
    """Write all rows of the finished parts at ``output``; returns their number.

    ``target``: a path or URL that ends in ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``; the file
    appears when it is complete. Times are ISO text, bytes are base64, NaN and infinities are null.
    Raises `OutputError` if there is nothing to export, or ``output`` has several tables;
    `ConfigError` for another ending.
    """
    if not (ending := _NAME.search(target)):
        raise ConfigError(f"{target} must end in .jsonl, .jsonl.gz or .jsonl.zst")
    codec = _CODECS.get((ending["codec"] or "").lower())
    store, names = _files(output)
    folder, _, name = target.rpartition("/")
    to = Storage(folder or ("/" if target.startswith("/") else "."))
    count = 0
    with to.writing(name) as file:
        lines = file if codec is None else pa.CompressedOutputStream(_KeptOpen(file), codec)
        for row in _rows(store, names):
            text = json.dumps(_plain(row), ensure_ascii=False, allow_nan=False)
            lines.write(text.encode(errors="replace") + b"\n")
            count += 1
        if codec is not None:
            lines.close()
    return count


class _KeptOpen(io.RawIOBase):
    """``file``, which stays open when this is closed, as Arrow closes what it compresses into."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def writable(self) -> bool:
        """Arrow asks."""
        return True

    def write(self, data: Any) -> int:
        """Write ``data``."""
        return self._file.write(data)


def _files(output: str) -> tuple[Storage, list[str]]:
    """The finished parts of a run, or the Parquet files of a folder."""
    store = Storage(output)
    ledger = Ledger(store)
    if ledger.manifest() is not None:
        names = sorted(ledger.listing().finished_parts())
    else:
        listed = [info.name for info in store.files()]
        runs = [name.removesuffix(MANIFEST) for name in listed if name.endswith(f"/{MANIFEST}")]
        names = [name for name in listed if name.endswith(PARQUET) and not _is_hidden(name)]
        tables = list(_tables("", names, runs))
        if names and tables != [""]:
            folders = [f"{output.rstrip('/')}/{table.rstrip('/')}" for table in tables]
            raise OutputError(
                f"{output} has several tables, and a file of JSON lines is one; export one of "
                f"{named(folders, SHOWN)}"
            )
    if not names:
        raise OutputError(f"{output} has no finished part and no Parquet file; export it later")
    return store, names


def _tables(folder: str, names: Sequence[str], runs: Sequence[str]) -> Iterator[str]:
    """``folder``, if it is one table, else those in it; they end in a slash, but for the outermost.

    ``names``: the Parquet files in it, at any depth. ``runs``: the folders of outputs of runs.
    """
    below = [name.removeprefix(folder) for name in names]
    inside = {name.partition("/")[0] for name in below if "/" in name}
    is_mixed = bool(inside) and any("/" not in name for name in below)
    is_export = len(inside) > 1 and inside <= set(CONFIGS)
    has_runs = any(run.startswith(folder) and run != folder for run in runs)
    if not (is_mixed or is_export or has_runs or TRACES in inside):
        yield folder
        return
    for each in sorted(inside):
        table = f"{folder}{each}/"
        yield from _tables(table, [name for name in names if name.startswith(table)], runs)


def _is_hidden(name: str) -> bool:
    return any(segment.startswith(("_", ".")) for segment in name.split("/"))


def _rows(store: Storage, names: list[str]) -> Iterator[dict[str, Any]]:
    for name in names:
        with store.open(name) as file, damage_named(name):
            for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
                yield from plain_rows(batch)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    return value
