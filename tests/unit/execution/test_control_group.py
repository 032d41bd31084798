"""Early answers on a scripted engine: the control group, the floor of its agreement, the counts."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.engines import EngineLoad, OnTokens, Request
from pipeline.execution.generation import Generator
from pipeline.execution.samples import Sample
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.figures import Snapshot
from pipeline.monitor.limits import Limits
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import PartRef, Pass
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.early_answer import ControlGroup, is_below_floor
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import Trace, TraceMaker

TOKENIZER = load_tokenizer("qwq-nano")
PART = PartRef("shard.00000.parquet", 0, 10)
THOUGHTS = "So it is. " * 80


class SlowEngine:
    """Thinks in steps of few tokens; its full answer is 7, and a probe's answer is 8."""

    context_tokens, load = 2000, EngineLoad()

    async def generate(self, request: Request, on_tokens: Callable[[Sequence[int]], bool]) -> str:
        if request.id.endswith(":probe"):
            text = "8}"
        else:
            text = "\\boxed{8}" if request.carried_token_ids else THOUGHTS + "</think>\\boxed{7}"
        token_ids = TOKENIZER.encode(text)
        for start in range(0, len(token_ids), 4):
            await asyncio.sleep(0)
            on_tokens(token_ids[start : start + 4])
        return "stop"

    def close(self) -> None:
        """Nothing to free."""


def generator_of(**early: Any) -> tuple[Generator, EngineReporter]:
    every = {"agree": 2, "every_tokens": 8, "signs": [], "probe_share": 1, **early}
    config = parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
            "sampling": {"max_tokens": 1000}, "answer": {"format": "boxed"},
            "thinking": {"early_answer": every},
        }
    )  # fmt: skip
    maker, engine = TraceMaker(TOKENIZER, THINK_TAGS, config.answer.load_format()), SlowEngine()
    reporter = EngineReporter(CoordinatorClient(None), "e", lambda: engine.load, lambda _: None)
    return Generator(config, Pass(0, 0, 1), engine, maker, reporter), reporter


def trace_of(generator: Generator, control: bool = False) -> Trace:
    sample = Sample((PART, 0, 0), seed=0, prompt=(1, 2, 3), control=control)
    [[trace]] = asyncio.run(asyncio.wait_for(generator.run([[sample]]), 60))
    return trace


@pytest.mark.parametrize(
    ("floor", "compared", "agreeing", "is_below"),
    [(None, 100, 0, False), (0.9, 19, 0, False), (0.9, 20, 17, True), (0.9, 20, 18, False)],
)
def test_floor_needs_enough_compared(
    floor: float | None, compared: int, agreeing: int, is_below: bool
) -> None:
    assert is_below_floor(floor, compared, compared, agreeing) == is_below
    assert (ControlGroup(compared, compared, agreeing, floor).warning is not None) == is_below


def test_control_trace_thinks_to_its_end_and_is_compared() -> None:
    generator, reporter = generator_of()
    trace = trace_of(generator, control=True)
    assert (trace.closed_by, trace.parsed, trace.early_answer) == (None, "7", "8")
    assert trace.early_agrees is False
    assert (reporter.done.compared, reporter.done.agreeing) == (1, 0)
    assert trace_of(generator).parsed == "8"
    assert reporter.done.compared == 1, "what was closed can't be compared"
    assert reporter.done.compared_rows == 1


def test_floor_counts_rows_since_samples_of_a_row_are_alike() -> None:
    generator, reporter = generator_of(min_agreement=0.9, below="stop")
    samples = [Sample((PART, 0, i), seed=i, prompt=(1, 2, 3), control=True) for i in range(32)]
    asyncio.run(asyncio.wait_for(generator.run([samples]), 60))
    done = reporter.done
    assert (done.compared_rows, done.compared, done.agreeing) == (1, 32, 0)
    generator.look_at_control_group(done.compared_rows, done.compared, done.agreeing)
    assert trace_of(generator).closed_by == "early_answer"


@pytest.mark.parametrize(
    ("below", "agreeing", "closed_by"),
    [("stop", 17, None), ("stop", 18, "early_answer"), ("warn", 0, "early_answer")],
)
def test_below_the_floor_no_more_thinking_is_closed_if_so_set(
    below: str, agreeing: int, closed_by: str | None
) -> None:
    generator, _ = generator_of(min_agreement=0.9, below=below)
    generator.look_at_control_group(20, 20, agreeing)
    assert trace_of(generator).closed_by == closed_by


def test_trace_that_runs_already_is_not_closed_either() -> None:
    generator, reporter = generator_of(min_agreement=0.9, below="stop")
    count = reporter.done

    async def work() -> Trace:
        sample = Sample((PART, 0, 0), seed=0, prompt=(1, 2, 3))
        running = asyncio.ensure_future(generator.run([[sample]]))
        while not count.probe_tokens:  # noqa: ASYNC110 (set by no event)
            await asyncio.sleep(0)
        generator.look_at_control_group(20, 20, 0)
        [[trace]] = await running
        return trace

    trace = asyncio.run(asyncio.wait_for(work(), 60))
    assert (trace.closed_by, trace.parsed) == (None, "7")


def test_tokens_of_a_probe_that_the_end_of_its_trace_cuts_off_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generate = SlowEngine.generate

    async def slow_probes(self: SlowEngine, request: Request, on_tokens: OnTokens) -> str:
        if not request.id.endswith(":probe"):
            return await generate(self, request, on_tokens)
        on_tokens(TOKENIZER.encode("8"))
        return await asyncio.Future[str]()

    monkeypatch.setattr(SlowEngine, "generate", slow_probes)
    generator, reporter = generator_of()
    trace, done = trace_of(generator), reporter.done
    assert (trace.probes, trace.wasted_tokens, done.probe_tokens) == (0, 1, 1)
    assert done.spent_tokens == trace.think_tokens + trace.answer_tokens + trace.wasted_tokens


def test_probes_that_wait_count_neither_as_running_nor_as_waiting_traces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SlowEngine, "load", EngineLoad(running=72, waiting=5))
    generator, _ = generator_of()
    assert generator.load == EngineLoad(running=72, waiting=5)
    probing = generator._probing
    assert probing is not None
    for probes, running, waiting in ((3, 72, 2), (13, 64, 0)):
        probing.running = probes
        assert generator.load == EngineLoad(running=running, waiting=waiting)


def test_probes_count_as_spent_and_for_the_limit_of_tokens() -> None:
    generator, reporter = generator_of()
    trace, done = trace_of(generator, control=True), reporter.done
    assert done.probe_tokens == trace.probe_tokens > 0
    assert done.spent_tokens == trace.think_tokens + trace.answer_tokens + trace.probe_tokens

    class Engines(CoordinatorClient):
        def snapshot(self) -> Snapshot:
            return Snapshot(done)

    for limit, reached in (
        (done.spent_tokens, "limits.output_tokens"),
        (done.spent_tokens + 1, None),
    ):
        config = parse_config(
            {
                "input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "qwq-nano"},
                "limits": {"output_tokens": limit},
            }
        )  # fmt: skip
        limits = Limits(config)
        with limits.tracking(lambda *_: nullcontext())(Engines(None), 1, ""):
            pass
        assert limits._reached() == reached
