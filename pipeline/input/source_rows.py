"""Where the rows of a file come from: the column ``source_row``.

``shard-00007.parquet:4123`` is row 4123 (from 0) of that file of the first stage's input. Each
later stage adds the sample that it took from the run before: ``shard-00007.parquet:4123:2:0``.
"""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.input.earlier_run import EarlierRun
from pipeline.planning import PARQUET
from pipeline.schema import SOURCE_ROW, cast, row_numbers

_PART = re.compile(rf"(?P<shard>.+)\.(?P<number>[0-9]{{5,}}){re.escape(PARQUET)}")
_ENDING = re.compile(r"\.(parquet|parq|pq)(\.\w+)?$", re.IGNORECASE)


class SourceRows:
    """The source rows of an open file, called ``name`` in the input.

    A file that has the column keeps its values, whoever wrote them.
    """

    def __init__(self, parquet: pq.ParquetFile, name: str) -> None:
        run = EarlierRun.of(parquet.metadata)
        self._is_recorded = SOURCE_ROW in parquet.schema_arrow.names
        self._name, self._first = name, 0
        self._samples: Any = None
        self._rows: Any = None
        if run is not None:
            column = run.names["sample"]
            self._samples = parquet.read([column])[column].combine_chunks()
            if found := _PART.fullmatch(name):
                shard, rows_per_part = found["shard"], run.settings["output.rows_per_part"]
                self._name = shard if _ENDING.search(shard) else shard + PARQUET
                self._first = int(found["number"]) * int(rows_per_part)
            self._rows = row_numbers(self._samples.to_numpy(), self._first)

    def column(self, table: pa.Table, start: int) -> Any:
        """The values for ``table``, the rows of the file from ``start`` on.

        Text, unless no run wrote the file and its own column is of another type.
        """
        stop = start + table.num_rows
        if self._is_recorded:
            source = table[SOURCE_ROW]
        else:
            rows = range(start, stop) if self._rows is None else self._rows[start:stop]
            source = pa.array([f"{self._name}:{row}" for row in rows], pa.string())
        if self._samples is None:
            return source
        samples = cast(self._samples[start:stop], pa.string())
        return pc.binary_join_element_wise(cast(source, pa.string()), samples, ":")


def refuse_other_types(name: str, schema: pa.Schema) -> None:
    """Raise `InputError` if the column of a run's file can't be followed back, as text can.

    ``name``: of the file. ``schema``: its columns.
    """
    if SOURCE_ROW not in schema.names:
        return
    type_ = schema.field(SOURCE_ROW).type
    if pa.types.is_nested(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        raise InputError(
            f"{name}: the column {SOURCE_ROW} is {type_}; as the input of a next run it must be "
            "text or a number, since that run adds to it. Rename it in the input of the first run, "
            "or leave it out there with input.columns"
        )
