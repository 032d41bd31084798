"""Slots, watermark and lengths against a KV cache that has an end, on a clock that does not wait.

    python -m jobs.bench kv-cache

One simulated engine, with vLLM's admission and preemption, at the pace of a roofline model
(`pipeline.engines.roofline`; nothing was timed on a GPU). Traces have log-normal lengths, sigma
0.75, and 2 % run to 32,768 tokens. When the cache is full, the newest trace loses its place and is
computed again. The table shows the tokens computed again as a share of those generated, and the
speed as a share of the best for these lengths. Measured in the second half of the time in which
traces wait, when the long ones have come together.
"""

import argparse
import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.bench.tables import keep, markdown
from jobs.bench.virtual_time import run
from pipeline.config.sections import EngineConfig
from pipeline.config.simulated import SimulatedConfig
from pipeline.engines.roofline import Speed, gpu_of, slots_for
from pipeline.engines.simulated_scheduler import Scheduler, Steps
from pipeline.engines.vllm_arguments import memory_need

# config.json of QwQ-32B.
QWQ: Mapping[str, Any] = {
    "hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152_064,
    "max_position_embeddings": 40_960, "torch_dtype": "bfloat16",
}  # fmt: skip
ENGINES = (("H100", 80, 4), ("L40S", 45, 4), ("RTX 4090", 24, 8))  # GPU, its GiB, how many
PROMPT, LONGEST, ENDLESS, SIGMA = 200, 32_768, 0.02, 0.75
CHUNK = 512  # tokens at a time
LONGEST_TRACES = 4  # a slot's traces take as long as so many of the longest, one after the other
MEDIANS = (1000, 3000, 8000)
SLOTS = (64, 128, 256)
WATERMARKS = (0.0, 0.05, 0.1)


@dataclass
class Result:
    """One engine with one setting: tokens generated a second, and the share computed again."""

    engine: str
    median: int
    slots: int
    by_rule: bool
    watermark: float
    tokens_per_second: float
    recomputed: float


def lengths(median: int, count: int) -> list[int]:
    """Lengths of traces in tokens, the same for all settings."""
    rng = random.Random(0)
    return [
        LONGEST if rng.random() < ENDLESS
        else max(1, min(LONGEST, round(median * math.exp(rng.gauss(0, SIGMA)))))
        for _ in range(count)
    ]  # fmt: skip


def resident(tokens: list[int]) -> float:
    """The context of a running trace, averaged over time."""
    return sum(n * (PROMPT + n / 2) for n in tokens) / sum(tokens)


def simulate(speed: Speed, kv_tokens: float, slots: int, watermark: float, median: int) -> Result:
    """Run an engine through its traces."""
    none, one = speed.step_seconds(0, 0), speed.step_seconds(1, 0)
    config = SimulatedConfig(
        seconds_per_token=none,
        seconds_per_sequence=one - none,
        seconds_per_kv_token=speed.step_seconds(1, 1) - one,
        seconds_per_prompt_token=speed.prefill_seconds(1),
    )
    scheduler = Scheduler(slots, Steps(config), kv_tokens, watermark)
    done = list[tuple[float, int, int]]()  # time, tokens generated, tokens computed again
    began = list[float]()

    async def trace(tokens: int) -> None:
        sequence = await scheduler.enter(PROMPT)
        began.append(asyncio.get_running_loop().time())
        for begin in range(0, tokens, CHUNK):
            new = min(CHUNK, tokens - begin)
            await scheduler.step(sequence, new)
            done.append((asyncio.get_running_loop().time(), new, scheduler.recomputed_tokens))
        scheduler.leave(sequence)

    async def all_traces() -> None:
        traces_a_slot = LONGEST_TRACES * LONGEST * 1000 // sum(lengths(median, 1000))
        await asyncio.gather(*map(trace, lengths(median, traces_a_slot * slots)))

    run(all_traces())
    middle = [entry for entry in done if 0.5 * began[-1] < entry[0] < began[-1]]
    generated = sum(tokens for _, tokens, _ in middle)
    took, again = (middle[-1][i] - middle[0][i] for i in (0, 2))
    name = f"{speed.ranks} x {speed.gpu.name}"
    return Result(name, median, slots, False, watermark, generated / took, again / generated)


def results() -> list[Result]:
    """All settings of all engines, and the slots that the pipeline chooses."""
    need, found = memory_need(EngineConfig(), QWQ), list[Result]()
    assert need is not None
    for name, memory, ranks in ENGINES:
        gpu = gpu_of(name)
        assert gpu is not None
        speed = Speed(gpu, ranks, need, QWQ)
        kv_tokens = need.kv_cache(memory * 2**30, ranks) / need.token
        for median in MEDIANS:
            chosen = slots_for(kv_tokens, resident(lengths(median, 10_000)))
            for slots in sorted({*SLOTS, chosen}):
                for watermark in WATERMARKS:
                    result = simulate(speed, kv_tokens, slots, watermark, median)
                    result.by_rule = slots == chosen
                    found.append(result)
                    print(result, flush=True)
    return found


def table(found: list[Result]) -> str:
    """Rows by engine, lengths and slots; columns by watermark."""
    rows = []
    keys = dict.fromkeys((r.engine, r.median) for r in found)
    for engine, median in keys:
        here = [r for r in found if (r.engine, r.median) == (engine, median)]
        best = max(r.tokens_per_second for r in here)
        for slots in dict.fromkeys(r.slots for r in here):
            line = [r for r in here if r.slots == slots]
            mark = " (chosen)" if line[0].by_rule else ""
            cells = [f"{r.tokens_per_second / best:.0%}, {r.recomputed:.0%} again" for r in line]
            rows.append([engine, f"{median:,}", f"{slots}{mark}", *cells])
    head = ["engine", "median length", "slots", *(f"watermark {w:g}" for w in WATERMARKS)]
    return markdown(head, rows)


def main(_: argparse.Namespace, out: Path) -> None:
    """Simulate, print the table and keep the results."""
    found = results()
    keep(out, "kv-cache", table(found), {"results": [asdict(result) for result in found]})
