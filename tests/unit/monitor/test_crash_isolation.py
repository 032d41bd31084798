"""Suspects: the row that kills engines is found, no other is blamed; turns never mix."""

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.monitor.crash_isolation import (
    SUSPECTS_AT_ONCE,
    CrashIsolationGate,
    Suspects,
    Suspicion,
    rendered_together,
)


@given(st.integers(1, 300), st.data())
def test_killer_is_found_in_three_deaths_and_nobody_else(rows: int, data: st.DataObject) -> None:
    killer = data.draw(st.integers(0, rows - 1))
    suspects = Suspects()
    deaths = 0
    while suspects.of([killer]) != [Suspicion.POISON]:
        [level] = suspects.of([killer])
        alike = [row for row, found in enumerate(suspects.of(range(rows))) if found == level]
        beside = {Suspicion.NONE: rows, Suspicion.ONE_OF_MANY: SUSPECTS_AT_ONCE}.get(level, 1)
        others = [row for row in alike if row != killer][: beside - 1]
        suspects.blame([*others, killer])
        deaths += 1
        assert deaths <= 3
    found = suspects.of(range(rows))
    assert [row for row in range(rows) if found[row] == Suspicion.POISON] == [killer]


def test_row_that_runs_alone_is_to_blame_at_the_second_death() -> None:
    suspects = Suspects()
    suspects.blame(["row"])
    assert suspects.of(["row"]) == [Suspicion.ONE_OF_FEW]
    suspects.blame(["row"])
    assert suspects.of(["row", "other"]) == [Suspicion.POISON, Suspicion.NONE]


def test_deaths_without_a_row_in_common_blame_nobody() -> None:
    suspects = Suspects()
    suspects.blame(range(10))
    suspects.blame(range(10, 20))
    assert set(suspects.of(range(20))) == {Suspicion.ONE_OF_MANY}


def test_row_that_was_found_stays_found_and_is_not_touched_if_its_past_kills_too() -> None:
    suspects = Suspects()
    for row in (1, 1, 2, 2):
        suspects.blame([row])
    assert suspects.of([1, 2]) == [Suspicion.POISON] * 2
    assert suspects.blame([1])
    assert suspects.of([1, 2]) == [Suspicion.UNTOUCHABLE, Suspicion.POISON]
    assert not suspects.blame([1])
    assert suspects.of([1, 2]) == [Suspicion.UNTOUCHABLE, Suspicion.POISON]


def test_prompts_of_suspects_are_made_one_by_one_after_all_others() -> None:
    kinds = [Suspicion.ONE_OF_MANY, Suspicion.NONE, Suspicion.POISON, Suspicion.NONE]
    assert list(rendered_together(kinds)) == [[1, 3], [0], [2]]
    assert list(rendered_together([Suspicion.ONE_OF_FEW])) == [[0]]


def test_held_rows_are_suspected_at_the_second_time_only_and_proof_is_kept() -> None:
    suspects = Suspects()
    suspects.note_held([1, 2])
    assert suspects.of([1, 2, 3]) == [Suspicion.NONE] * 3
    suspects.blame([2])
    suspects.blame([2])
    suspects.note_held([1, 2, 3])
    assert suspects.of([1, 2, 3]) == [Suspicion.ONE_OF_MANY, Suspicion.POISON, Suspicion.NONE]


def test_suspects_have_the_engine_to_themselves() -> None:
    async def run() -> int:
        turns, running, seen = CrashIsolationGate(), [], 0

        async def row(suspicion: Suspicion) -> None:
            nonlocal seen
            await asyncio.sleep(random.random() / 100)
            async with turns.turn(suspicion):
                running.append(suspicion)
                assert len(set(running)) == 1
                assert suspicion == Suspicion.NONE or len(running) <= SUSPECTS_AT_ONCE
                assert suspicion != Suspicion.ONE_OF_FEW or len(running) == 1
                await asyncio.sleep(random.random() / 100)
                running.remove(suspicion)
                seen += 1

        kinds = [Suspicion.NONE] * 60 + [Suspicion.ONE_OF_MANY] * 40 + [Suspicion.ONE_OF_FEW] * 9
        random.shuffle(kinds)
        await asyncio.wait_for(asyncio.gather(*map(row, kinds)), 60)
        return seen

    assert asyncio.run(run()) == 109


def test_cancelled_turn_does_not_block_the_others() -> None:
    async def run() -> None:
        turns = CrashIsolationGate()
        waits = asyncio.Event()

        async def row(suspicion: Suspicion) -> None:
            async with turns.turn(suspicion):
                await waits.wait()

        first = asyncio.ensure_future(row(Suspicion.NONE))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(row(Suspicion.ONE_OF_FEW))
        third = asyncio.ensure_future(row(Suspicion.NONE))
        await asyncio.sleep(0.01)
        second.cancel()
        first.cancel()
        await asyncio.sleep(0.01)
        waits.set()
        await asyncio.wait_for(third, 60)

    asyncio.run(run())


def test_suspects_go_before_rows_that_came_earlier_the_strongest_first() -> None:
    async def run() -> list[str]:
        turns, started = CrashIsolationGate(), list[str]()
        goes_on = {name: asyncio.Event() for name in ("first", "many", "few", "late")}

        async def row(name: str, suspicion: Suspicion) -> None:
            async with turns.turn(suspicion):
                started.append(name)
                await goes_on[name].wait()

        tasks = []
        for name, suspicion in (
            ("first", Suspicion.NONE), ("many", Suspicion.ONE_OF_MANY),
            ("few", Suspicion.ONE_OF_FEW), ("late", Suspicion.NONE),
        ):  # fmt: skip
            tasks.append(asyncio.ensure_future(row(name, suspicion)))
            await asyncio.sleep(0.01)
        assert started == ["first"]
        for name in ("first", "few", "many", "late"):
            goes_on[name].set()
            await asyncio.sleep(0.01)
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        return started

    assert asyncio.run(run()) == ["first", "few", "many", "late"]
