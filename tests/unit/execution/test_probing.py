"""Probes beside a trace, on a scripted engine: what they close, what they leave alone."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.engines import EngineLoad, Request
from pipeline.errors import EngineDeadError, RequestRejectedError
from pipeline.execution.generation import Generator
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import Pass
from pipeline.reasoning.early_answer import Probe
from pipeline.reasoning.policy import EARLY_STOP, TraceProgress
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import Trace, TraceMaker
from tests.unit.execution.test_generation import TOKENIZER, run, sample

THOUGHT = "a" * 96  # a token a letter, probed after 20, 40, 60 and 80 of them
TASKS = 2  # of a test itself
Says = Callable[[int], str | Exception]


class ThinkingEngine:
    """Thinks ``thought`` four tokens at a time, and meanwhile answers probes as ``says``.

    ``says``: what a probe after so many tokens says, or its error. While a probe runs the thinking
    waits, up to ``at_most`` tokens ahead of it. ``answers``: of closed thinking, the last one again
    and again; ``seeds``: with which they were asked for.
    """

    context_tokens = 1000
    answers: Sequence[str] = (r"So \boxed{5}.",)

    @property
    def load(self) -> EngineLoad:
        return EngineLoad(self.running + self.is_probing)

    def __init__(self, thought: str, says: Says, ahead: int = 8) -> None:
        self._whole, self._says, self._ahead = TOKENIZER.encode(thought), says, ahead
        self.probed, self.running, self.most = list[int](), 0, 0
        self.is_probing, self.first_probe = False, asyncio.Event()
        self.seeds = list[int]()

    async def generate(self, request: Request, on_tokens: Callable[[Sequence[int]], bool]) -> str:
        carried = TOKENIZER.decode(list(request.carried_token_ids))
        if request.id.endswith(":probe"):
            return await self._probe(carried.index(f"\n\n{EARLY_STOP}"), on_tokens)
        if EARLY_STOP in carried:
            answer = self.answers[min(len(self.seeds), len(self.answers) - 1)]
            self.seeds.append(request.seed)
            if not answer:
                raise RequestRejectedError("no")
            on_tokens(TOKENIZER.encode(answer))
            return "stop"
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for start in range(len(request.carried_token_ids), len(self._whole), 4):
                on_tokens(self._whole[start : start + 4])
                ahead = 0
                while True:
                    await asyncio.sleep(0)
                    ahead += 1
                    if not self.is_probing or ahead > self._ahead:
                        break
            return "stop"
        finally:
            self.running -= 1

    async def _probe(self, at: int, on_tokens: Callable[[Sequence[int]], bool]) -> str:
        self.probed.append(at)
        self.is_probing = True
        self.first_probe.set()
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            said = self._says(at)
            if isinstance(said, Exception):
                raise said
            on_tokens(TOKENIZER.encode(said))
            return "stop"
        finally:
            self.is_probing = False

    def close(self) -> None:
        """Nothing to free."""


def generator_of(
    engine: ThinkingEngine, slots: int = 64, **early: Any
) -> tuple[Generator, EngineReporter]:
    settings = {"agree": 2, "every_tokens": 20, "signs": [], "probe_share": 1, **early}
    config = parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
            "answer": {"format": "boxed"}, "thinking": {"early_answer": settings},
            "engine": {"vllm": {"max_num_seqs": slots}},
        }
    )  # fmt: skip
    maker = TraceMaker(TOKENIZER, THINK_TAGS, config.answer.load_format())
    reporter = EngineReporter(CoordinatorClient(None), "e", lambda: engine.load, lambda _: None)
    return Generator(config, Pass(0, 0, 1), engine, maker, reporter), reporter


def trace_of(
    says: Says,
    thought: str = f"{THOUGHT}</think>It is \\boxed{{6}}.",
    progress: TraceProgress | None = None,
    control: bool = False,
    answers: Sequence[str] = ThinkingEngine.answers,
    **early: Any,
) -> tuple[Trace, ThinkingEngine, EngineReporter]:
    """The trace of one sample, its engine, and what was reported."""
    engine = ThinkingEngine(thought, says)
    engine.answers = answers

    async def work() -> tuple[Trace, EngineReporter]:
        generator, reporter = generator_of(engine, **early)
        one = sample(0, progress=progress or TraceProgress(), control=control)
        [[trace]] = await generator.run([[one]])
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == TASKS
        return trace, reporter

    trace, reporter = run(work)
    return trace, engine, reporter


def test_thinking_is_closed_when_probes_agree_and_the_answer_follows() -> None:
    trace, engine, reporter = trace_of(lambda at: "5}" if at >= 40 else "1}")
    assert engine.probed == [20, 40, 60]
    assert (trace.state, trace.closed_by, trace.parsed) == ("finished", "early_answer", "5")
    assert (trace.think, trace.think_tokens) == ("a" * 60, 60)
    assert (trace.probes, trace.probe_tokens) == (3, 6)
    assert (trace.early_answer, trace.early_tokens, trace.early_agrees) == ("5", 60, True)
    assert trace.wasted_tokens in range(1, 30)  # what was thought while the last probe ran
    done = reporter.done
    assert (done.probe_tokens, done.compared) == (6, 0)
    spent = trace.think_tokens + trace.answer_tokens + trace.wasted_tokens + trace.probe_tokens
    assert done.spent_tokens == spent


@pytest.mark.parametrize("other", [r"So \boxed{7}.", "So it is."])
def test_answer_that_is_not_what_the_probes_agreed_on_is_drawn_again(other: str) -> None:
    right = r"So \boxed{5}."
    trace, engine, reporter = trace_of(lambda at: "5}", answers=[other, other, right])
    assert (trace.parsed, trace.answer, trace.early_agrees) == ("5", right, True)
    assert len(set(engine.seeds)) == 3
    once, _, _ = trace_of(lambda at: "5}")
    assert trace.wasted_tokens == once.wasted_tokens + 2 * len(other)
    spent = trace.think_tokens + trace.answer_tokens + trace.wasted_tokens + trace.probe_tokens
    assert reporter.done.spent_tokens == spent


def test_answer_that_stays_another_than_the_probes_is_kept_and_says_so() -> None:
    trace, engine, _ = trace_of(lambda at: "5}", answers=[r"So \boxed{7}."])
    assert len(engine.seeds) == 3
    assert (trace.parsed, trace.early_answer, trace.early_agrees) == ("7", "5", False)


def test_answer_that_can_not_be_drawn_again_is_kept() -> None:
    trace, _, _ = trace_of(lambda at: "5}", answers=[r"So \boxed{7}.", ""])
    assert (trace.state, trace.parsed, trace.early_agrees) == ("finished", "7", False)


def test_control_group_is_probed_but_thinks_to_its_end() -> None:
    trace, engine, reporter = trace_of(lambda at: "5}", control=True)
    assert engine.probed == [20, 40]  # no more once the answer has settled
    assert (trace.control, trace.closed_by, trace.parsed) == (True, None, "6")
    assert (trace.think_tokens, trace.wasted_tokens) == (len(f"{THOUGHT}") + 1, 0)
    assert (trace.early_answer, trace.early_tokens, trace.early_agrees) == ("5", 40, False)
    assert (reporter.done.compared, reporter.done.agreeing) == (1, 0)


def test_answers_of_equal_value_agree() -> None:
    trace, _, _ = trace_of(lambda at: r"\frac{1}{2}}" if at == 20 else "0.5}")
    assert (trace.closed_by, trace.early_answer) == ("early_answer", "0.5")


def test_probes_that_disagree_or_say_nothing_close_nothing() -> None:
    trace, engine, _ = trace_of(lambda at: {20: "5}", 40: "none", 60: "5}", 80: "7}"}[at])
    assert engine.probed == [20, 40, 60, 80]
    assert (trace.closed_by, trace.early_answer, trace.probes) == (None, None, 4)
    assert trace.parsed == "6"


def test_thinking_that_has_ended_is_neither_probed_nor_closed() -> None:
    ended = f"{THOUGHT[:30]}</think>{'b' * 80} \\boxed{{6}}"
    trace, engine, _ = trace_of(lambda at: "5}", ended)
    assert engine.probed == [20]
    assert (trace.closed_by, trace.think_tokens) == (None, 31)


def test_probes_that_agree_when_the_thinking_has_just_ended_come_too_late() -> None:
    ended = f"{THOUGHT[:41]}</think>{'b' * 80} \\boxed{{6}}"
    trace, engine, _ = trace_of(lambda at: "5}", ended)
    assert engine.probed == [20, 40]
    assert (trace.closed_by, trace.early_answer, trace.early_agrees) == (None, "5", False)


def test_trace_that_another_engine_continues_knows_its_probes() -> None:
    progress = TraceProgress()
    progress.report(TOKENIZER.encode(THOUGHT[:50]))
    progress.probes = [Probe(20, 2, "5", 1)]
    trace, engine, _ = trace_of(lambda at: "5}", progress=progress)
    assert engine.probed == [40]
    assert (trace.closed_by, trace.think_tokens, trace.probes) == ("early_answer", 40, 2)


def test_trace_whose_answer_had_settled_before_a_crash_is_closed_at_once() -> None:
    progress = TraceProgress()
    progress.report(TOKENIZER.encode(THOUGHT[:50]))
    progress.probes = [Probe(20, 2, "5", 1), Probe(40, 2, "5", 2)]
    trace, engine, _ = trace_of(lambda at: "5}", progress=progress)
    assert engine.probed == []
    assert (trace.closed_by, trace.think_tokens, trace.wasted_tokens) == ("early_answer", 40, 10)


@pytest.mark.parametrize("error", [RequestRejectedError("no"), EngineDeadError("probes only")])
def test_probe_that_fails_costs_the_trace_nothing(error: Exception) -> None:
    trace, engine, _ = trace_of(lambda at: error)
    assert engine.probed == [20]
    assert (trace.state, trace.closed_by, trace.parsed) == ("finished", None, "6")


def test_probes_cost_no_more_than_their_share() -> None:
    trace, engine, _ = trace_of(lambda at: f"{at}" + 11 * "0" + "}", probe_share=0.15)
    assert engine.probed == [40]  # at 20 the usual cost is too much, at 60 and 80 what it cost
    assert trace.probe_tokens == 14


def test_probe_that_the_context_has_no_room_for_is_not_made() -> None:
    closing = len(TraceMaker(TOKENIZER, THINK_TAGS).closing) + len(TOKENIZER.encode(r"\boxed{"))
    ThinkingEngine.context_tokens = 3 + 39 + closing + 64
    try:
        _, engine, _ = trace_of(lambda at: f"{at}}}")
    finally:
        ThinkingEngine.context_tokens = 1000
    assert engine.probed == [20]


def test_when_the_control_group_disagrees_only_that_group_is_probed() -> None:
    async def work() -> list[int]:
        engine = ThinkingEngine(f"{THOUGHT}</think>\\boxed{{6}}", lambda at: "5}")
        generator, _ = generator_of(engine)
        generator.close_no_more()
        [[closed]] = await generator.run([[sample(0)]])
        assert (closed.closed_by, closed.probes) == (None, 0)
        [[control]] = await generator.run([[sample(1, control=True)]])
        return [control.probes, len(engine.probed)]

    assert run(work) == [2, 2]


def test_traces_leave_the_slots_of_probes_alone() -> None:
    async def work() -> int:
        engine = ThinkingEngine(f"{THOUGHT}</think>\\boxed{{6}}", lambda at: f"{at}}}")
        generator, _ = generator_of(engine, slots=2)
        await generator.run([[sample(row)] for row in range(5)])
        return engine.most

    assert run(work) == 2


def test_run_that_is_told_to_end_ends_its_probes() -> None:
    async def work() -> int:
        engine = ThinkingEngine(THOUGHT * 9, lambda at: f"{at}}}")
        generator, _ = generator_of(engine)
        running = asyncio.ensure_future(generator.run([[sample(0)]]))
        await engine.first_probe.wait()
        assert engine.load.running == 2
        assert generator.load.running == 1  # the trace: the probe has a slot of its own
        await generator.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    assert run(work) == TASKS
