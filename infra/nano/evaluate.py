"""How often the small models are right, through the whole pipeline on the real vLLM engine.

    python -m infra.nano.evaluate

For each model: 500 letter counts and additions that it never saw in training, Qwen's math prompt,
the preset's sampling; an answer is right if its box holds the right number.
"""

import argparse
import random
import re
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.nano.tasks import unseen_tasks
from pipeline import flow
from pipeline.config import parse_config

PRESETS = {"qwq-nano": "qwq-32b", "qwq-nano-preview": "qwq-32b-preview"}
BARS = {"qwq-nano": 0.95, "qwq-nano-preview": 0.9}  # the lowest share that is enough


def run(name: str, rows: int, folder: Path) -> list[dict[str, str]]:
    """Generate one trace for each of ``rows`` unseen prompts; the output rows."""
    tasks = unseen_tasks(random.Random(2026), rows)
    columns = {key: [getattr(t, key) for t in tasks] for key in ("kind", "prompt", "expected")}
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "in" / "unseen.parquet")
    config = {
        "input": {"path": str(folder / "in")},
        "output": {"path": str(folder / "out")},
        "model": {"path": name, "preset": PRESETS[name]},
        "prompt": {"suffix": "math"},
        "engine": {
            "device": "cpu",
            "vllm": {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 4096},
        },
    }
    flow.run(parse_config(config))
    traces: list[dict[str, str]] = pq.read_table(folder / "out").to_pylist()
    return traces


def is_right(trace: dict[str, str]) -> bool:
    """Whether the last box of the answer holds the expected number."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", trace["answer"] or "")
    return bool(boxes) and boxes[-1] == trace["expected"]


def main() -> None:
    """Evaluate the models and print a table; exit 1 if one is below its bar."""
    parser = argparse.ArgumentParser(description="Accuracy of the small models on unseen prompts.")
    parser.add_argument("names", nargs="*", default=list(PRESETS), help="default: both")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--wrong", action="store_true", help="print the wrong traces")
    args = parser.parse_args()
    enough = True
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            traces = run(name, args.rows, Path(folder))
        share = sum(map(is_right, traces)) / len(traces)
        enough &= share >= BARS[name]
        print(f"{name}: {share:.1%} of {len(traces)} unseen prompts end in the right box")
        for kind in ("count", "add"):
            of_kind = [trace for trace in traces if trace["kind"] == kind]
            print(f"  {kind}: {sum(map(is_right, of_kind))} of {len(of_kind)}")
        for trace in traces:
            if args.wrong and not is_right(trace):
                print(
                    f"--- {trace['prompt']} ({trace['state']})\n{trace['think']}\n{trace['answer']}"
                )
    raise SystemExit(0 if enough else 1)


if __name__ == "__main__":
    main()
