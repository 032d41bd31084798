"""The board of claims: every row is handed out once, and what a dead worker had again."""

import json
import math
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.errors import ExpelledError
from pipeline.output import claims
from pipeline.output.board import Board, Holding, claimed, fair_rows
from pipeline.output.layout import CLAIMS
from pipeline.output.ledger import Ledger
from pipeline.planning import Pass
from tests.unit.output.fleets import RUN, Fleet, parts_of, rows_of
from tests.unit.output.passes_by_hand import PARTS, SETTINGS, carry_out


@pytest.fixture
def fleet(ledger: Ledger) -> Fleet:
    return Fleet(ledger, parts_of(a=120, b=7, c=200))


def test_one_worker_gets_all_rows_in_order_and_small_claims_at_the_end(fleet: Fleet) -> None:
    mine, sizes = fleet.claims("one"), list[int]()
    while claim := mine.take():
        fleet.do(claim)
        sizes.append(rows_of(claim))
    assert mine.take() is None
    assert fleet.done == fleet.rows
    assert sizes[0] == 80  # four times what it does at once
    assert sizes[-2:] == [5, 5]  # a quarter
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("left", "mine", "others", "rows"),
    [
        (10_000, 20, [], 80),
        (10_000, 20, [20, 20], 80),
        (120, 20, [20, 20], 20),  # half of its third
        (120, 40, [20], 40),  # half of two thirds
        (10, 20, [20], 5),
        (3, 1, [900], 1),
    ],
)
def test_claims_follow_from_what_is_left_and_how_fast_each_worker_is(
    left: int, mine: int, others: list[int], rows: int
) -> None:
    held = {str(i): Holding(at_once) for i, at_once in enumerate(others)}
    assert fair_rows(left, Board(holdings={**held, "me": Holding(mine)}), "me") == rows


@pytest.mark.parametrize(("mine", "other", "rows"), [(10, 30, 15), (30, 10, 45), (0, 30, 30)])
def test_slow_worker_claims_less_at_the_end(mine: float, other: float, rows: int) -> None:
    """One whose speed is not known yet counts as like the others."""
    held = {"me": Holding(20, pace=mine), "other": Holding(20, pace=other)}
    assert fair_rows(120, Board(holdings=held), "me") == rows


def test_worker_expects_its_share_of_the_rows_that_nobody_has(fleet: Fleet) -> None:
    mine = fleet.claims("mine", at_once=10)
    given = rows_of(mine.take())
    assert given + mine.rows_to_come == len(fleet.rows), "alone it does all"
    other = fleet.claims("other", at_once=30)
    taken = rows_of(other.take())
    mine.again()
    fleet.do(mine.take())
    given += rows_of(mine.take())
    left = len(fleet.rows) - given - taken
    assert mine.rows_to_come == math.ceil(left / 4)
    while claim := mine.take():
        given += rows_of(claim)
        fleet.do(claim)
    assert (mine.rows_to_come, given + taken) == (0, len(fleet.rows))


def test_rows_that_workers_have_are_shown_by_name_for_all_passes(fleet: Fleet) -> None:
    assert claims.rows_held(fleet.ledger.store) == {}
    one, two = fleet.claims("one", at_once=10), fleet.claims("two", at_once=5)
    held = one.take()
    two.take()
    fleet.ledger.store.put(f"{CLAIMS}/00000.notes.json", b"{}")
    assert claims.rows_held(fleet.ledger.store) == {"one": 40, "two": 20}
    fleet.do(held)
    one.take()
    board = Board(holdings={"two": Holding(5, (("a.parquet", 0, 7),))})
    fleet.ledger.store.put(f"{CLAIMS}/00001.00000009.json", board.to_json())
    assert claims.rows_held(fleet.ledger.store) == {"one": 40, "two": 27}
    one.give_back()
    assert claims.rows_held(fleet.ledger.store) == {"two": 27}


def test_workers_beside_each_other_do_each_row_once(fleet: Fleet) -> None:
    def work(number: int) -> None:
        mine = fleet.claims(f"worker-{number}", at_once=3 + 4 * number)
        while (claim := mine.take()) is not None:
            fleet.do(claim)
        mine.give_back()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(fleet.done) == fleet.rows


def test_workers_of_no_hurry_keep_their_rows(fleet: Fleet) -> None:
    slow, quick = fleet.claims("slow"), fleet.claims("quick")
    held = slow.take()
    while claim := quick.take():
        fleet.do(claim)
    assert claim == []  # the rest is in other hands
    assert quick.take() == []
    fleet.do(held)
    assert slow.take() is None
    slow.give_back()
    assert quick.take() is None
    assert sorted(fleet.done) == fleet.rows


def test_rows_of_a_dead_worker_go_to_others_but_those_that_are_durable(fleet: Fleet) -> None:
    dying, heir = fleet.claims("dying"), fleet.claims("heir")
    held = dying.take()
    assert held is not None
    fleet.do([held[0].clip(10, 30)])
    while claim := heir.take():
        fleet.do(claim)
    assert claim == []
    fleet.dead["dying"] = True
    while claim := heir.take():
        fleet.do(claim)
    assert claim is None
    assert sorted(fleet.done) == fleet.rows
    assert "dying" not in fleet.dead
    with pytest.raises(ExpelledError, match="have taken its rows over"):
        dying.take()


def test_rows_given_back_are_the_next_to_be_taken(fleet: Fleet) -> None:
    leaving, other = fleet.claims("leaving"), fleet.claims("other")
    held = leaving.take()
    assert held is not None
    fleet.do([held[0].clip(0, 10)])
    leaving.give_back()
    claim = other.take()
    assert claim is not None
    assert (claim[0].start, claim[0].stop) == (10, 50)


def test_rows_that_an_execution_has_left_are_given_again(fleet: Fleet) -> None:
    mine = fleet.claims("mine")
    first = mine.take()
    assert first is not None
    fleet.do([first[0]])
    mine.again()
    assert mine.take() == first[1:]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{}", b"[]", b'{"place": 1}', b'{"holdings": {"x": 5}}', b'{"holdings": []}',
        b'{"holdings": {}, "place": ["a", Infinity], "returned": []}',
    ],
)  # fmt: skip
def test_damaged_board_costs_no_row(fleet: Fleet, content: bytes) -> None:
    mine = fleet.claims("mine")
    fleet.do(mine.take())
    name = max(info.name for info in fleet.ledger.store.files(CLAIMS))
    fleet.ledger.store.put(name, content)
    try:
        while claim := mine.take():
            fleet.do(claim)
    except ExpelledError:  # it joins again
        again = fleet.claims("again")
        while claim := again.take():
            fleet.do(claim)
    assert sorted(fleet.done) == fleet.rows


def test_worker_that_knows_more_shards_does_them_whatever_the_others_have_done(
    fleet: Fleet,
) -> None:
    more = parts_of(a=120, aa=30, b=7, c=200)
    old, new = fleet.claims("old"), fleet.claims("new", parts=more)
    while claim := old.take():
        fleet.do(claim)
    while claim := new.take():
        fleet.do(claim)
    old.give_back()
    while claim := new.take():
        fleet.do(claim)
    assert claim is None
    fleet.parts = more
    assert sorted(fleet.done) == fleet.rows


def test_rows_of_shards_that_a_worker_does_not_know_are_left_to_others() -> None:
    board = Board(("z.parquet", 5), (("new.parquet", 0, 9), ("a.parquet", 0, 3)))
    after = claimed(board.holds("me", Holding(50)), "me", [("a.parquet", 0, 10)])
    assert after.holdings["me"].pieces == (("a.parquet", 0, 3),)
    assert after.returned == (("new.parquet", 0, 9),)


def test_slow_worker_that_creates_an_old_number_takes_nothing_by_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had slept between its look and its write, while its number came and went."""
    monkeypatch.setattr(claims, "BOARDS_KEPT", 1)
    slow, quick = fleet.claims("slow"), fleet.claims("quick")
    look = slow._last_board
    naps = [3]

    def look_then_sleep() -> tuple[int, Board]:
        seen = look()
        for _ in range(naps.pop() if naps else 0):
            fleet.do(quick.take())
        return seen

    monkeypatch.setattr(slow, "_last_board", look_then_sleep)
    while claim := slow.take():
        fleet.do(claim)
    assert quick.take() is None
    assert sorted(fleet.done) == fleet.rows


def test_top_up_that_another_worker_has_closed_is_not_done_again(ledger: Ledger) -> None:
    """Closing it removes the marks of the parts that have it."""
    ledger.open_run(SETTINGS, {})
    carry_out(ledger, PARTS, RUN)
    fleet = Fleet(ledger, PARTS)
    top_up = Pass(1, 1, 2)
    ledger.open_pass(top_up)
    begun, looked = (fleet.claims(name, at_once=1, run_pass=top_up) for name in ("begun", "looked"))
    assert begun.take()
    carry_out(ledger, PARTS, top_up)
    assert begun.take() is None
    assert looked.take() is None
    assert fleet.claims("late", run_pass=top_up).take() is None


def test_last_worker_of_a_pass_removes_its_boards(fleet: Fleet) -> None:
    one, two = fleet.claims("one"), fleet.claims("two")
    held = one.take()
    while claim := two.take():
        fleet.do(claim)
    two.give_back()
    two.end()
    assert fleet.ledger.store.files(CLAIMS), "the other is still at work"
    fleet.do(held)
    assert one.take() is None
    one.give_back()
    one.end()
    assert not fleet.ledger.store.files(CLAIMS)


def test_worker_that_loses_the_race_for_a_board_keeps_what_it_works_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its rows are durable, which the board does not say yet, and others still run."""
    late, quick = fleet.claims("late"), fleet.claims("quick")
    first = late.take()
    assert first is not None
    fleet.do([first[0].clip(0, 10)])
    write = late._write
    losses = [1]

    def lose_then_write(number: int, board: Board) -> bool:
        if losses.pop() if losses else 0:
            fleet.do(quick.take())
        return write(number, board)

    monkeypatch.setattr(late, "_write", lose_then_write)
    second = late.take()
    assert second is not None
    held = [piece.clip(10, 50) if piece is first[0] else piece for piece in first]
    fleet.do([*held, *second])
    while claim := late.take():
        fleet.do(claim)
    assert sorted(fleet.done) == fleet.rows, "each row once"


def test_worker_that_died_with_nothing_in_its_hands_leaves_nothing(fleet: Fleet) -> None:
    """It waited for the last rows of others."""
    last, waiting = fleet.claims("last"), fleet.claims("waiting")
    held = last.take()
    while claim := waiting.take():
        fleet.do(claim)
    assert waiting.take() == []
    fleet.dead |= {"waiting": True, "killed before it took anything": True}
    fleet.do(held)
    assert last.take() is None
    last.give_back()
    last.end()
    assert fleet.dead == {"last": False}
    assert not fleet.ledger.store.files(CLAIMS)


def test_workers_that_only_look_again_write_few_boards(fleet: Fleet) -> None:
    """All of them look every ten seconds near the end, and one after the other can write."""
    busy, waiting = fleet.claims("busy", at_once=16), fleet.claims("waiting")
    held = busy.take() or []
    while claim := waiting.take():
        fleet.do(claim)
    assert claim == []
    before = busy._last_board()[0]
    rows = [piece.clip(row, row + 1) for piece in held for row in range(piece.start, piece.stop)]
    for row in rows[:-1]:
        fleet.do([row])
        assert busy.take() == waiting.take() == []
    assert busy._last_board()[0] - before <= math.log2(len(rows)) + 1
    fleet.do(rows[-1:])
    assert busy.take() is None
    busy.give_back()
    assert waiting.take() is None


def test_boards_are_few_small_files(fleet: Fleet) -> None:
    mine = fleet.claims("mine", at_once=1)
    while claim := mine.take():
        fleet.do(claim)
    boards = fleet.ledger.store.files(CLAIMS)
    assert len(boards) <= claims.BOARDS_KEPT
    last = json.loads(fleet.ledger.store.read(boards[-1].name))
    assert len(last["holdings"]["mine"]["pieces"]) <= 2, "what is durable is not held"
