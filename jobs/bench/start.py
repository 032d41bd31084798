"""The time from the command to the first token and to the exit, step by step.

    python -m jobs.bench start

A few short rows on the small model show what a run spends besides generating. For comparison, vLLM
alone loads the model, generates the same rows and exits.
"""

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import yaml

from jobs.bench.engines import Bench, Setting
from jobs.bench.tables import keep, markdown, spread
from pipeline.config.load import load_config
from pipeline.config.run_config import RunConfig
from pipeline.execution import run as flow
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.monitor.coordinator import CoordinatorClient

ROWS, MAX_TOKENS, SLOTS = 8, 64, 64
POLL_SECONDS = 0.05
# Steps of a run in order: name, and what has happened by then.
MARKS = {
    "imported": "Python has started and imported everything",
    "prepared": "config, shards and output are checked",
    "planned": "Ray runs, the plan is made",
    "first_engine": "an engine is ready",
    "all_engines": "all engines are ready",
    "first_token": "the first tokens are reported",
    "written": "all rows are written, engines have shut down",
    "exit": "the process has ended",
}


def measure(path: str) -> dict[str, float]:
    """Run a config in this process; returns seconds since its start, by names of `MARKS`."""
    process_start = psutil.Process().create_time()
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks.setdefault(name, time.time() - process_start)

    mark("imported")
    config = load_config(path)

    def prepared(config: RunConfig, may_change: Sequence[str] = ()) -> PreparedRun:
        run = prepare(config, may_change)
        mark("prepared")
        return run

    @contextmanager
    def watch(coordinator: CoordinatorClient, rows: int, tier: str) -> Iterator[None]:  # noqa: ARG001
        mark("planned")
        ended = threading.Event()

        def poll() -> None:
            while not ended.wait(POLL_SECONDS):
                snapshot = coordinator.snapshot()
                if snapshot.engines:
                    mark("first_engine")
                if len(snapshot.engines) >= config.engine.max_replicas:
                    mark("all_engines")
                if snapshot.totals.spent_tokens:
                    mark("first_token")
                    return

        poller = threading.Thread(target=poll)
        poller.start()
        try:
            yield
        finally:
            ended.set()
            poller.join()
        mark("written")

    flow.prepare = prepared  # type: ignore[attr-defined]
    flow.run(config, watch)
    return marks


def main(args: argparse.Namespace, folder: Path) -> None:
    """Measure ``args.runs`` runs; print the time of each step."""
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    bench, ours, raw = Bench(Setting(ROWS, MAX_TOKENS, SLOTS), folder / "start"), [], []
    for _ in range(args.runs):
        output = folder / "start" / "output"
        shutil.rmtree(output, ignore_errors=True)  # raw vLLM wrote there
        path = bench.config(output)
        config = yaml.safe_load(path.read_text())
        config["engine"]["replicas"] = args.replicas
        path.write_text(yaml.safe_dump(config))
        started = time.monotonic()
        command = [sys.executable, "-m", "jobs.bench", "start", "--measure", str(path)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 (our own)
        marks = json.loads(done.stdout.splitlines()[-1])
        ours.append({**marks, "exit": time.monotonic() - started})
        raw.append(bench.run("raw").seconds)
        print(ours[-1], raw[-1], file=sys.stderr)
    lines, before = list[list[str]](), [0.0] * len(ours)
    for name, meaning in MARKS.items():
        at = [marks[name] for marks in ours]
        took = [now - then for now, then in zip(at, before, strict=True)]
        lines.append([meaning, spread(at, ".1f"), spread(took, ".1f")])
        before = at
    lines.append(["vLLM alone, start to exit", spread(raw, ".1f"), ""])
    head = [f"engines: {args.replicas}, rows: {ROWS}", "at, s", "took, s"]
    keep(folder, "start", markdown(head, lines), {"ours": ours, "raw": raw})
