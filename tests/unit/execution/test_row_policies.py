"""Rows with settings of their own: what the engine is asked for, and what their traces say."""

import asyncio
import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines import Request
from pipeline.execution.generation import Generator
from pipeline.execution.row_prompts import RowPrompts
from pipeline.execution.samples import Origin, Sample, SampleBuilder, with_traces
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.reasoning.policy import EARLY_STOP, TraceProgress
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import Trace, TraceMaker
from tests.unit.execution.test_generation import PART, TOKENIZER, ScriptedEngine

RUN = Pass(0, 0, 1)
FORM = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
COLUMNS = PromptColumns("prompt")


def config_of(**sections: dict[str, Any]) -> RunConfig:
    base: dict[str, Any] = {
        "input": {"path": "in", "sampling_column": "own"}, "output": {"path": "out"},
        "model": {"path": "qwq-nano"}, "sampling": {"max_tokens": 500},
    }  # fmt: skip
    return parse_config({**base, **sections})


def samples_of(
    config: RunConfig, *own: Any, run_pass: Pass = RUN
) -> tuple[pa.Table, list[list[Sample]]]:
    """A block of rows with the same prompt and their ``own`` settings, and its samples."""
    cells = [None if cell is None else json.dumps(cell) for cell in own]
    block = pa.table({"prompt": ["What?"] * len(own), "own": pa.array(cells, pa.string())})
    builder = SampleBuilder(config, COLUMNS, run_pass, PromptRenderer(TOKENIZER))
    rows = [
        builder.samples(TableRow(block, i), Origin(PART, i, [0]), [TraceProgress()], Suspicion.NONE)
        for i in range(len(own))
    ]
    return block, rows


def generated(
    config: RunConfig, rows: list[list[Sample]], script: Any
) -> tuple[list[Request], list[Trace]]:
    """The requests to an engine that answers by ``script``, and the traces of the rows."""

    async def work() -> tuple[list[Request], list[Trace]]:
        engine = ScriptedEngine(script)
        maker = TraceMaker(TOKENIZER, THINK_TAGS, config.answer.load_format())
        reporter = EngineReporter(
            CoordinatorClient(None), "e", lambda: engine.load, lambda _: None, lambda *_: None
        )
        generator = Generator(config, RUN, engine, maker, reporter)
        traces = await generator.run(rows)
        return engine.requests, [trace for row in traces for trace in row]

    return asyncio.run(asyncio.wait_for(work(), 60))


def thinks_and_answers(request: Request) -> str:
    return '{"a": 1}' if request.schema is not None else "Hm.</think>\n\nYes."


def test_each_row_is_sampled_by_its_own_settings() -> None:
    config = config_of()
    own = [
        None,
        {"temperature": 0, "max_tokens": 90},
        {"top_k": 25, "seed": 7},
        {"json_schema": FORM},
    ]
    block, rows = samples_of(config, *own)
    requests, traces = generated(config, rows, thinks_and_answers)
    first = {request.trace.split(":")[1]: request for request in reversed(requests)}
    policies = [first[str(i)].policy for i in range(4)]
    assert [policy.temperature for policy in policies] == [0.6, 0.0, 0.6, 0.6]
    assert [policy.top_k for policy in policies] == [40, 40, 25, 40]
    assert policies[1].max_tokens == 90
    schemas = [request.schema for request in requests if request.schema is not None]
    assert [json.loads(schema) for schema in schemas] == [FORM]
    assert [trace.parsed for trace in traces] == [None, None, None, '{"a": 1}']
    assert [trace.answer for trace in traces[:3]] == ["Yes."] * 3
    said = with_traces(block, [[trace] for trace in traces], config)["sampled_with"].to_pylist()
    assert [each["temperature"] for each in said] == [0.6, 0.0, 0.6, 0.6]
    assert [each["max_tokens"] for each in said] == [500, 90, 500, 500]
    assert [each["json_schema"] and json.loads(each["json_schema"]) for each in said] == [
        None, None, None, FORM
    ]  # fmt: skip


def test_an_answer_that_does_not_fit_the_rows_own_schema_is_unparsed() -> None:
    config = config_of(answer={"format": "json", "json_schema": {"type": "object"}})
    _, rows = samples_of(config, None, {"json_schema": FORM})
    _, traces = generated(
        config, rows, lambda r: '{"b": 1}' if r.schema is not None else "Hm.</think>"
    )
    assert [(trace.state, trace.parsed) for trace in traces] == [
        ("finished", '{"b": 1}'), ("unparsed", None)
    ]  # fmt: skip


def test_thinking_is_closed_by_the_rows_own_limit() -> None:
    config = config_of(thinking={"answer_tokens": 10})
    _, rows = samples_of(config, {"max_tokens": 50, "temperature": 0.9}, {"max_tokens": 60})

    class Endless(ScriptedEngine):
        async def generate(self, request: Request, on_tokens: Any) -> str:
            self.requests.append(request)
            left = request.policy.max_tokens - len(request.carried_token_ids)
            on_tokens(TOKENIZER.encode(" x y z" * 100)[:left])
            return "length"

    engine = Endless(lambda _: None)

    async def work() -> list[list[Trace]]:
        maker = TraceMaker(TOKENIZER, THINK_TAGS)
        reporter = EngineReporter(
            CoordinatorClient(None), "e", lambda: engine.load, lambda _: None, lambda *_: None
        )
        return await Generator(config, RUN, engine, maker, reporter).run(rows)

    [[one], [two]] = asyncio.run(asyncio.wait_for(work(), 60))
    assert (one.think_tokens, two.think_tokens) == (50, 60)
    assert (one.closed_by, two.closed_by) == ("budget", "budget")
    rescues = [r for r in engine.requests if EARLY_STOP in TOKENIZER.decode(r.carried_token_ids)]
    temperatures = {request.trace: request.policy.temperature for request in rescues}
    assert list(temperatures.values()) == [0.9, 0.6]


def test_a_rows_own_seed_gives_the_same_wherever_the_row_stands() -> None:
    _, rows = samples_of(config_of(), {"seed": 7}, {"seed": 7}, {"seed": 8}, None, None)
    seeds = [sample.seed for [sample] in rows]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 4
    _, again = samples_of(config_of(), {"seed": 7}, run_pass=Pass(1, 0, 1, ("failed",)))
    assert again[0][0].seed != seeds[0], "a retry draws anew"


def test_wrong_settings_fail_their_row_only() -> None:
    config = config_of()
    _, rows = samples_of(config, {"n": 3}, None)
    _, traces = generated(config, rows, thinks_and_answers)
    assert [trace.state for trace in traces] == ["failed", "finished"]
    assert (traces[0].error or "").startswith("invalid_prompt: own: n: all rows of a run have")


def test_the_prompt_names_the_rows_own_schema() -> None:
    config = config_of(
        answer={"format": "json", "json_schema": {"type": "object"}}, prompt={"suffix": "json"}
    )
    prompts = RowPrompts(config, COLUMNS)
    own = {"prompt": "What?", "own": {"json_schema": FORM}}
    assert '"a":{"type":"integer"}' in prompts.messages(own)[0]["content"]
    assert '{"type":"object"}' in prompts.messages({**own, "own": None})[0]["content"]


@pytest.mark.parametrize("column", [None, "own"])
def test_only_runs_with_settings_by_row_have_the_column(column: str | None) -> None:
    config = config_of(input={"path": "in", "sampling_column": column})
    names = [field.name for field in config.trace_fields]
    assert ("sampled_with" in names) == (column is not None)
