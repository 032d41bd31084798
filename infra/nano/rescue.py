"""Measure the effect of the reasoning policy on truncated and looping traces, on real vLLM.

    python -m infra.nano.rescue

Runs the same prompts and seeds with the policy off and on: countdowns longer than the thinking
budget, thinking that qwq-nano was taught never to close, and prompts that need no rescue, answered
in a box, by a letter and as JSON. Prints a Markdown table, then how many prompt tokens the second
pass of a rescue computes again.
"""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from infra.nano.tasks import Task, choose, count_task, countdown_prompt, loop_task, unseen_question
from pipeline.engines import Request
from pipeline.engines.vllm import VllmEngine
from pipeline.execution.cluster import cluster
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import ClosedBy, TraceProgress
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import TraceMaker

ROWS = 24
SECOND_PASS_TOKENS = 4096
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
}


def long_countdown(rng: random.Random) -> Task:
    """A countdown of about 1,100 to 1,500 tokens."""
    start = rng.randint(300, 400)
    return Task("countdown", countdown_prompt(rng, start), "", None, "0")


def options(rng: random.Random) -> Task:
    """A letter count with four options."""
    return choose(rng, *unseen_question(rng, "count"))


def as_json(rng: random.Random) -> Task:
    """A letter count, answered as JSON."""
    prompt, lines, result = unseen_question(rng, "count")
    return Task("json", prompt, lines, None, f'{{"answer": {result}}}')


Make = Callable[[random.Random], Task]
BOX = {"answer": {"format": "boxed", "reference_column": "expected"}}
CHOICE = {"answer": {"format": "choice", "reference_column": "expected"}}
JSON = {
    "answer": {"format": "json", "json_schema": SCHEMA, "reference_column": "expected"},
    "prompt": {"suffix": "json"},
}
# A title, `sampling.max_tokens`, the sections for the answer format, and the maker of tasks.
CASES: tuple[tuple[str, int, dict[str, Any], Make], ...] = (
    ("counting down, 1,024 tokens", 1024, BOX, long_countdown),
    ("going in circles, 4,096 tokens", 4096, BOX, loop_task),
    ("counting letters, a box", 1024, BOX, count_task),
    ("counting letters, four options", 1024, CHOICE, options),
    ("counting letters, JSON, 100 tokens", 100, JSON, as_json),
)
CONFIG: dict[str, Any] = {
    "input": {"path": "-"},
    "output": {"path": "-"},
    "model": {"path": "qwq-nano"},
    "sampling": {"max_tokens": SECOND_PASS_TOKENS},
    "engine": {
        "device": "cpu",
        "vllm": {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 8192},
    },
}
POLICIES: dict[str, dict[str, Any]] = {
    "off": {"rescue": False, "detect_loops": False},
    "on": {"answer_tokens": 100},
}


def run(
    make: Make, max_tokens: int, sections: dict[str, Any], thinking: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """The output rows of one case.

    ``sections``: of the configuration. ``thinking``: the policy. ``folder``: for input and output.
    """
    rng = random.Random(7)
    tasks = [make(rng) for _ in range(ROWS)]
    (folder / "in").mkdir()
    columns = {key: [getattr(task, key) for task in tasks] for key in ("prompt", "expected")}
    table = pa.table(columns, pa.schema([("prompt", pa.string()), ("expected", pa.string())]))
    pq.write_table(table, folder / "in" / "prompts.parquet")
    config = CONFIG | sections | {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "sampling": {"max_tokens": max_tokens},
        "thinking": thinking,
    }  # fmt: skip
    pipeline.run(pipeline.parse_config(config), progress=False)
    traces: list[dict[str, Any]] = pq.read_table(folder / "out").to_pylist()
    return traces


def line(case: str, policy: str, traces: Sequence[dict[str, Any]]) -> str:
    """One row of the Markdown table."""
    states = Counter(trace["state"] for trace in traces)
    outcome = ", ".join(f"{count} {state}" for state, count in states.most_common())
    wasted = sum(trace["wasted_tokens"] for trace in traces)
    tokens = wasted + sum(t["think_tokens"] + t["answer_tokens"] for t in traces)
    usable = sum(trace["parsed"] is not None for trace in traces)
    known = [trace["correct"] for trace in traces if trace["expected"] is not None]
    right = f"{sum(map(bool, known))}" if known else "-"
    return f"| {case} | {policy} | {outcome} | {usable} | {right} | {tokens:,} | {wasted:,} |"


async def second_pass(
    engine: VllmEngine, thinking_tokens: int = SECOND_PASS_TOKENS
) -> tuple[int, int]:
    """The prompt tokens of the second pass of a rescue, and how many of them were cached."""
    config = pipeline.parse_config(CONFIG | {"sampling": {"max_tokens": thinking_tokens}})
    maker = TraceMaker(load_tokenizer("qwq-nano"), THINK_TAGS)
    prompt = load_tokenizer("qwq-nano").apply_chat_template(
        [{"role": "user", "content": "Go round in circles about time."}],
        add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    progress = TraceProgress()

    def keep(new: Sequence[int]) -> bool:
        progress.report(new)
        return False

    await engine.generate(Request("first", prompt, (), config.sampling, 1), keep)
    progress.close(maker.closing, ClosedBy.LOOP)
    carried = progress.token_ids.tolist()
    policy = config.sampling.model_copy(update={"max_tokens": len(carried) + 50})
    before = engine.prompt_tokens, engine.cached_tokens
    await engine.generate(Request("second", prompt, carried, policy, 1), keep)
    return engine.prompt_tokens - before[0], engine.cached_tokens - before[1]


async def _measure_second_pass() -> tuple[int, int]:
    engine = VllmEngine(pipeline.parse_config(CONFIG))
    try:
        return await second_pass(engine)
    finally:
        engine.close()


def main() -> None:
    """Run all cases with both policies and print the table, then the cost of a second pass."""
    print("| prompts | policy | states | answers that can be read | right | tokens | given up |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with cluster(pipeline.parse_config(CONFIG)):
        for case, max_tokens, sections, make in CASES:
            for policy, thinking in POLICIES.items():
                with tempfile.TemporaryDirectory() as folder:
                    traces = run(make, max_tokens, sections, thinking, Path(folder))
                print(line(case, policy, traces), flush=True)
    tokens, cached = asyncio.run(_measure_second_pass())
    print(
        f"\nThe second pass of a rescue: of {tokens:,} prompt tokens {cached:,} "
        f"({cached / tokens:.1%}) were in the prefix cache."
    )


if __name__ == "__main__":
    main()
