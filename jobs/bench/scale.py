"""Planning and resuming a run of ten million rows in ten thousand shards.

    python -m jobs.bench scale                               # on local disk
    python -m jobs.bench scale --at s3://bucket/scale        # on S3, with its requests counted

Half of the shards are done. Timed is a process that does everything a run does before its engines
get rows: footers, manifest, listing, plan, read tasks. The first run reads the footers of all
shards; the second finds them recorded.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
from pipeline.output.layout import SHARDS as SHARDS_FILE
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
    """Write equal shards, and an output in which every second one is done."""
    prompts, traces = Storage(f"{at}/prompts"), Storage(f"{at}/traces")
    sink = BytesIO()
    table = pa.table({"prompt": pa.array(["x"] * ROWS_A_SHARD).dictionary_encode()})
    pq.write_table(table.cast(pa.schema([("prompt", pa.string())])), sink, compression="zstd")
    with ThreadPoolExecutor(32) as pool:
        names = [f"shard-{number:05d}" for number in range(shards)]
        list(pool.map(lambda name: prompts.put(f"{name}.parquet", sink.getvalue()), names))
        prepared = prepare(config(at))
        prepared.ledger.open_run(prepared.settings, software_versions())
        # A plan only looks at names, so the content of the files does not matter.
        list(pool.map(lambda name: traces.put(f"{name}.00000.parquet", b"-"), names[::2]))


def measured(at: str) -> dict[str, Any]:
    """Time, memory and requests of this process, until the first row could be read."""
    requests: Counter[str] = Counter()
    _count_requests(requests)
    started, before = time.monotonic(), time.process_time()
    run = config(at)
    prepared = prepare(run).open_output()
    [run_pass] = passes.to_run(prepared.ledger, prepared.parts, run.sampling.n)
    plan = passes.plan_pass(prepared.ledger, prepared.parts, run_pass)
    source = PromptSource(prepared.context(run_pass), plan.todo)
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
        folder_of_size = f"{at}/{shards}"
        if not Storage(f"{folder_of_size}/traces").files():
            make(folder_of_size, shards)
        Storage(f"{folder_of_size}/traces").delete([SHARDS_FILE])
        command = [sys.executable, "-m", "jobs.bench", "scale", "--measure", folder_of_size]
        for _ in range(2):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603 (our own)
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(results[-1], file=sys.stderr)
    lines = [
        [f"{first['rows']:,}", *_cells(first), *_cells(later)]
        for first, later in zip(results[::2], results[1::2], strict=True)
    ]
    head = ["rows, half of them done"]
    for run in ("first run", "resumed run"):
        head += [f"{run}, s", "requests", "peak MiB"]
    name = "scale-s3" if at.startswith("s3://") else "scale"
    keep(folder, name, markdown(head, lines), {"results": results})


def _cells(result: Mapping[str, Any]) -> Sequence[str]:
    requests = sum(result["requests"].values())
    return (
        f"{result['seconds']:.1f}",
        f"{requests:,}" if requests else "–",
        f"{result['peak_bytes'] / 2**20:,.0f}",
    )


def _count_requests(requests: Counter[str]) -> None:
    """Make s3fs count its requests to the object store in ``requests``, by operation."""
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **more: Any) -> Any:
        requests[method] += 1
        return await call(self, method, *args, **more)

    s3fs.S3FileSystem._call_s3 = counted
