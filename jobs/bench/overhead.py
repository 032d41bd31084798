"""What the pipeline itself takes: an engine that answers at once, all else as it is.

    python -m jobs.bench overhead

Pairs of runs of different size, so that what both spend on starting and stopping falls out; seconds
of CPU time are those of all processes, by what they are.
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

GPU_TOKENS_PER_SECOND = 2000  # of one H200, for the share of its time that a token costs here
MENTIONED = 0.02  # the least share that has a line


def measure(folder: Path, rows: int, tokens: int, replicas: int) -> Measured:
    """One run."""
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
    """Run both sizes in turn, so often; print what the difference took."""
    rows, seconds, starts, cpu = (
        2 * args.rows,
        list[float](),
        list[float](),
        list[dict[str, float]](),
    )
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
    gpu_seconds, whole = rows * args.tokens / GPU_TOKENS_PER_SECOND, [sum(c.values()) for c in cpu]
    shares = {
        name: statistics.median(c.get(name, 0) / sum(c.values()) for c in cpu)
        for name in {name for c in cpu for name in c}
    }
    of_gpu = f"of the time of a GPU at {GPU_TOKENS_PER_SECOND:,} tokens/s"
    lines = [
        ["rows/s", spread([rows / s for s in seconds])],
        ["to start and stop, s", spread(starts)],
        [f"seconds here, {of_gpu}", spread([s / gpu_seconds for s in seconds], ".2%")],
        [f"CPU seconds, {of_gpu}", spread([s / gpu_seconds for s in whole], ".2%")],
        ["CPU seconds for 1,000 rows", spread([1000 * s / rows for s in whole], ".2f")],
        *(
            [f"of these: {name or 'others'}", f"{share:.0%}"]
            for name, share in sorted(shares.items(), key=lambda item: -item[1])
            if share > MENTIONED
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
