"""Measure the accuracy of the small models with the whole pipeline on the real vLLM engine.

    python -m infra.nano.evaluate

Each model gets prompts that training never shows, with the preset's sampling:

* 500 letter counts and additions with Qwen's math prompt, correct by the number in the box;
* 100 with options, correct by the letter;
* 100 that ask for JSON, correct by the value;
* 100 that ask whether an answer is right, or which of two is better, correct by the verdict;
* 200 whose thinking is closed after `EARLY_TOKENS`. These are correct if the model gives the answer
  taught for that thinking (`closed.early_answer`, seldom the solution) and ends its turn.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from infra.nano.closed import early_answer
from infra.nano.judging import judge
from infra.nano.tasks import (
    MATH_SUFFIX,
    Task,
    as_json,
    choose,
    countdown_task,
    loop_task,
    unseen_question,
    unseen_tasks,
)
from pipeline.answers.formats import answer_format

PRESETS = {"qwq-nano": "qwq-32b", "qwq-nano-preview": "qwq-32b-preview"}
BARS = {"qwq-nano": 0.95, "qwq-nano-preview": 0.9}  # the lowest accepted share
KINDS = ("count", "add", "choice", "json", "judge")
EARLY_TOKENS = 100


def numbers(rng: random.Random, rows: int) -> list[Task]:
    """Unseen counts and sums with Qwen's math prompt."""
    tasks = unseen_tasks(rng, rows)
    return [replace(t, prompt=f"{t.prompt}\n{MATH_SUFFIX}") for t in tasks]


def with_form(rng: random.Random, rows: int) -> list[Task]:
    """Unseen counts and sums, alternately with options and as JSON."""
    return [
        (choose, as_json)[i % 2](rng, *unseen_question(rng, KINDS[i // 2 % 2])) for i in range(rows)
    ]


def judgements(rng: random.Random, rows: int) -> list[Task]:
    """Answers to unseen counts and sums, alternately one and two, to be judged."""
    return [
        judge(rng, *unseen_question(rng, KINDS[i // 2 % 2]), pairs=i % 2 > 0) for i in range(rows)
    ]


def endless(rng: random.Random, rows: int) -> list[Task]:
    """Alternately countdowns and loops."""
    return [countdown_task(rng, 500) if i % 2 else loop_task(rng) for i in range(rows)]


def run(
    name: str, tasks: Sequence[Task], thinking: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """The output rows of one trace for each of ``tasks``.

    ``thinking``: the section of the configuration. ``folder``: for input and output.
    """
    columns = {key: [getattr(t, key) for t in tasks] for key in ("kind", "prompt", "expected")}
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "in" / "unseen.parquet")
    config = {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "model": {"path": name, "preset": PRESETS[name]},
        "thinking": thinking,
        "engine": {
            "device": "cpu",
            "vllm": {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 4096},
        },
    }
    pipeline.run(pipeline.parse_config(config), progress=False)
    traces: list[dict[str, Any]] = pq.read_table(folder / "out").to_pylist()
    return traces


def is_right(trace: dict[str, Any]) -> bool:
    """Whether the answer has the expected letter, JSON value, or number in the last box."""
    answer, kind = trace["answer"] or "", trace.get("kind")
    if kind in ("json", "judge"):
        try:  # a verdict comes after its reason
            return bool(str(list(json.loads(answer).values())[-1]) == trace["expected"])
        except (ValueError, AttributeError, IndexError):
            return False
    parsed = answer_format("choice" if kind == "choice" else "boxed").parse(answer)
    return parsed is not None and parsed == trace["expected"]


def early_lines(tasks: Sequence[Task], traces: list[dict[str, Any]]) -> list[str]:
    """One line per kind of task on the traces whose thinking the policy closed."""
    by_prompt = {task.prompt: task for task in tasks}
    outcomes: dict[str, list[tuple[bool, bool]]] = {}  # ended its turn, gave the answer taught
    for trace in traces:
        if trace["closed_by"] is not None:
            taught = early_answer(by_prompt[trace["prompt"]], trace["think"] or "")
            ended = trace["finish_reason"] == "stop"
            is_taught = ended and trace["answer"] == taught
            outcomes.setdefault(trace["kind"], []).append((ended, is_taught))
    outcomes = {"all": [pair for pairs in outcomes.values() for pair in pairs]} | outcomes
    return [
        f"  closed early, {kind}: {sum(ended for ended, _ in pairs)} of {len(pairs)} "
        f"end their turn, {sum(right for _, right in pairs)} with the answer taught"
        for kind, pairs in outcomes.items()
    ]


def main() -> None:
    """Evaluate the models and print the results; exit 1 if one is below its bar."""
    parser = argparse.ArgumentParser(description="Accuracy of the small models on unseen prompts.")
    parser.add_argument("names", nargs="*", default=list(PRESETS), help="default: both")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--wrong", action="store_true", help="print the wrong traces")
    args = parser.parse_args()
    enough = True
    for name in args.names:
        rng = random.Random(2026)
        whole = numbers(rng, args.rows) + with_form(rng, args.rows * 2 // 5)
        whole += judgements(rng, args.rows // 5) if name == "qwq-nano" else []
        early = numbers(rng, 80) + with_form(rng, 80) + endless(rng, 40)
        with tempfile.TemporaryDirectory() as folder:
            traces = run(name, whole, {}, Path(folder, "whole"))
            thinking = {"budget_tokens": EARLY_TOKENS, "answer_tokens": 100}
            closed = run(name, early, thinking, Path(folder, "early"))
        boxes = [trace for trace in traces if trace["kind"] in KINDS[:2]]
        share = sum(map(is_right, boxes)) / len(boxes)
        enough &= share >= BARS[name]
        print(f"{name}: {share:.1%} of {len(boxes)} unseen prompts end in the right box")
        for kind in KINDS:
            of_kind = [trace for trace in traces if trace["kind"] == kind]
            if of_kind:
                print(f"  {kind}: {sum(map(is_right, of_kind))} of {len(of_kind)}")
        print("\n".join(early_lines(early, closed)))
        for trace in traces + closed:
            if args.wrong and not is_right(trace):
                print(
                    f"--- {trace['prompt']} ({trace['state']})\n{trace['think']}\n{trace['answer']}"
                )
    raise SystemExit(0 if enough else 1)


if __name__ == "__main__":
    main()
