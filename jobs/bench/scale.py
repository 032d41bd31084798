"""Planning and going on, where there are ten million rows in ten thousand shards.

    python -m jobs.bench scale                               # on local disk
    python -m jobs.bench scale --at s3://bucket/scale        # on S3, with its requests counted

Half of the shards are done. What is timed is a process of its own that does all that a run does
before its engines get rows: footers, manifest, listing, plan, read tasks. Once as a first run, that
reads the footers of all shards, and once as the next, that knows them.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs

from jobs.bench.tables import keep, markdown
from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.execution.prepare import prepare
from pipeline.execution.source import PromptSource
from pipeline.output import passes
from pipeline.output.layout import SHARDS as KNOWN
from pipeline.output.manifest import software_versions
from pipeline.storage import Storage

ROWS_A_SHARD, SHARDS = 1000, (10, 100, 1000, 10_000)


def config(at: str) -> RunConfig:
    """A run over the shards at ``at``."""
    return parse_config(
        {
            "input": {"path": f"{at}/prompts"}, "output": {"path": f"{at}/traces"},
            "model": {"path": "qwq-nano"}, "engine": {"kind": "simulated", "device": "cpu"},
        }
    )  # fmt: skip


def make(at: str, shards: int) -> None:
    """Shards that are all alike, and an output in which every second one is done."""
    prompts, traces = Storage(f"{at}/prompts"), Storage(f"{at}/traces")
    sink = BytesIO()
    table = pa.table({"prompt": pa.array(["x"] * ROWS_A_SHARD).dictionary_encode()})
    pq.write_table(table.cast(pa.schema([("prompt", pa.string())])), sink, compression="zstd")
    with ThreadPoolExecutor(32) as pool:
        names = [f"shard-{number:05d}" for number in range(shards)]
        list(pool.map(lambda name: prompts.put(f"{name}.parquet", sink.getvalue()), names))
        job = prepare(config(at))
        job.ledger.open_run(job.settings, software_versions())
        # A plan looks at names alone: what the files hold does not matter.
        list(pool.map(lambda name: traces.put(f"{name}.00000.parquet", b"-"), names[::2]))


def measured(at: str) -> dict[str, Any]:
    """What it takes, in this process, until the first row could be read."""
    requests: Counter[str] = Counter()
    _count_requests(requests)
    started, before = time.monotonic(), time.process_time()
    run = config(at)
    job = prepare(run)
    job.open_output()
    [run_pass] = passes.to_run(job.ledger, run.policy.n)
    plan = passes.plan(job.ledger, job.parts, run_pass)
    source = PromptSource(job.context(run_pass), plan.todo)
    tasks = source.get_read_tasks(source.read_tasks)
    return {
        "rows": plan.rows, "rows_todo": plan.rows_todo, "read_tasks": len(tasks),
        "seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - before,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "requests": dict(requests),
    }  # fmt: skip


def main(args: argparse.Namespace, folder: Path) -> None:
    """Measure growing runs; print the table."""
    if args.measure:
        print(json.dumps(measured(args.measure)))
        return
    at = args.at or str(folder / "scale")
    results = []
    for shards in SHARDS:
        here = f"{at}/{shards}"
        if not Storage(f"{here}/traces").files():
            make(here, shards)
        Storage(f"{here}/traces").delete([KNOWN])
        command = [sys.executable, "-m", "jobs.bench", "scale", "--measure", here]
        for _ in range(2):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 (our own)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], file=sys.stderr)
    lines = [
        [
            f"{first['rows']:,}",
            *(
                cell
                for result in (first, later)
                for cell in (
                    f"{result['seconds']:.1f}",
                    f"{sum(result['requests'].values()):,}" if result["requests"] else "–",
                    f"{result['peak_bytes'] / 2**20:,.0f}",
                )
            ),
        ]
        for first, later in zip(results[::2], results[1::2], strict=True)
    ]
    head = ["rows, half of them done"]
    for which in ("first plan", "to go on"):
        head += [f"{which}, s", "requests", "peak MiB"]
    name = "scale-s3" if at.startswith("s3://") else "scale"
    keep(folder, name, markdown(head, lines), {"results": results})


def _count_requests(found: Counter[str]) -> None:
    """Count what s3fs asks of the object store, by operation."""
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **more: Any) -> Any:
        found[method] += 1
        return await call(self, method, *args, **more)

    s3fs.S3FileSystem._call_s3 = counted
