"""The plan: every row is in exactly one part and one range, whatever is done already."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.planning import Picks, Shard, bundles, gaps, make_plan, split_parts

SIZES = st.lists(st.integers(0, 50), max_size=8)
RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple))


def shards(sizes: list[int]) -> list[Shard]:
    return [Shard(f"s{i}.parquet", f"/in/s{i}.parquet", n, 1, "t") for i, n in enumerate(sizes)]


@given(SIZES, st.integers(1, 20))
def test_parts_hold_every_row_once_in_order(sizes: list[int], rows_per_part: int) -> None:
    parts = split_parts(shards(sizes), rows_per_part)
    rows = [(p.shard.name, row) for p in parts for row in range(p.start, p.stop)]
    assert rows == [(f"s{i}.parquet", row) for i, n in enumerate(sizes) for row in range(n)]
    assert all(part.rows <= rows_per_part for part in parts)
    assert len({part.name for part in parts}) == len(parts)
    assert {part.shard.name for part in parts} == {f"s{i}.parquet" for i in range(len(sizes))}


def test_part_names_follow_the_shards() -> None:
    shard = Shard("en/shard-00007.parquet", "/in/en/shard-00007.parquet", 9, 1, "t")
    assert [(p.name, p.start, p.stop) for p in split_parts([shard], 4)] == [
        ("en/shard-00007.00000.parquet", 0, 4),
        ("en/shard-00007.00001.parquet", 4, 8),
        ("en/shard-00007.00002.parquet", 8, 9),
    ]


def test_two_shards_with_one_output_name_are_refused() -> None:
    pair = [Shard(name, name, 1, 1, "t") for name in ("a", "a.parquet")]
    with pytest.raises(InputError, match=r"the shards a and a.parquet would share"):
        split_parts(pair, 4)


@given(st.integers(0, 30), st.integers(0, 30), RANGES)
def test_gaps_and_ranges_make_the_whole(
    start: int, length: int, ranges: list[tuple[int, int]]
) -> None:
    stop = start + length
    pieces = list(gaps(start, stop, ranges))
    rows = [row for low, high in pieces for row in range(low, high)]
    covered = {row for low, high in ranges for row in range(low, high)}
    assert rows == [row for row in range(start, stop) if row not in covered]
    assert all(low < high for low, high in pieces)


@given(SIZES, st.integers(1, 20), st.integers(1, 40), RANGES)
def test_bundles_hold_the_rows_to_do_in_order(
    sizes: list[int], per_part: int, per_bundle: int, covered: list[tuple[int, int]]
) -> None:
    parts = split_parts(shards(sizes), per_part)
    done = frozenset(part.name for part in parts[::3])
    plan = make_plan(parts, done, {part.name: covered for part in parts[1::3]})
    grouped = list(bundles(plan.todo, per_bundle))
    assert all(1 <= sum(piece.rows for piece in group) <= per_bundle for group in grouped)
    assert [
        (piece.part.name, row)
        for g in grouped
        for piece in g
        for row in range(piece.start, piece.stop)
    ] == [(piece.part.name, row) for piece in plan.todo for row in range(piece.start, piece.stop)]
    assert plan.rows_todo == sum(piece.rows for piece in plan.todo)
    assert not {piece.part.name for piece in plan.todo} & done


@given(SIZES, st.integers(1, 20), st.integers(1, 7), st.data())
def test_chosen_rows_are_bundled_once_and_their_spans_cover_the_part(
    sizes: list[int], per_part: int, per_bundle: int, data: st.DataObject
) -> None:
    """A finished span stays finished, wherever the ranges were split."""
    parts = split_parts(shards(sizes), per_part)
    picks: dict[str, Picks] = {}
    for part in parts[::2]:
        rows = data.draw(st.sets(st.integers(part.start, max(part.start, part.stop - 1))))
        if rows and part.rows:
            picks[part.name] = tuple((row, (0, 1)) for row in sorted(rows))
    plan = make_plan(parts, frozenset(), {}, picks)
    assert plan.rows_todo == sum(map(len, picks.values()))
    pieces = [piece for group in bundles(plan.todo, per_bundle) for piece in group]
    chosen = [(piece.part.name, row) for piece in pieces for row, _ in piece.picks or ()]
    assert chosen == [(name, row) for name, found in picks.items() for row, _ in found]
    spans: dict[str, list[tuple[int, int]]] = {}
    for piece in pieces:
        borders = [piece.start, *(row for row, _ in (piece.picks or ())[1:]), piece.stop]
        spans.setdefault(piece.part.name, []).extend(pairwise(borders))
    for part in parts:
        if part.name in picks:
            assert list(gaps(part.start, part.stop, spans[part.name])) == []
    done = {name: data.draw(st.lists(st.sampled_from(found))) for name, found in spans.items()}
    left = make_plan(parts, frozenset(), done, picks)
    again = [(piece.part.name, row) for piece in left.todo for row, _ in piece.picks or ()]
    covered = {
        (n, row) for n, found in done.items() for low, high in found for row in range(low, high)
    }
    assert again == [pick for pick in chosen if pick not in covered]
    assert all(piece.picks and piece.picks[0][0] < piece.stop for piece in left.todo)


def test_bundles_are_full_but_the_last() -> None:
    plan = make_plan(split_parts(shards([7, 0, 4]), 3), frozenset(), {})
    for rows, last, expected in (
        (4, 0, [4, 4, 3]), (11, 0, [11]), (4, 3, [4, 4, 3]), (4, 10, [1, 10]), (4, 11, [11]),
        (4, 99, [11]), (20, 5, [6, 5]),
    ):  # fmt: skip
        grouped = bundles(plan.todo, rows, last)
        assert [sum(piece.rows for piece in group) for group in grouped] == expected


def test_range_without_a_chosen_row_is_not_to_do() -> None:
    [part] = split_parts(shards([10]), 10)
    picks: dict[str, Picks] = {part.name: ((5, (0,)),)}
    plan = make_plan([part], frozenset(), {part.name: [(4, 6)]}, picks)
    assert (plan.todo, plan.parts_done, plan.rows) == ((), 0, 10)
    plan = make_plan([part], frozenset([part.name]), {}, picks)
    assert (plan.todo, plan.parts_done) == ((), 1)
