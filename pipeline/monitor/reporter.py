"""What an engine's actor reports to the coordinator."""

import asyncio
from collections.abc import Callable, Sequence

from ray import ObjectRef

from pipeline.engines import EngineLoad
from pipeline.monitor.coordinator import CoordinatorClient, ReportAnswer
from pipeline.monitor.engine_processes import RowKey
from pipeline.monitor.figures import Totals
from pipeline.time_limits import REPORT_SECONDS


class EngineReporter:
    """One engine's counts, sent to the coordinator twice a second.

    ``done``: the counts since the last report. ``load``, ``stop`` and ``on_control`` are called in
    the event loop's thread. ``stop`` gets whether the process is to end too, with its
    node. ``on_control`` gets, after each report, what all engines have compared of the control
    group: of how many rows, how many traces, and how many of these agree.
    """

    def __init__(
        self,
        coordinator: CoordinatorClient,
        engine: str,
        load: Callable[[], EngineLoad],
        stop: Callable[[bool], None],
        on_control: Callable[[int, int, int], None] = lambda *_: None,
    ) -> None:
        self._coordinator, self._engine, self._load, self._stop = coordinator, engine, load, stop
        self._on_control = on_control
        self.done, self._last_load = Totals(), EngineLoad()
        self._released = list[RowKey]()

    def release(self, rows: Sequence[RowKey]) -> None:
        """Say with the next report that the engine no longer holds ``rows``.

        For the event loop's thread, as all methods but `close`.
        """
        self._released.extend(rows)

    def suspects_run(self, rows: Sequence[RowKey]) -> ObjectRef[None]:
        """Say which suspects run now; the answer comes when the coordinator knows."""
        return self._coordinator.suspects_running(self._engine, tuple(rows))

    async def keep_reporting(self) -> None:
        """Report until cancelled; call ``stop`` once when told to.

        Reports go on while the engine saves: a silent engine counts as gone, and the driver would
        not wait for it.
        """
        stopping = False
        while True:
            answer = await asyncio.wrap_future(self.send().future())
            self._on_control(answer.rows, answer.compared, answer.agreeing)
            if (answer.is_over or answer.node_ends) and not stopping:
                stopping = True
                self._stop(answer.node_ends and not answer.is_over)
            await asyncio.sleep(REPORT_SECONDS)

    def send(self) -> ObjectRef[ReportAnswer]:
        """Send what was done since the last report; returns a reference to the answer."""
        done, self.done = self.done, Totals()
        load, last = self._load(), self._last_load
        done.preemptions = load.preemptions - last.preemptions
        done.recomputed_tokens = load.recomputed_tokens - last.recomputed_tokens
        done.drafted_tokens = load.drafted_tokens - last.drafted_tokens
        done.accepted_tokens = load.accepted_tokens - last.accepted_tokens
        self._last_load = load
        released, self._released = self._released, []
        return self._coordinator.engine_progress(self._engine, done, load, released)

    def close(self) -> None:
        """Send the last counts, and that the engine has shut down; wait until that has arrived."""
        self.send()
        self._coordinator.engine_closed(self._engine)
