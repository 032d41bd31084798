"""Slots, a KV cache with an end, and preemption of the newest, on a clock that does not wait."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from jobs.bench.virtual_time import run
from pipeline.config.simulated import SimulatedConfig
from pipeline.engines.simulated_scheduler import Scheduler, Sequence, Steps

STEP = SimulatedConfig(seconds_per_token=0.01)


async def trace(scheduler: Scheduler, prompt: int, chunks: int, ends: list[str], name: str) -> None:
    sequence = await scheduler.enter(prompt)
    try:
        for _ in range(chunks):
            await scheduler.step(sequence, 10)
    finally:
        scheduler.leave(sequence)
    ends.append(name)


def all_of(*coroutines: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None]:
    async def together() -> None:
        await asyncio.gather(*coroutines)

    return together()


def test_slots_are_given_in_order_and_a_step_takes_its_time() -> None:
    scheduler, ends = Scheduler(2, Steps(STEP)), list[str]()
    traces = (trace(scheduler, 5, 3, ends, name) for name in "abc")
    seconds = run(all_of(*traces))
    assert ends == ["a", "b", "c"]
    assert seconds == pytest.approx(2 * 30 * 0.01)
    assert (scheduler.used, scheduler.running, scheduler.waiting) == (0, 0, 0)
    assert (scheduler.usage, scheduler.preemptions) == (None, 0)


def test_newest_is_preempted_when_the_cache_is_full_and_computed_again() -> None:
    """Two prompts of 40 fit into 100 tokens; with 10 more each they fill it, and then one yields."""
    scheduler, ends = Scheduler(2, Steps(STEP), capacity=100), list[str]()
    run(all_of(*(trace(scheduler, 40, 3, ends, name) for name in "ab")))
    assert ends == ["a", "b"]
    assert (scheduler.preemptions, scheduler.recomputed_tokens) == (1, 40)
    assert scheduler.used == 0


def test_watermark_lets_less_in() -> None:
    scheduler, ends = Scheduler(2, Steps(STEP), capacity=100, watermark=0.3), list[str]()
    run(all_of(*(trace(scheduler, 40, 3, ends, name) for name in "ab")))
    assert (scheduler.preemptions, ends) == (0, ["a", "b"])


def test_sequence_larger_than_the_cache_runs_alone() -> None:
    scheduler, ends = Scheduler(2, Steps(STEP), capacity=30), list[str]()
    run(all_of(*(trace(scheduler, 40, 2, ends, name) for name in "ab")))
    assert ends == ["a", "b"]


@pytest.mark.parametrize("is_running", [True, False])
def test_cancelled_request_gives_its_place_back(is_running: bool) -> None:
    scheduler, ends = Scheduler(1, Steps(STEP)), list[str]()

    async def cancel_one() -> None:
        tasks = [asyncio.ensure_future(trace(scheduler, 1, 5, ends, name)) for name in "ab"]
        await asyncio.sleep(0.02)
        tasks[0 if is_running else 1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(cancel_one())
    assert ends == ["b" if is_running else "a"]
    assert (scheduler.used, scheduler.running, scheduler.waiting) == (0, 0, 0)


def test_preempted_sequence_that_is_cancelled_is_forgotten() -> None:
    scheduler = Scheduler(2, Steps(STEP), capacity=100)

    async def preempt_and_cancel() -> None:
        ends = list[str]()
        tasks = [asyncio.ensure_future(trace(scheduler, 45, 9, ends, name)) for name in "ab"]
        await asyncio.sleep(0.15)
        assert scheduler.preemptions, "none was preempted, so this shows nothing"
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert ends == ["a"]

    run(preempt_and_cancel())
    assert (scheduler.used, scheduler.running, scheduler.waiting) == (0, 0, 0)


def test_sequences_are_told_apart_by_identity() -> None:
    loop = asyncio.new_event_loop()
    one, other = (Sequence(5, loop.create_future()) for _ in range(2))
    assert one != other
    loop.close()
