"""The last rows go longest first, and no row is lost."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.input.longest_first import ByColumn, ByTraces, check_column, longest_first
from pipeline.planning import Shard, bundles, make_plan, split_parts
from pipeline.schema import PART_COLUMN, ROW_COLUMN

NAMES = {name: name for name in ("sample", "think_tokens", "answer_tokens")}


def test_longest_rows_go_first_and_unknown_ones_count_as_the_mean() -> None:
    tables = [
        pa.table({"id": [0, 1, 2], "n": pa.array([5, None, 40])}),
        pa.table({"id": [3, 4], "n": [float("nan"), 100.0]}),
    ]
    [table] = longest_first([t.cast(pa.schema([("id", pa.int64()), ("n", pa.float64())])) for t in tables], ByColumn("n"))  # fmt: skip
    assert table["id"].to_pylist() == [4, 1, 3, 2, 0]  # the mean is 48


def test_unknown_lengths_keep_the_order() -> None:
    table = pa.table({"id": [0, 1, 2], "n": pa.nulls(3, pa.float64())})
    assert list(longest_first([table], ByColumn("n"))) == [table]
    assert list(longest_first([], ByColumn("n"))) == []


def test_numbers_that_no_float_holds_have_an_order_too() -> None:
    table = pa.table({"id": [0, 1], "n": [1, 2**53 + 1]})
    [ordered] = longest_first([table], ByColumn("n"))
    assert ordered["id"].to_pylist() == [1, 0]


def test_lengths_come_from_existing_traces(tmp_path: Path) -> None:
    """The part begins at row 10, and its second row has three samples."""
    part = pa.table(
        {
            "sample": [0, 0, 1, 2, 0],
            "think_tokens": [10, 100, 200, 300, 1],
            "answer_tokens": [1, 0, 0, 0, 1],
        }
    )
    pq.write_table(part, tmp_path / "s.00000.parquet")
    key = "s.00000.parquet:10:13"
    rows = pa.table({PART_COLUMN: [key] * 3, ROW_COLUMN: [12, 10, 11]})
    assert ByTraces(str(tmp_path), NAMES).lengths(rows).tolist() == [2, 11, 200]


@pytest.mark.parametrize(("column", "hint"), [("none", "only the columns id"), ("id", "string")])
def test_column_without_numbers_is_refused(column: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        check_column(pa.schema([("id", pa.string())]), column)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 20), st.integers(0, 60))
def test_last_rows_make_a_bundle_of_their_own(sizes: list[int], rows: int, last: int) -> None:
    shards = [Shard(f"s{i}.parquet", "", n, 1, "t") for i, n in enumerate(sizes)]
    plan = make_plan(split_parts(shards, 7), frozenset(), {})
    grouped = [sum(piece.rows for piece in group) for group in bundles(plan.todo, rows, last)]
    assert sum(grouped) == plan.rows
    assert all(grouped)
    if last and plan.rows:
        assert grouped[-1] == min(last, plan.rows)
        assert all(size <= rows for size in grouped[:-1])
