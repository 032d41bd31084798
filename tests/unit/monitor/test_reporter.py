"""The reporter of an engine: each count is sent once, and reports go on to the end."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from ray import ObjectRef

from pipeline.engines import EngineLoad
from pipeline.monitor import reporter as reporter_module
from pipeline.monitor.coordinator import CoordinatorClient, ReportAnswer
from pipeline.monitor.engine_processes import RowKey
from pipeline.monitor.figures import Totals
from pipeline.monitor.reporter import EngineReporter


class Reports(CoordinatorClient):
    """Answers the reports of one engine; the run ends with the second."""

    def __init__(self) -> None:
        self.spent: list[int] = []

    def engine_progress(
        self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
    ) -> ObjectRef[ReportAnswer]:
        self.spent.append(done.spent_tokens)
        answer: Any = Future[ReportAnswer]()
        answer.set_result(ReportAnswer(len(self.spent) > 1, 1, len(self.spent), 1))
        answer.future = lambda: answer
        reference: ObjectRef[ReportAnswer] = answer
        return reference


def test_preemptions_are_reported_once() -> None:
    reported = list[Totals]()

    class Kept(Reports):
        def engine_progress(
            self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
        ) -> ObjectRef[ReportAnswer]:
            reported.append(done)
            return super().engine_progress(engine, done, load, released)

    loads = iter(
        [EngineLoad(preemptions=2, recomputed_tokens=90)] * 2 + [EngineLoad(preemptions=3)]
    )
    reporter = EngineReporter(Kept(), "a", lambda: next(loads), lambda _: None)
    for _ in range(2):
        reporter.send()
    assert [(done.preemptions, done.recomputed_tokens) for done in reported] == [(2, 90), (0, 0)]


def test_engine_reports_on_while_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent engine counts as gone: the driver would end before its traces are saved."""
    monkeypatch.setattr(reporter_module, "REPORT_SECONDS", 0.001)
    reports, stops = Reports(), list[int]()
    control = list[tuple[int, int, int]]()
    reporter = EngineReporter(
        reports, "a", EngineLoad, lambda _: stops.append(len(reports.spent)),
        lambda *counts: control.append(counts),
    )  # fmt: skip
    reporter.done.spent_tokens = 7

    async def report() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reporter.keep_reporting(), 0.2)

    asyncio.run(report())
    assert stops == [2]
    assert len(reports.spent) > 3
    assert control[:3] == [(1, 1, 1), (1, 2, 1), (1, 3, 1)]
    assert sum(reports.spent) == 7, "each count is sent once"


@pytest.mark.parametrize(
    ("answer", "ends_process"),
    [
        (ReportAnswer(False, node_ends=True), True),
        (ReportAnswer(True), False),
        (ReportAnswer(True, node_ends=True), False),  # the driver ends all processes
    ],
)
def test_engine_ends_its_process_with_its_node_but_waits_for_the_end_of_a_run(
    monkeypatch: pytest.MonkeyPatch, answer: ReportAnswer, ends_process: bool
) -> None:
    monkeypatch.setattr(reporter_module, "REPORT_SECONDS", 0.001)

    class Told(CoordinatorClient):
        def __init__(self) -> None:
            pass

        def engine_progress(
            self, engine: str, done: Totals, load: EngineLoad, released: Sequence[RowKey] = ()
        ) -> ObjectRef[ReportAnswer]:
            reply: Any = Future[ReportAnswer]()
            reply.set_result(answer)
            reply.future = lambda: reply
            reference: ObjectRef[ReportAnswer] = reply
            return reference

    stops = list[bool]()

    async def report() -> None:
        with pytest.raises(asyncio.TimeoutError):
            reporter = EngineReporter(Told(), "a", EngineLoad, stops.append)
            await asyncio.wait_for(reporter.keep_reporting(), 0.1)

    asyncio.run(report())
    assert stops == [ends_process]
