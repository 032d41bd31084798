"""The samples of a row side by side, until enough of them agree.

Those that are certain to be needed run at once. Where an engine has slots that nothing needs,
further ones run ahead of need. Which samples a row has does not depend on that, nor on how fast any
of them is: always the first ones up to the sample with which enough agree.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.engines import EngineLoad
from pipeline.execution.samples import Sample
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.reasoning.sampling import needed_samples
from pipeline.reasoning.trace import Trace

# Slots are spare if they were at the last look too: between two blocks some are free for a moment.
LOOK_SECONDS = 2.0
# Samples of a row beyond those that are certain to be needed. With more, rows end no sooner
# (`python -m jobs.bench agreement`), and more tokens are not needed.
MOST_AHEAD = 2


@dataclass
class SpareSlots:
    """The slots of an engine that nothing needs, shared by the rows that may draw ahead.

    ``slots``: how many samples the engine runs at once. ``load``: gives its load now.
    """

    slots: int
    load: Callable[[], EngineLoad]
    _used: int = 0
    _spare_before: int = 0
    _rows: list["AgreeingRow"] = field(default_factory=list)
    _timer: asyncio.TimerHandle | None = None

    @contextmanager
    def offered_to(self, row: "AgreeingRow") -> Iterator[None]:
        """Let ``row`` draw ahead while the body runs."""
        self._rows.append(row)
        if self._timer is None:
            self._spare_before = 0
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)
        try:
            yield
        finally:
            self._rows.remove(row)
            if not self._rows and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def use(self, task: asyncio.Task[Trace]) -> None:
        """Count the slot of a sample until its ``task`` has ended."""
        self._used += 1
        task.add_done_callback(self._free)

    def look(self) -> None:
        """Let rows draw ahead in the slots that are spare; those first that are least ahead."""
        free = min(self._spare, self._spare_before)
        while free > 0 and (rows := [row for row in self._rows if row.may_draw_ahead]):
            for row in sorted(rows, key=lambda row: row.ahead)[:free]:
                row.draw()
                free -= 1

    @property
    def _spare(self) -> int:
        return 0 if self.load().waiting else max(0, self.slots - self._used)

    def _free(self, _: asyncio.Task[Trace]) -> None:
        self._used -= 1

    def _look_again(self) -> None:
        self.look()
        self._spare_before = self._spare
        self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)


@dataclass(eq=False)
class AgreeingRow:
    """One row, whose ``samples`` are drawn until ``agree`` of them have the same answer.

    ``generate``: makes a sample's trace. ``count``: gets each trace that is needed, once.
    """

    samples: Sequence[Sample]
    agree: int
    generate: Callable[[Sample], Coroutine[Any, Any, Trace]]
    count: Callable[[Trace], None]
    spare: SpareSlots
    _tasks: list[asyncio.Task[Trace]] = field(default_factory=list)
    _needed: int = 0
    _counted: set[int] = field(default_factory=set)

    @property
    def ahead(self) -> int:
        """How many samples run, or have ended, that may not be needed."""
        return len(self._tasks) - self._needed

    @property
    def may_draw_ahead(self) -> bool:
        """Whether one more may be drawn, of a row that is no suspect: these run a few at a time."""
        left = len(self._tasks) < len(self.samples) and self.ahead < MOST_AHEAD
        return left and self.samples[0].suspicion == Suspicion.NONE

    def draw(self) -> None:
        """Start the next sample."""
        task = asyncio.ensure_future(self.generate(self.samples[len(self._tasks)]))
        self._tasks.append(task)
        self.spare.use(task)

    async def run(self) -> list[Trace]:
        """The traces up to the one with which enough agree; samples beyond it are ended."""
        try:
            with self.spare.offered_to(self):
                return await self._traces()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _traces(self) -> list[Trace]:
        while True:
            ended = {i: task.result() for i, task in enumerate(self._tasks) if task.done()}
            answers = {i: trace.parsed for i, trace in ended.items()}
            self._needed = needed_samples(answers, self.agree, len(self.samples))
            while self.ahead < 0:
                self.draw()
            for i in sorted(ended.keys() - self._counted):
                if i < self._needed:
                    self._counted.add(i)
                    self.count(ended[i])
            running = [task for task in self._tasks[: self._needed] if not task.done()]
            if not running:
                return [ended[i] for i in range(self._needed)]
            self.spare.look()
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
