"""What the pipeline itself takes: an engine that answers at once, all else as it is.

    python -m jobs.bench overhead

Two runs of different size, so that what both spend on starting and stopping falls out; seconds of
CPU time are those of all processes, by what they are.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.bench.engines import FileRows, write_prompts
from jobs.bench.measure import Measured, run
from jobs.bench.tables import keep, markdown

GPU_TOKENS_PER_SECOND = 2000  # of one H200, for the share of its time that a token costs here


def measure(folder: Path, rows: int, tokens: int, replicas: int) -> tuple[Measured, int]:
    """One run; its measurements and the tokens of its traces."""
    prompts, output = folder / f"prompts-{rows}", folder / "output"
    folder.mkdir(parents=True, exist_ok=True)
    if not prompts.exists():
        write_prompts(prompts, rows)
    shutil.rmtree(output, ignore_errors=True)
    simulated: dict[str, Any] = {
        "tokens_median": tokens, "tokens_sigma": 0.3, "seconds_per_token": 0
    }  # fmt: skip
    config = {
        "input": {"path": str(prompts)},
        "output": {"path": str(output)},
        "model": {"path": "qwq-nano"},
        "sampling": {"max_tokens": 4 * tokens},
        "engine": {
            "kind": "simulated", "device": "cpu", "replicas": replicas,
            "vllm": {"max_num_seqs": 256}, "simulated": simulated,
        },
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipeline", "run", str(folder / "run.yaml")]
    measured = run(command, folder / "run.log", FileRows(output).count)
    return measured, rows * tokens


def main(args: argparse.Namespace, folder: Path) -> None:
    """Run both sizes; print what the difference took."""
    small, _ = measure(folder / "overhead", args.rows, args.tokens, args.replicas)
    large, _ = measure(folder / "overhead", 3 * args.rows, args.tokens, args.replicas)
    rows, seconds = 2 * args.rows, large.seconds - small.seconds
    names = sorted({*small.cpu_by_name, *large.cpu_by_name})
    cpu = {n: large.cpu_by_name.get(n, 0) - small.cpu_by_name.get(n, 0) for n in names}
    whole = sum(cpu.values())
    share = whole / rows / args.tokens * GPU_TOKENS_PER_SECOND
    lines = [
        ["rows/s", f"{rows / seconds:,.0f}"],
        ["to start and stop, s", f"{small.seconds - args.rows * seconds / rows:,.1f}"],
        ["CPU seconds for 1,000 rows", f"{1000 * whole / rows:.2f}"],
        [f"of the time of a GPU at {GPU_TOKENS_PER_SECOND:,} tokens/s", f"{share:.2%}"],
        *(
            [f"CPU: {name}", f"{seconds / whole:.0%}"]
            for name, seconds in sorted(cpu.items(), key=lambda item: -item[1])
            if seconds > whole / 100
        ),
    ]
    head = [f"{rows:,} rows of {args.tokens} tokens, {os.cpu_count()} cores", ""]
    figures = {
        "rows": rows, "tokens": args.tokens, "seconds": seconds, "cpu": cpu,
        "small": [small.seconds, small.cpu_by_name], "large": [large.seconds, large.cpu_by_name],
    }  # fmt: skip
    keep(folder, f"overhead-{args.tokens}", markdown(head, lines), figures)
