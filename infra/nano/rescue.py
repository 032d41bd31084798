"""What the reasoning policy does for traces that run out or loop, on the real vLLM engine.

    python -m infra.nano.rescue

The same prompts and seeds with the policy off and on: counting down for longer than the thinking
budget, thinking that qwq-nano was taught never to close, and prompts that need no help. Prints a
Markdown table.
"""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra.nano.evaluate import is_right
from infra.nano.tasks import Task, count_task, countdown_prompt, loop_task
from pipeline import flow
from pipeline.config import parse_config
from pipeline.engines import Request
from pipeline.engines.vllm import VllmEngine
from pipeline.model import load_tokenizer
from pipeline.policy import ClosedBy, Progress
from pipeline.reasoning import THINK_TAGS
from pipeline.trace import TraceMaker

ROWS = 24
BUDGET_TOKENS, LOOP_TOKENS = 300, 4096


def long_countdown(rng: random.Random) -> Task:
    """Counting down for some 350 to 500 tokens."""
    return Task("countdown", countdown_prompt(rng, rng.randint(110, 150)), "", None, "0")


def endless(rng: random.Random) -> Task:
    """Thinking that never closes; no answer is right."""
    return loop_task(rng)


CASES: dict[str, tuple[Callable[[random.Random], Task], int]] = {
    "counting down, 300 tokens of thinking": (long_countdown, BUDGET_TOKENS),
    "going in circles, 4,096 tokens": (endless, LOOP_TOKENS),
    "counting letters, 4,096 tokens": (count_task, LOOP_TOKENS),
}
CONFIG: dict[str, Any] = {
    "input": {"path": "-"},
    "output": {"path": "-"},
    "model": {"path": "qwq-nano"},
    "engine": {
        "device": "cpu",
        "vllm": {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 8192},
    },
}
OFF = {"rescue": False, "detect_loops": False}
ON = {"answer_tokens": 100}


def run(
    make: Callable[[random.Random], Task], max_tokens: int, thinking: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """The traces of one case."""
    rng = random.Random(7)
    tasks = [make(rng) for _ in range(ROWS)]
    (folder / "in").mkdir(parents=True)
    columns = {key: [getattr(t, key) for t in tasks] for key in ("prompt", "expected")}
    pq.write_table(pa.table(columns), folder / "in" / "prompts.parquet")
    config = CONFIG | {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "sampling": {"max_tokens": max_tokens},
        "thinking": thinking,
    }
    flow.run(parse_config(config))
    traces: list[dict[str, Any]] = pq.read_table(folder / "out").to_pylist()
    return traces


async def second_pass() -> tuple[int, int]:
    """How many prompt tokens the second pass of a rescue has, and how many it did not compute."""
    config = parse_config(CONFIG | {"sampling": {"max_tokens": LOOP_TOKENS}})
    engine = VllmEngine(config, 8)
    maker = TraceMaker(load_tokenizer("qwq-nano"), THINK_TAGS)
    prompt = load_tokenizer("qwq-nano").apply_chat_template(
        [{"role": "user", "content": "Go round in circles about time."}],
        add_generation_prompt=True, return_dict=False,
    )  # fmt: skip
    so_far = Progress()

    def keep(new: Sequence[int]) -> bool:
        so_far.report(new)
        return False

    await engine.generate(Request("first", prompt, (), config.policy, 1), keep)
    so_far.close(maker.closing, ClosedBy.LOOP)
    carried = so_far.token_ids.tolist()
    policy = replace(config.policy, max_tokens=len(carried) + 50)
    before = engine.prompt_tokens, engine.cached_tokens
    await engine.generate(Request("second", prompt, carried, policy, 1), keep)
    found = engine.prompt_tokens - before[0], engine.cached_tokens - before[1]
    engine.close()
    return found


def main() -> None:
    """Run all cases twice and print the table, then what a second pass costs."""
    print("| prompts | policy | states | right | tokens | of them given up |")
    print("|---|---|---|---|---|---|")
    for name, (make, max_tokens) in CASES.items():
        for policy, thinking in (("off", OFF), ("on", ON)):
            with tempfile.TemporaryDirectory() as folder:
                traces = run(make, max_tokens, thinking, Path(folder))
            states = Counter(trace["state"] for trace in traces)
            told = ", ".join(f"{count} {state}" for state, count in states.most_common())
            wasted = sum(trace["wasted_tokens"] for trace in traces)
            tokens = wasted + sum(t["think_tokens"] + t["answer_tokens"] for t in traces)
            right = sum(map(is_right, traces))
            print(f"| {name} | {policy} | {told} | {right} | {tokens:,} | {wasted:,} |", flush=True)
    tokens, cached = asyncio.run(second_pass())
    print(
        f"\nThe second pass of a rescue: of {tokens:,} prompt tokens {cached:,} "
        f"({cached / tokens:.1%}) were in the prefix cache."
    )


if __name__ == "__main__":
    main()
