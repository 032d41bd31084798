"""The pipeline's own cost, with an engine that answers at once.

    python -m jobs.bench overhead

Runs come in pairs of different size: in their difference, the time to start and stop cancels out.
CPU time is that of all processes, by name.
"""

import argparse
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.bench.engines import FileRows, write_prompts
from jobs.bench.measure import Measured, run
from jobs.bench.tables import keep, markdown, spread

GPU_TOKENS_PER_SECOND = 2000  # of one H200, to express costs as a share of its time
MIN_SHOWN_SHARE = 0.02


def measure(folder: Path, rows: int, tokens: int, replicas: int) -> Measured:
    """Run ``rows`` rows of ``tokens`` tokens each (median) on ``replicas`` engines."""
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
    return run(command, folder / "run.log", FileRows(output).count)


def main(args: argparse.Namespace, folder: Path) -> None:
    """Run both sizes in turn, ``args.runs`` times; print the cost of their difference."""
    rows, cpu = 2 * args.rows, list[dict[str, float]]()
    seconds, starts = list[float](), list[float]()
    for _ in range(args.runs):
        small, large = (
            measure(folder / "overhead", size, args.tokens, args.replicas)
            for size in (args.rows, args.rows + rows)
        )
        seconds.append(large.seconds - small.seconds)
        starts.append(small.seconds - args.rows * seconds[-1] / rows)
        names = {*small.cpu_by_name, *large.cpu_by_name}
        cpu.append({n: large.cpu_by_name.get(n, 0) - small.cpu_by_name.get(n, 0) for n in names})
        print(seconds[-1], sum(cpu[-1].values()), file=sys.stderr)
    gpu_seconds, cpu_seconds = (
        rows * args.tokens / GPU_TOKENS_PER_SECOND,
        [sum(c.values()) for c in cpu],
    )
    shares = {
        name: statistics.median(c.get(name, 0) / sum(c.values()) for c in cpu)
        for name in {name for c in cpu for name in c}
    }
    of_gpu = f"of the time of a GPU at {GPU_TOKENS_PER_SECOND:,} tokens/s"
    lines = [
        ["rows/s", spread([rows / s for s in seconds])],
        ["to start and stop, s", spread(starts)],
        [f"seconds here, {of_gpu}", spread([s / gpu_seconds for s in seconds], ".2%")],
        [f"CPU seconds, {of_gpu}", spread([s / gpu_seconds for s in cpu_seconds], ".2%")],
        ["CPU seconds for 1,000 rows", spread([1000 * s / rows for s in cpu_seconds], ".2f")],
        *(
            [f"of these: {name or 'others'}", f"{share:.0%}"]
            for name, share in sorted(shares.items(), key=lambda item: -item[1])
            if share > MIN_SHOWN_SHARE
        ),
    ]
    head = [f"{rows:,} rows of {args.tokens:,} tokens, {os.cpu_count()} cores", ""]
    figures = {
        "rows": rows,
        "tokens": args.tokens,
        "seconds": seconds,
        "starts": starts,
        "cpu": cpu,
    }
    keep(folder, f"overhead-{args.tokens}", markdown(head, lines), figures)
