"""Generation on a scripted engine: samples, suspects, the engine's death, cancelling, counts."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines import EngineLoad, Request
from pipeline.errors import (
    EngineDeadError,
    EngineKilledError,
    InvalidPromptError,
    RequestRejectedError,
)
from pipeline.execution.generation import Generator
from pipeline.execution.samples import (
    Origin,
    Sample,
    SampleBuilder,
    origins_of,
    with_traces,
)
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import PartRef, Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import Trace, TraceMaker

TOKENIZER = load_tokenizer("qwq-nano")
PART = PartRef("shard.00000.parquet", 0, 10)
T = TypeVar("T")


class ScriptedEngine:
    """Answers requests by ``script``: text to generate, or an error to raise.

    Requests whose script is None wait until they are cancelled or ``death`` is set.
    """

    context_tokens, load = 1000, EngineLoad()

    def __init__(self, script: Callable[[Request], str | Exception | None]) -> None:
        self._script, self.requests = script, list[Request]()
        self.started, self.death = asyncio.Event(), asyncio.Event()

    async def generate(self, request: Request, on_tokens: Callable[[Sequence[int]], bool]) -> str:
        self.requests.append(request)
        self.started.set()
        answer = self._script(request)
        await asyncio.sleep(0)
        if answer is None:
            await self.death.wait()
            raise EngineDeadError("gone")
        if isinstance(answer, Exception):
            self.death.set()
            raise answer
        return "repetition" if on_tokens(TOKENIZER.encode(answer)) else "stop"

    def close(self) -> None:
        """Nothing to free."""


def config_of(ask_again: bool = False, **sampling: Any) -> RunConfig:
    answer = {"format": "boxed", "ask_again": ask_again} if sampling or ask_again else {}
    return parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
            "sampling": {"max_tokens": 500, **sampling}, "answer": answer,
        }
    )  # fmt: skip


def generator_of(
    script: Callable[[Request], str | Exception | None], run_pass: Pass, **sampling: Any
) -> tuple[Generator, ScriptedEngine, EngineReporter]:
    config, engine = config_of(**sampling), ScriptedEngine(script)
    maker = TraceMaker(TOKENIZER, THINK_TAGS, config.answer.load_format())
    reporter = EngineReporter(CoordinatorClient(None), "e", lambda: engine.load, lambda _: None)
    return Generator(config, run_pass, engine, maker, reporter), engine, reporter


def sample(row: int, number: int = 0, **fields: Any) -> Sample:
    return Sample((PART, row, number), seed=number, prompt=(1, 2, 3), **fields)


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(work(), 60))


def announcing(running: list[object]) -> Callable[..., Future[None]]:
    """Stands in for `EngineReporter.suspects_run`: keeps ``running`` as it was last told."""

    def announce(_: object, rows: Sequence[object]) -> Future[None]:
        running[:] = rows
        answer = Future[None]()
        answer.set_result(None)
        answer.future = lambda: answer  # type: ignore[attr-defined]
        return answer

    return announce


def test_block_comes_out_in_order_and_is_counted() -> None:
    async def work() -> tuple[list[list[Trace]], EngineReporter]:
        generator, _, reporter = generator_of(lambda r: f"t</think>{r.id}", Pass(0, 0, 2))
        rows = [[sample(row, number) for number in range(2)] for row in (4, 5)]
        return await generator.run(rows), reporter

    traces, reporter = run(work)
    answers = [[trace.answer for trace in row] for row in traces]
    assert answers == [["shard:4:0", "shard:4:1"], ["shard:5:0", "shard:5:1"]]
    done = reporter.done
    assert (done.rows, done.generated, done.states) == (2, 4, {"finished": 4})
    assert done.spent_tokens == done.output_tokens == sum(len(TOKENIZER.encode(
        f"t</think>shard:{row}:{number}")) for row in (4, 5) for number in range(2))  # fmt: skip


def test_samples_are_drawn_until_they_agree_but_not_in_a_retry() -> None:
    async def drawn(run_pass: Pass) -> list[str]:
        generator, engine, _ = generator_of(
            lambda r: f"t</think>\\boxed{{{'7' if r.id != 'shard:0:1' else '8'}}}",
            run_pass, n=6, agree=2,
        )  # fmt: skip
        await generator.run([[sample(0, number) for number in range(6)]])
        return [request.id[-1] for request in engine.requests]

    assert run(lambda: drawn(Pass(0, 0, 6))) == ["0", "1", "2"]
    retry = Pass(1, 0, 6, states=("finished",))
    assert run(lambda: drawn(retry)) == list("012345")


def test_checkpoint_of_a_sample_that_is_not_needed_changes_nothing() -> None:
    async def drawn() -> tuple[list[Trace], list[str], int]:
        generator, engine, reporter = generator_of(
            lambda _: "t</think>\\boxed{7}", Pass(0, 0, 6), n=6, agree=2
        )
        ended, begun = TraceProgress(finish_reason="stop"), TraceProgress()
        ended.report(TOKENIZER.encode("t</think>\\boxed{7}"))
        begun.report(TOKENIZER.encode("t"))
        row = [sample(0, number) for number in range(6)]
        row[0].progress, row[3].progress, row[4].progress = ended, ended, begun
        [traces] = await generator.run([row])
        ids = [request.id[-1] for request in engine.requests]
        return traces, ids, reporter.done.states.total()

    traces, requests, counted = run(drawn)
    assert [trace.sample for trace in traces] == [0, 1]
    assert (requests, counted) == (["1"], 2)


def test_sample_that_fails_agrees_with_none() -> None:
    async def drawn() -> list[Trace]:
        generator, _, _ = generator_of(
            lambda r: RequestRejectedError("no") if r.id[-1] in "03" else "t</think>\\boxed{7}",
            Pass(0, 0, 6), n=6, agree=2,
        )  # fmt: skip
        [traces] = await generator.run([[sample(0, number) for number in range(6)]])
        return traces

    assert [trace.state for trace in run(drawn)] == ["failed", "finished", "finished"]


def test_engine_that_dies_or_is_told_to_stop_ends_all_samples_that_are_to_agree() -> None:
    async def work(dies: bool) -> None:
        generator, engine, _ = generator_of(
            lambda r: EngineDeadError("gone") if dies and r.id == "shard:0:1" else None,
            Pass(0, 0, 6), n=6, agree=2,
        )  # fmt: skip
        row = [sample(0, number) for number in range(6)]
        block = asyncio.ensure_future(generator.run([row]))
        await engine.started.wait()
        if not dies:
            await generator.cancel()
        with pytest.raises(EngineDeadError if dies else asyncio.CancelledError):
            await block
        assert generator.in_flight.at_death == ([(PART.name, 0)] if dies else None)
        assert len(asyncio.all_tasks()) == 2  # this one, and the one that waits for it

    for dies in (True, False):
        run(partial(work, dies))


def test_row_that_can_not_run_fails_alone() -> None:
    async def work() -> tuple[list[list[Trace]], ScriptedEngine]:
        generator, engine, _ = generator_of(lambda _: "t</think>a", Pass(0, 0, 1))
        bad = sample(0, error=InvalidPromptError("no"))
        poison = sample(1, suspicion=Suspicion.POISON)
        return await generator.run([[bad], [poison], [sample(2)]]), engine

    traces, engine = run(work)
    errors = [trace.error for [trace] in traces]
    assert errors == [
        "invalid_prompt: no", "engine_killed: the engine died each time this row ran", None
    ]  # fmt: skip
    assert [request.id for request in engine.requests] == ["shard:2:0"]


def test_finished_trace_is_not_generated_again_even_of_a_row_that_kills(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EngineReporter, "suspects_run", announcing([]))

    async def work() -> tuple[list[list[Trace]], ScriptedEngine]:
        generator, engine, _ = generator_of(lambda _: EngineDeadError("no"), Pass(0, 0, 1))
        progress = TraceProgress(finish_reason="stop")
        progress.report(TOKENIZER.encode("t</think>a"))
        ended = sample(0, progress=progress, suspicion=Suspicion.POISON)
        return await generator.run([[ended]]), engine

    traces, engine = run(work)
    assert [trace.answer for [trace] in traces] == ["a"]
    assert engine.requests == []


def test_finished_trace_that_kills_the_process_is_announced_and_at_last_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer is read in the actor's process; so that a row is not blamed for its neighbour."""
    announced, running = list[object](), list[object]()
    monkeypatch.setattr(EngineReporter, "suspects_run", announcing(running))

    def read(*_: object, **__: object) -> Trace:
        announced.append(list(running))
        return Trace("finished", 0)

    monkeypatch.setattr(TraceMaker, "trace", read)

    async def work(suspicion: Suspicion) -> list[list[Trace]]:
        generator, _, _ = generator_of(lambda _: "t</think>a", Pass(0, 0, 1))
        ended = sample(0, progress=TraceProgress(finish_reason="stop"), suspicion=suspicion)
        return await generator.run([[ended]])

    for suspicion in (Suspicion.ONE_OF_FEW, Suspicion.POISON):
        run(partial(work, suspicion))
    assert announced == [[(PART.name, 0)]] * 2
    [[trace]] = run(partial(work, Suspicion.UNTOUCHABLE))
    assert trace.error == "engine_killed: the engine died each time this row ran"
    assert len(announced) == 2


def test_engine_that_dies_names_the_rows_it_ran_and_takes_no_more() -> None:
    async def work() -> tuple[Generator, ScriptedEngine]:
        generator, engine, _ = generator_of(
            lambda r: EngineDeadError("gone") if r.id == "shard:2:0" else None, Pass(0, 0, 1)
        )
        with pytest.raises(EngineDeadError):
            await generator.run([[sample(1)], [sample(1, 1)], [sample(2)]])
        with pytest.raises(EngineDeadError):
            await generator.run([[sample(3)]])
        return generator, engine

    generator, engine = run(work)
    assert generator.in_flight.at_death == [(PART.name, 1), (PART.name, 2)]
    assert len(engine.requests) == 3


def test_suspect_is_announced_before_it_runs_and_struck_off_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process may end without a word; the coordinator has to know on which row."""
    events = list[object]()

    class Events(list[object]):
        def __setitem__(self, _: object, rows: Any) -> None:
            events.append(list(rows))

    monkeypatch.setattr(EngineReporter, "suspects_run", announcing(Events()))

    def script(request: Request) -> str:
        events.append(request.id)
        return "t</think>a"

    async def work() -> None:
        generator, _, _ = generator_of(script, Pass(0, 0, 1))
        await generator.run([[sample(1)]])
        await generator.run([[sample(2, suspicion=Suspicion.ONE_OF_FEW)]])

    run(work)
    assert events == ["shard:1:0", [(PART.name, 2)], "shard:2:0", []]


def test_poison_of_which_nothing_was_generated_is_not_rendered_again() -> None:
    """Its prompt may be what kills the process."""

    class Deadly(PromptRenderer):
        def render(self, *_: Any) -> Any:
            raise SystemExit("the process is killed")

    builder = SampleBuilder(config_of(), PromptColumns("prompt"), Pass(0, 0, 2), Deadly(TOKENIZER))
    row = TableRow(pa.table({"prompt": ["What is 1 + 1?"]}), 0)
    origin = Origin(PART, 3, [0, 1])
    [first, second] = builder.samples(
        row, origin, [TraceProgress(), TraceProgress()], Suspicion.POISON
    )
    for made in (first, second):
        with pytest.raises(EngineKilledError, match="the engine died each time this row ran"):
            made.needs_engine()
    begun = TraceProgress()
    begun.report([7])
    for suspicion in (Suspicion.ONE_OF_FEW, Suspicion.POISON):
        with pytest.raises(SystemExit):
            builder.samples(row, origin, [begun, begun], suspicion)
    [made, _] = builder.samples(row, origin, [begun, begun], Suspicion.UNTOUCHABLE)
    assert isinstance(made.error, EngineKilledError)


def test_cancelling_ends_what_runs_and_refuses_what_comes() -> None:
    async def work() -> None:
        generator, engine, _ = generator_of(lambda _: None, Pass(0, 0, 1))
        block = asyncio.ensure_future(generator.run([[sample(0)]]))
        await engine.started.wait()
        await generator.cancel()
        for running in (block, generator.run([[sample(1)]])):
            with pytest.raises(asyncio.CancelledError):
                await running
        assert len(engine.requests) == 1

    run(work)


def test_samples_of_a_block_and_its_table_of_traces() -> None:
    config = config_of()
    block = pa.table(
        {
            "prompt": ["What is 1 + 1?", None],
            "__qwq_part": [str(PART)] * 2, "__qwq_row": [3, 4], "__qwq_samples": [[0, 1], [1]],
        }
    )  # fmt: skip
    origins = origins_of(block)
    assert [origin.row_key for origin in origins] == [(PART.name, 3), (PART.name, 4)]
    builder = SampleBuilder(
        config, PromptColumns("prompt"), Pass(0, 0, 2), PromptRenderer(TOKENIZER)
    )
    progress = [TraceProgress() for _ in range(3)]
    rows = [
        builder.samples(TableRow(block, i), origin, of_row, Suspicion.NONE)
        for i, (origin, of_row) in enumerate(
            zip(origins, (progress[:2], progress[2:]), strict=True)
        )
    ]
    assert [[s.key for s in samples] for samples in rows] == [
        [(PART, 3, 0), (PART, 3, 1)], [(PART, 4, 1)]
    ]  # fmt: skip
    everything = [s for samples in rows for s in samples]
    assert all(s.progress is p for s, p in zip(everything, progress, strict=True))
    assert len({s.seed for s in everything}) == 3
    assert rows[0][0].prompt == rows[0][1].prompt
    assert rows[0][0].prompt
    assert isinstance(rows[1][0].error, InvalidPromptError)
    traces = [[Trace("finished", 0), Trace("finished", 1)], [Trace("failed", 1)]]
    table = with_traces(block, traces, config)
    assert table["__qwq_row"].to_pylist() == [3, 3, 4]
    assert table["sample"].to_pylist() == [0, 1, 1]
    assert table["state"].to_pylist() == ["finished", "finished", "failed"]
