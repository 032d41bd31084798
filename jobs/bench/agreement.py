"""Samples of a row until enough agree: in waves, side by side, and ahead of need on idle slots.

    python -m jobs.bench agreement

One simulated engine, calibrated as in `jobs.bench.tails`, on a clock that does not wait. Of eight
samples of a row, four are to agree; each gives the most frequent answer six times in ten. Lengths
are those of `jobs.bench.tails`, divided by ten, at a tenth of the speed. The samples of each row
are the same in all ways, which is checked.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.bench import virtual_time
from jobs.bench.tables import keep, markdown, spread
from jobs.bench.tails import ENDLESS, LONGEST, MEDIAN, SEQUENCE_SECONDS, SIGMA, SLOTS, STEP_SECONDS
from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines.simulated import SimulatedEngine
from pipeline.engines.simulated_scheduler import Scheduler, Steps
from pipeline.execution.block_sizes import concurrency
from pipeline.execution.generation import Generator
from pipeline.execution.samples import Sample
from pipeline.monitor.coordinator import CoordinatorClient
from pipeline.monitor.reporter import EngineReporter
from pipeline.planning import PartRef, Pass
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.sampling import derive_seed, needed_samples
from pipeline.reasoning.trace import Trace, TraceMaker

SAMPLES, AGREE, RIGHT, SHORTER = 8, 4, 0.6, 10
PART = PartRef("shard-00000.parquet", 0, 10**6)


class InWaves(Generator):
    """Draws as many samples as may just do, and more once the last of them has ended."""

    async def _row(self, samples: Sequence[Sample]) -> list[Trace]:
        traces, needed = list[Trace](), AGREE
        while needed > len(traces):
            drawn = samples[len(traces) : needed]
            traces += await asyncio.gather(*map(self._counted, drawn))
            answers = {i: trace.parsed for i, trace in enumerate(traces)}
            needed = needed_samples(answers, AGREE, len(samples))
        return traces


class SideBySide(Generator):
    """Draws nothing ahead of need."""

    async def _row(self, samples: Sequence[Sample]) -> list[Trace]:
        self._spare.slots = 0
        return await super()._row(samples)


WAYS = {"in waves": InWaves, "side by side": SideBySide, "and ahead of need": Generator}


@dataclass
class Result:
    """One run: seconds of the engine, and tokens: all, and those of the rows' traces."""

    way: str
    rows: int
    seed: int
    seconds: float
    spent_tokens: int
    output_tokens: int


def config_of() -> RunConfig:
    """The settings of all runs."""
    return parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out", "raw_text": False},
            "model": {"path": "qwq-nano"}, "answer": {"format": "boxed"},
            "sampling": {"n": SAMPLES, "agree": AGREE, "max_tokens": LONGEST // SHORTER},
            "thinking": {"rescue": False, "detect_loops": False},
            "engine": {
                "kind": "simulated", "device": "cpu", "block_rows": 1,
                "vllm": {"max_num_seqs": SLOTS},
                "simulated": {
                    "tokens_median": MEDIAN // SHORTER, "tokens_sigma": SIGMA, "endless": ENDLESS,
                    "right": RIGHT, "seconds_per_token": STEP_SECONDS * SHORTER,
                    "seconds_per_sequence": SEQUENCE_SECONDS * SHORTER,
                },
            },
        }
    )  # fmt: skip


def simulate(way: str, rows: int, seed: int) -> tuple[Result, list[list[int]]]:
    """Run an engine through all rows; also returns the seeds of the samples of each."""
    config, tokenizer = config_of(), load_tokenizer("qwq-nano")
    scheduler, think_format = Scheduler(SLOTS, Steps(config.engine.simulated)), config.think_format
    engine = SimulatedEngine(config.engine.simulated, think_format, scheduler, tokenizer)
    reporter = EngineReporter(CoordinatorClient(None), "e", lambda: engine.load, lambda _: None)
    maker = TraceMaker(tokenizer, think_format, config.answer.load_format(), raw_text=False)
    generator = WAYS[way](config, Pass(0, 0, SAMPLES), engine, maker, reporter)
    _, in_flight = concurrency(config, config.sampling.first_draw, rows)
    seeds: list[list[int]] = [[] for _ in range(rows)]

    async def all_rows() -> None:
        places = asyncio.Semaphore(in_flight)

        async def one(row: int) -> None:
            numbers = [derive_seed(seed, PART.shard, row, i) for i in range(SAMPLES)]
            samples = [Sample((PART, row, i), n, (1,)) for i, n in enumerate(numbers)]
            async with places:
                [traces] = await generator.run([samples])
            seeds[row] = [trace.seed for trace in traces]

        await asyncio.gather(*map(one, range(rows)))

    seconds, done = virtual_time.run(all_rows()), reporter.done
    return Result(way, rows, seed, seconds, done.spent_tokens, done.output_tokens), seeds


def table(results: Sequence[Result]) -> str:
    """Seconds, and tokens of samples that were not needed, by number of rows and way."""
    lines = []
    for rows in dict.fromkeys(result.rows for result in results):
        for way in WAYS:
            runs = [r for r in results if (r.rows, r.way) == (rows, way)]
            in_vain = [1 - run.output_tokens / run.spent_tokens for run in runs]
            seconds = spread([run.seconds for run in runs])
            lines.append([f"{rows:,} rows, {way}", seconds, spread(in_vain, ".0%")])
    return markdown([f"{SLOTS} slots", "seconds", "tokens not needed"], lines)


def main(args: argparse.Namespace, folder: Path) -> None:
    """All ways with each number of rows and each of ``args.runs`` seeds."""
    results = list[Result]()
    for rows in map(int, args.rows.split(",")):
        for seed in range(args.runs):
            runs = [simulate(way, rows, seed) for way in WAYS]
            assert all(seeds == runs[0][1] for _, seeds in runs), "the ways differ in their samples"
            results += (result for result, _ in runs)
    keep(folder, "agreement", table(results), {"results": [asdict(r) for r in results]})
