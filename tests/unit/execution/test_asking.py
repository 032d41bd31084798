"""Answers that can't be read are asked for once more, and nothing finished is lost by that."""

import pytest

from pipeline.engines import Request
from pipeline.errors import EngineDeadError, RequestRejectedError
from pipeline.execution.generation import Generator
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import Pass
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.trace import Trace
from tests.unit.execution.test_generation import (
    PART,
    TOKENIZER,
    announcing,
    generator_of,
    run,
    sample,
)


def test_answer_that_can_not_be_read_is_asked_for_once_more() -> None:
    box = TOKENIZER.encode("\\boxed{")

    def script(request: Request) -> str:
        if request.id.endswith(":asked"):
            assert list(request.carried_token_ids) == TOKENIZER.encode("t</think>\n\n") + box
            assert request.policy.temperature == 0
            return "7}" if request.id == "shard:0:0:asked" else "no end"
        return "t</think>\\boxed{8}" if request.id == "shard:2:0" else "t</think>seven"

    async def work() -> tuple[list[Trace], EngineReporter, int]:
        generator, engine, reporter = generator_of(script, Pass(0, 0, 1), ask_again=True)
        traces = await generator.run([[sample(row)] for row in range(3)])
        return [trace for [trace] in traces], reporter, len(engine.requests)

    (asked, in_vain, read), reporter, requests = run(work)
    tokens = len(TOKENIZER.encode("7}"))
    assert (asked.state, asked.parsed, asked.answer) == ("finished", "7", "seven")
    assert asked.asked_tokens == tokens
    assert (in_vain.state, in_vain.parsed) == ("unparsed", None)
    assert in_vain.asked_tokens > 0
    assert (read.state, read.parsed, read.asked_tokens) == ("finished", "8", 0)
    done = reporter.done
    assert done.states == {"finished": 2, "unparsed": 1}
    assert done.spent_tokens == done.output_tokens + tokens + in_vain.asked_tokens
    assert requests == 3 + 2


@pytest.mark.parametrize(
    ("suspicion", "problem"),
    [
        (Suspicion.NONE, RequestRejectedError("no")),
        (Suspicion.POISON, EngineDeadError("gone")),
        (Suspicion.NONE, EngineDeadError("gone")),
    ],
)
def test_what_is_finished_stays_so_whatever_asking_once_more_does(
    suspicion: Suspicion, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EngineReporter, "suspects_run", announcing([]))

    async def work() -> tuple[Generator, list[list[Trace]]]:
        generator, _, _ = generator_of(lambda _: problem, Pass(0, 0, 1), ask_again=True)
        progress = TraceProgress(finish_reason="stop")
        progress.report(TOKENIZER.encode("t</think>seven"))
        ended = sample(0, progress=progress, suspicion=suspicion)
        try:
            return generator, await generator.run([[ended]])
        except EngineDeadError:
            assert progress.finish_reason == "stop"
            return generator, []

    generator, traces = run(work)
    dies = isinstance(problem, EngineDeadError) and suspicion == Suspicion.NONE
    assert generator.in_flight.at_death == ([(PART.name, 0)] if dies else None)
    if not dies:
        [[trace]] = traces
        assert (trace.state, trace.answer, trace.asked_tokens) == ("unparsed", "seven", 0)
