"""The last rows of a slow worker move to a faster one, and none is done twice."""

import pytest

from pipeline.output.ledger import Ledger
from tests.unit.output.fleets import Fleet, parts_of, rows_of


@pytest.fixture
def fleet(ledger: Ledger) -> Fleet:
    return Fleet(ledger, parts_of(a=120, b=7, c=200))


def test_last_rows_of_a_slow_worker_are_done_by_a_faster_one(fleet: Fleet) -> None:
    """By this one only, though another asks first."""
    slow, quick, third = (fleet.claims(name) for name in ("slow", "quick", "third"))
    slow.pace, quick.pace, third.pace = 10.0, 30.0, 10.0
    held = slow.take()
    assert held is not None
    assert third.take()
    while claim := quick.take():
        fleet.do(claim)
    fleet.do([held[0].clip(0, 20)])
    assert slow.take() is not None
    left = rows_of(held) - 20
    assert not slow.hand_over(left, 10), "nobody has said that there is room"
    quick.free = left
    assert quick.take() == []
    assert quick.may_get_rows
    assert not slow.hand_over(left, 10), "what it has seen is old"
    assert slow.take() == []
    assert slow.hand_over(left, 10)
    fleet.do([held[0].clip(20, 25)])  # while the others are saved
    assert quick.take() == []
    slow.give_back()
    assert third.take() == []
    moved = quick.take()
    assert moved is not None
    assert rows_of(moved) == left - 5
    fleet.do(moved)
    assert quick.take() == []
    assert quick.may_get_rows, "the third"
    third.give_back()
    while claim := quick.take():
        fleet.do(claim)
    assert (claim, sorted(fleet.done)) == (None, fleet.rows)


def test_rows_for_a_worker_that_has_left_are_free(fleet: Fleet) -> None:
    slow, quick, third = (fleet.claims(name) for name in ("slow", "quick", "third"))
    slow.pace, quick.pace = 10.0, 30.0
    held = slow.take()
    while claim := quick.take():
        fleet.do(claim)
    quick.free = 80
    assert quick.take() == slow.take() == []
    assert slow.hand_over(rows_of(held), 10)
    quick.give_back()
    slow.give_back()
    while claim := third.take():
        fleet.do(claim)
    assert (claim, sorted(fleet.done)) == (None, fleet.rows)


def test_free_slots_are_told_only_if_a_slower_worker_has_rows(fleet: Fleet) -> None:
    one, two = fleet.claims("one"), fleet.claims("two")
    for each in (one, two):
        each.pace, each.free = 30.0, 5
        assert each.take()
    one.take()
    _, board = one._last_board()
    assert [held.free for held in board.holdings.values()] == [0, 0]


def test_worker_without_engines_offers_no_slots(fleet: Fleet) -> None:
    """Its execution has ended: rows would wait until its engines have started again."""
    slow, quick = fleet.claims("slow"), fleet.claims("quick")
    slow.pace, quick.pace = 10.0, 30.0
    held = slow.take()
    while claim := quick.take():
        fleet.do(claim)
    quick.free = 80
    quick.take()
    quick.again()
    assert quick.take() == slow.take() == []
    assert not slow.hand_over(rows_of(held), 10)
