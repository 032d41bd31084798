"""Streams of rows: merged row group by row group, in order, each trace once."""

from io import BytesIO
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import OutputError
from pipeline.output import parts
from pipeline.output.merge import merged, part_groups
from pipeline.planning import PartRef
from pipeline.schema import ROW_COLUMN

PART = PartRef("s.00001.parquet", 100, 110)
SCHEMA = pa.schema([("sample", pa.int32()), ("text", pa.string())])
WITH_ROWS = SCHEMA.append(pa.field(ROW_COLUMN, pa.int64()))
KEYS = [(row, sample) for row in range(100, 110) for sample in range(4)]


def table(keys: list[tuple[int, int]], text: str) -> pa.Table:
    rows = [{ROW_COLUMN: row, "sample": sample, "text": text} for row, sample in sorted(keys)]
    return pa.Table.from_pylist(rows, WITH_ROWS)


def cut(whole: pa.Table, at: set[int]) -> list[pa.Table]:
    """``whole`` in pieces of whole rows that begin with the rows ``at``."""
    borders = sorted({100, 110, *at})
    numbers = whole[ROW_COLUMN].to_pylist()
    return [
        whole.filter(pa.array([low <= n < high for n in numbers], pa.bool_()))
        for low, high in pairwise(borders)
    ]


@given(
    st.integers(1, 3), st.integers(1, 50), st.sets(st.sampled_from(KEYS)),
    st.sets(st.integers(101, 109)), st.booleans(),
)  # fmt: skip
def test_a_pass_is_merged_into_a_part_of_any_row_groups(
    samples: int, group: int, new: set[tuple[int, int]], borders: set[int], is_retry: bool
) -> None:
    old = {key: "old" for key in KEYS if key[1] < samples}
    file = BytesIO()
    # Also groups that end within a row.
    pq.write_table(table(list(old), "old").drop_columns([ROW_COLUMN]), file, row_group_size=group)
    updates = cut(table(list(new), "new"), borders)
    tables = list(merged(part_groups(file, PART, SCHEMA, "sample"), updates, "sample", is_retry))
    result = pa.concat_tables(tables)
    found = list(zip(*(result[n].to_pylist() for n in (ROW_COLUMN, "sample")), strict=True))
    newer = dict.fromkeys(new, "new")
    expected: dict[Any, str] = {**old, **newer} if is_retry else {**newer, **old}
    assert found == sorted(expected)
    assert result["text"].to_pylist() == [expected[key] for key in found]


def test_a_damaged_part_is_named() -> None:
    file = BytesIO()
    pq.write_table(
        pa.table({"sample": pa.array(range(10), pa.int32()), "text": ["x" * 50] * 10}),
        file,
        write_page_checksum=True,
    )
    data = bytearray(file.getvalue())
    data[60] ^= 255
    with pytest.raises(OutputError, match=r"s\.00001\.parquet in the output is damaged"):
        list(part_groups(BytesIO(data), PART, SCHEMA, "sample"))


def test_large_tables_are_written_in_row_groups_of_whole_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "GROUP_BYTES", 1000)
    whole = table(KEYS, "x" * 100)
    pieces = list(parts._groups([whole]))
    assert pa.concat_tables(pieces).equals(whole)
    assert len(pieces) >= 3
    rows = [set(piece[ROW_COLUMN].to_pylist()) for piece in pieces]
    assert sum(map(len, rows)) == 10
