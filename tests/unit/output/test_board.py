"""Who may get a slow worker's last rows, and who has them then."""

import pytest

from pipeline.output.board import Board, Holding, claimed

ROWS = (("a.parquet", 0, 30), ("b.parquet", 5, 15))


def board(**holdings: Holding) -> Board:
    return Board(("b.parquet", 15), (), holdings)


def worker(pace: float, free: int = 0, **gives: int) -> Holding:
    return Holding(64, ROWS, pace, free, gives)


@pytest.mark.parametrize(
    ("others", "rows", "gives"),
    [
        ({"fast": worker(30, 40)}, 40, {"fast": 40}),
        ({"fast": worker(30, 39)}, 40, {}),  # all or nothing
        ({"equal": worker(11.9, 64)}, 40, {}),  # they would only move
        ({"just": worker(12, 64)}, 40, {"just": 40}),
        ({"new": worker(0, 64)}, 40, {}),
        ({"fast": worker(20, 30), "faster": worker(30, 20)}, 40, {"faster": 20, "fast": 20}),
        # What another slow worker has announced has its place.
        ({"fast": worker(30, 64), "slow": worker(10, fast=30)}, 40, {}),
        ({"fast": worker(30, 64), "slow": worker(10, fast=24)}, 40, {"fast": 40}),
        ({"fast": worker(30, 8), "slow": worker(10, fast=24), "b": worker(29, 40)}, 40, {"b": 40}),
        ({}, 40, {}),
    ],
)
def test_rows_go_to_faster_workers_if_these_have_room_for_all(
    others: dict[str, Holding], rows: int, gives: dict[str, int]
) -> None:
    seen = board(**others, me=worker(5))
    assert seen.places("me", rows, 10) == gives


@pytest.mark.parametrize(
    ("other", "is_slower"),
    [(worker(8), True), (worker(9), False), (worker(0), True), (Holding(64, (), 2), False)],
)
def test_slower_workers_that_have_rows_are_told_from_others(
    other: Holding, is_slower: bool
) -> None:
    """One whose speed is not known yet may be slower."""
    assert board(me=worker(10), other=other).may_get_rows("me") == is_slower
    assert not board(other=other).may_get_rows("me")
    assert not board(me=worker(0), other=other).may_get_rows("me")


def test_announcement_is_a_reason_to_wait_and_who_made_it_takes_nothing() -> None:
    """It is as fast as others, but slow at present."""
    seen = board(me=worker(30, 64), other=worker(30, 64, me=5), third=worker(10))
    assert seen.is_promised("me")
    assert seen.places("third", 40, 10) == {"me": 40}
    assert not seen.places("third", 60, 10)


def test_worker_that_is_promised_rows_gives_none() -> None:
    seen = board(slow=worker(5, me=5), me=worker(10), fast=worker(30, 64))
    assert not seen.places("me", 10, 10)
    assert seen.places("slow", 10, 5)


def test_claimed_rows_take_free_slots() -> None:
    after = claimed(Board(holdings={"me": Holding(20, free=15)}), "me", [("a.parquet", 0, 10)])
    assert after.holdings["me"].free == 15 - 5


def test_rows_that_are_handed_over_are_in_the_hands_of_those_that_get_them() -> None:
    """More than were announced: some had ended, but were not durable."""
    before = board(me=worker(5, quick=10, gone=5, fast=10), quick=worker(9, 16), fast=worker(8, 12))
    after = before.handed_over("me", [("a.parquet", 2, 20), ("b.parquet", 7, 12)])
    assert after.holdings.keys() == {"quick", "fast"}
    quick, fast = after.holdings["quick"], after.holdings["fast"]
    assert (quick.pieces, quick.free) == ((*ROWS, ("a.parquet", 2, 12)), 6)
    assert fast.pieces == (*ROWS, ("a.parquet", 12, 20), ("b.parquet", 7, 12))
    assert fast.free == 0
    assert not after.returned


def test_rows_for_workers_that_are_gone_are_free() -> None:
    after = board(me=worker(5, gone=10), other=worker(9)).handed_over("me", ROWS)
    assert (after.returned, after.holdings) == (ROWS, {"other": worker(9)})


def test_worker_that_hands_nothing_over_leaves_its_rows_to_all() -> None:
    after = board(me=worker(5), other=worker(9, 64)).handed_over("me", ROWS)
    assert (after.returned, after.holdings) == (ROWS, {"other": worker(9, 64)})


def test_board_is_the_same_after_it_was_written() -> None:
    written = board(me=worker(5.5, 3, other=7), other=worker(0))
    assert Board.from_json(written.to_json()) == written
    old = b'{"place": ["a", 3], "returned": [], "holdings": {"x": {"at_once": 4, "pieces": []}}}'
    assert Board.from_json(old) == Board(("a", 3), (), {"x": Holding(4)}), "of an earlier version"
