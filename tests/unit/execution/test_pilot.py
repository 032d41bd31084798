"""Pilots: which rows they take."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.execution.pilot import still_to_do, stratified_rows
from pipeline.planning import Range, Shard, split_parts

SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=8)


def parts_of(sizes: list[int], rows_per_part: int = 50) -> list[Any]:
    shards = [Shard(f"{i}.parquet", f"{i}", rows, 1, "t") for i, rows in enumerate(sizes)]
    return split_parts(shards, rows_per_part)


@given(SIZES, st.integers(1, 250))
def test_chosen_rows_are_one_of_each_stretch(sizes: list[int], rows: int) -> None:
    parts = parts_of(sizes)
    chosen = stratified_rows(parts, rows)
    whole = sum(sizes)
    assert len(chosen) == min(rows, whole)
    assert chosen == stratified_rows(parts, rows)
    starts = np.cumsum([0, *sizes])
    numbers = [starts[int(one.part.shard.path)] + one.start for one in chosen]
    assert numbers == sorted(set(numbers))
    for i, number in enumerate(numbers):
        assert i * whole // len(chosen) <= number < (i + 1) * whole // len(chosen)
    assert all(one.part.start <= one.start < one.part.stop for one in chosen)


def test_rows_that_are_done_are_not_done_again() -> None:
    parts = parts_of([100])
    chosen = stratified_rows(parts, 100)
    todo = (Range(parts[0], 10, 20), Range(parts[1], 50, 51))
    assert [one.start for one in still_to_do(chosen, todo)] == [*range(10, 20), 50]
