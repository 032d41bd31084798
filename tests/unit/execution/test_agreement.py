"""Samples side by side until they agree: which are drawn, when, and that none is left behind."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from jobs.bench import virtual_time
from pipeline.engines import EngineLoad
from pipeline.errors import EngineDeadError
from pipeline.execution.agreement import LOOK_SECONDS, AgreeingRow, SpareSlots
from pipeline.execution.samples import Sample
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.planning import PartRef
from pipeline.reasoning.trace import Trace

PART = PartRef("shard.00000.parquet", 0, 10)


class Rows:
    """Rows of six samples until two agree, on an engine whose samples end when they are told to."""

    def __init__(self, slots: int = 64, suspicion: Suspicion = Suspicion.NONE) -> None:
        self.load, self.events, self.counted = EngineLoad(), list[str](), list[int]()
        self.ends = dict[tuple[int, int], asyncio.Future[str | None]]()
        self.spare = SpareSlots(slots, lambda: self.load)
        self._suspicion = suspicion

    async def _generate(self, sample: Sample) -> Trace:
        _, row, number = sample.key
        self.events.append(f"{row}:{number}")
        end = self.ends[row, number] = asyncio.get_running_loop().create_future()
        try:
            return Trace("finished", number, parsed=await end)
        except asyncio.CancelledError:
            self.events.append(f"{row}:{number} ended")
            raise

    def start(self, row: int = 0) -> asyncio.Task[list[Trace]]:
        samples = [Sample((PART, row, i), i, suspicion=self._suspicion) for i in range(6)]
        count = lambda trace: self.counted.append(trace.sample)  # noqa: E731
        return asyncio.ensure_future(
            AgreeingRow(samples, 2, self._generate, count, self.spare).run()
        )

    async def end(self, number: int, answer: str | Exception | None, row: int = 0) -> list[str]:
        """End a sample; returns what happened next."""
        self.events.clear()
        if isinstance(answer, Exception):
            self.ends[row, number].set_exception(answer)
        else:
            self.ends[row, number].set_result(answer)
        return await self.wait()

    async def wait(self, seconds: float = 0) -> list[str]:
        await asyncio.sleep(seconds)
        for _ in range(10):
            await asyncio.sleep(0)
        return list(self.events)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def alone() -> None:
        await work()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    virtual_time.run(alone())


def test_a_sample_that_can_not_agree_any_more_is_replaced_while_others_still_run() -> None:
    async def work() -> None:
        rows = Rows()
        row = rows.start()
        assert await rows.wait() == ["0:0", "0:1"]
        assert await rows.end(1, "8") == []
        assert await rows.end(0, "7") == ["0:2"]
        assert await rows.end(2, None) == ["0:3"]
        assert await rows.end(3, "8") == []
        assert [trace.parsed for trace in await row] == ["7", "8", None, "8"]
        assert rows.counted == [1, 0, 2, 3]

    run(work)


def test_spare_slots_draw_ahead_and_what_is_not_needed_is_ended() -> None:
    async def work() -> None:
        rows = Rows(slots=9)
        rows.load = EngineLoad(waiting=1)  # others wait for the slots
        one, two = rows.start(1), rows.start(2)
        assert await rows.wait(5 * LOOK_SECONDS) == ["1:0", "1:1", "2:0", "2:1"]
        rows.load, before = EngineLoad(), len(rows.events)
        ahead = (await rows.wait(5 * LOOK_SECONDS))[before:]
        assert ahead == ["1:2", "2:2", "1:3", "2:3"]  # in turns, and no more of a row
        # Later ones that agree end nothing as long as an earlier one may be needed instead.
        assert await rows.end(3, "7", row=1) == []
        assert await rows.end(2, "7", row=1) == []
        assert await rows.end(0, "7", row=1) == []
        assert await rows.end(1, "8", row=1) == []
        assert [trace.sample for trace in await one] == [0, 1, 2]
        assert rows.counted == [0, 1, 2]
        await rows.end(1, "7", row=2)
        assert await rows.end(0, "7", row=2) == ["2:2 ended", "2:3 ended"]
        assert [trace.sample for trace in await two] == [0, 1]

    run(work)


def test_slots_that_are_free_for_a_moment_are_not_spare() -> None:
    async def work() -> None:
        rows = Rows(slots=4)
        first, second = rows.start(0), rows.start(1)
        await rows.wait(2.5 * LOOK_SECONDS)
        await rows.end(0, "7", row=0)
        assert await rows.end(1, "7", row=0) == []
        await first
        third = rows.start(2)
        assert await rows.wait(2.5 * LOOK_SECONDS) == ["2:0", "2:1"]
        for task in (second, third):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(work)


def test_suspects_draw_nothing_ahead() -> None:
    async def work() -> None:
        rows = Rows(suspicion=Suspicion.ONE_OF_MANY)
        row = rows.start()
        assert await rows.wait(5 * LOOK_SECONDS) == ["0:0", "0:1"]
        await rows.end(0, "7")
        await rows.end(1, "7")
        await row

    run(work)


def test_error_or_cancelling_ends_all_samples_of_the_row() -> None:
    async def work() -> None:
        unretrieved = list[object]()
        asyncio.get_running_loop().set_exception_handler(lambda _, about: unretrieved.append(about))
        rows = Rows(slots=4)
        row = rows.start()
        await rows.wait(5 * LOOK_SECONDS)
        rows.ends[0, 2].set_exception(EngineDeadError("gone"))
        assert await rows.end(1, EngineDeadError("gone")) == ["0:0 ended", "0:3 ended"]
        with pytest.raises(EngineDeadError):
            await row
        row = rows.start(1)
        await rows.wait()
        rows.events.clear()
        row.cancel()
        assert await rows.wait() == ["1:0 ended", "1:1 ended"]
        with pytest.raises(asyncio.CancelledError):
            await row
        assert unretrieved == []

    run(work)
