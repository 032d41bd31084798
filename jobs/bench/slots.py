"""One real engine at several numbers of sequences, without seeds, and with a KV cache too small.

    python -m jobs.bench slots                       # vLLM on CPUs, the built-in small model
    python -m jobs.bench slots --setting qwq-32b     # needs a GPU of 80 GB or more

A fixed number of requests is kept running ("Count down from …", so lengths differ); tokens are
counted after a warm-up. Then the KV cache is cut to half of what 64 sequences hold on average, with
watermark 0 and with the pipeline's own.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jobs.bench.engines import SETTINGS, Bench
from jobs.bench.tables import keep, markdown
from pipeline.config.load import load_config
from pipeline.config.run_config import RunConfig
from pipeline.engines import Request
from pipeline.engines.vllm import VllmEngine
from pipeline.engines.vllm_arguments import WATERMARK
from pipeline.prompts.tokenizer import load_tokenizer

SEQUENCES = (64, 128, 256, 512)
FULL = 64  # sequences against the small KV cache
BLOCK_TOKENS = 32


@dataclass(frozen=True)
class Variant:
    """An engine and what runs on it; ``kv_tokens``: of its cache, None: all that there is."""

    name: str
    config: str
    sequences: Sequence[int]
    seconds: float
    has_seeds: bool = True
    kv_tokens: int | None = None
    watermark: float = WATERMARK


@dataclass(frozen=True)
class Point:
    """What ``sequences`` requests made: tokens a second, and what a full KV cache cost."""

    name: str
    sequences: int
    tokens_per_second: float
    preemptions: int
    recomputed_share: float


class Unseeded(VllmEngine):
    """As requests without a seed are sampled."""

    def _params(self, request: Request, seed: int, max_tokens: int) -> Any:
        params = super()._params(request, seed, max_tokens)
        params.seed = None
        return params


class Load:
    """Keeps a number of requests running on an engine, and counts their tokens."""

    def __init__(self, engine: VllmEngine, config: RunConfig) -> None:
        self._engine, self._policy = engine, config.sampling
        self._tokenizer = load_tokenizer(config.model.path)
        self._random, self._tokens = random.Random(0), 0

    async def measure(self, name: str, sequences: int, seconds: float) -> Point:
        """Half of ``seconds`` to warm up, then ``seconds`` that count."""
        running = [asyncio.create_task(self._keep_running()) for _ in range(sequences)]
        await asyncio.sleep(seconds / 2)
        before, tokens, began = self._engine.load, self._tokens, time.monotonic()
        await asyncio.sleep(seconds)
        took, after, made = time.monotonic() - began, self._engine.load, self._tokens - tokens
        for task in running:
            task.cancel()
        ended = await asyncio.gather(*running, return_exceptions=True)
        failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
        if failed:
            raise RuntimeError(f"{len(failed)} requests failed, the first: {failed[0]!r}")
        again = after.recomputed_tokens - before.recomputed_tokens
        preemptions = after.preemptions - before.preemptions
        return Point(name, sequences, made / took, preemptions, again / max(1, made))

    async def _keep_running(self) -> None:
        while True:
            text = f"Count down from {self._random.randrange(100, 300)}."
            ids = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
            )
            number = self._random.randrange(2**40)
            await self._engine.generate(
                Request(str(number), ids, (), self._policy, number), self._count
            )

    def _count(self, new: Sequence[int]) -> bool:
        self._tokens += len(new)
        return False


async def _measure(variant: Variant) -> list[Point]:
    config = load_config(variant.config)
    settings = {"max_num_seqs": max(variant.sequences), "watermark": variant.watermark}
    if variant.kv_tokens is not None:
        settings["num_gpu_blocks_override"] = variant.kv_tokens // BLOCK_TOKENS
        settings["block_size"] = BLOCK_TOKENS
    settings["disable_log_stats"] = False
    vllm = {**config.engine.vllm, **settings}
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"vllm": vllm})})
    engine = (VllmEngine if variant.has_seeds else Unseeded)(config)
    print(json.dumps(engine.details), file=sys.stderr)
    load = Load(engine, config)
    points = [
        await load.measure(variant.name, number, variant.seconds) for number in variant.sequences
    ]
    engine.close()
    return points


def table(points: Sequence[Point]) -> str:
    """A line for each point."""
    head = ["engine", "sequences", "tokens/s", "preemptions", "computed again"]
    return markdown(head, [
        [p.name, str(p.sequences), f"{p.tokens_per_second:,.0f}", f"{p.preemptions:,}",
         f"{p.recomputed_share:.1%}"] for p in points
    ])  # fmt: skip


def main(args: argparse.Namespace, folder: Path) -> None:
    """Measure all variants, each in a process of its own; print the table after each."""
    if args.measure:
        found = asyncio.run(_measure(Variant(**json.loads(args.measure))))
        print(json.dumps([asdict(point) for point in found]))
        return
    setting = SETTINGS[args.setting]
    name, is_small = f"slots-{args.setting}", args.setting == "small"
    bench = Bench(replace(setting, max_tokens=1024), folder / name)
    config, seconds = str(bench.config(folder / name / "output")), args.seconds
    sequences = SEQUENCES[:2] if is_small else SEQUENCES
    whole = Variant("seeds", config, sequences, seconds)
    # On average, a running trace has half of its tokens: some 250 of the small model's 500.
    kv_tokens = FULL * (250 if is_small else 512) // 2
    full = replace(whole, sequences=(FULL,), kv_tokens=kv_tokens)
    variants = [
        whole,
        replace(whole, name="no seeds", has_seeds=False, sequences=sequences[-1:]),
        replace(full, name=f"KV cache of {kv_tokens:,} tokens, watermark 0", watermark=0.0),
        replace(full, name=f"KV cache of {kv_tokens:,} tokens, watermark {WATERMARK}"),
    ]
    points = list[Point]()
    for variant in variants:
        command = [sys.executable, "-m", "jobs.bench", "slots", "--measure"]
        done = subprocess.run(  # noqa: S603 (this module itself)
            [*command, json.dumps(asdict(variant))], stdout=subprocess.PIPE, text=True, check=True
        )
        points += [Point(**each) for each in json.loads(done.stdout.splitlines()[-1])]
        keep(folder, name, table(points), {"points": [asdict(point) for point in points]})
