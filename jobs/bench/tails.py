"""How full simulated GPU engines are kept, where traces are as long and as uneven as QwQ's.

    python -m jobs.bench tails --replicas 8 --rows 5000

Through the whole pipeline, with an engine that counts steps instead of computing them. It is
calibrated to published figures of a 32B model on two H100 (Qwen3-32B in BF16, outputs as for GPQA:
475, 827, 1,294 and 2,079 tokens/s at 8, 16, 32 and 64 sequences, which is 15.5 ms a step and
0.24 ms for each sequence). Lengths are log-normal with a median of 5,000 tokens, and two in a
hundred run to 32,768. Everything is a hundred times as short, so that the pipeline has as many rows
a second to handle as on some hundred GPUs, not as many tokens.

The bound is what no order could beat: all tokens at full slots, or the longest trace by itself.
An engine's time begins with its first rows: on two cores many start a second or two apart, which
would count so many times as much.
"""

import argparse
import json
import math
import random
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.measure import run
from jobs.bench.tables import keep, markdown, spread
from pipeline.execution.block_sizes import TOKENS_A_BLOCK

STEP_SECONDS, SEQUENCE_SECONDS = 15.5e-3, 0.24e-3
MEDIAN, SIGMA, LONGEST, ENDLESS = 5000, 0.75, 32_768, 0.02
SHORTER, SLOTS, ROWS_A_SHARD = 100, 64, 4096
LOG_ERROR = 0.5  # of the predictor
# How rows are given to engines: what is set for it.
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "batches of 16, rows in flight = slots": {"rows_in_flight": SLOTS, "block_rows": 16},
    "batches of 16, four times that": {"rows_in_flight": 4 * SLOTS, "block_rows": 16},
}
PREDICTED = "ours, lengths guessed"


@dataclass
class Result:
    """One run: simulated seconds (of engines of full size), and the bound."""

    way: str
    replicas: int
    rows: int
    seed: int
    seconds: float
    bound: float
    occupancy: float

    @property
    def efficiency(self) -> float:
        """The share of the bound that was reached."""
        return self.bound / self.seconds


class Tails:
    """Runs of one size in a folder; ``speed``: how much faster than life."""

    def __init__(self, folder: Path, replicas: int, rows: int, speed: float) -> None:
        self._folder, self._replicas, self._rows, self._speed = folder, replicas, rows, speed
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, way: str, seed: int) -> Result:
        """One run; `PREDICTED` needs another way's before it, for the lengths."""
        prompts, output = self._folder / "prompts", self._folder / "output"
        for folder in (prompts, output):
            shutil.rmtree(folder, ignore_errors=True)
        log = self._folder / "steps.jsonl"
        log.unlink(missing_ok=True)
        guesses = self._guesses(seed) if way == PREDICTED else None
        write_prompts(prompts, self._rows, guesses)
        config = self._config(prompts, output, log, WAYS.get(way, {}), seed)
        if guesses is not None:
            config["input"]["length_column"] = "expected_tokens"
        path = self._folder / "run.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "pipeline", "run", str(path)]
        run(command, self._folder / "run.log", lambda: 0)
        lengths = lengths_of(output)
        np.save(self._folder / f"lengths-{seed}.npy", lengths)
        seconds, busy = elapsed(log, self._replicas * SLOTS)
        step = (STEP_SECONDS + SEQUENCE_SECONDS * SLOTS) * SHORTER
        work = float(lengths.sum()) * step / SLOTS / self._replicas
        longest = float(lengths.max()) * (STEP_SECONDS + SEQUENCE_SECONDS) * SHORTER
        seconds *= self._speed
        slots = self._replicas * SLOTS
        return Result(
            way, self._replicas, self._rows, seed, seconds, max(work, longest),
            busy * self._speed / seconds / slots,
        )  # fmt: skip

    def _config(
        self, prompts: Path, output: Path, log: Path, way: Mapping[str, Any], seed: int
    ) -> dict[str, Any]:
        scale = SHORTER / self._speed
        return {
            "input": {"path": str(prompts)},
            "output": {"path": str(output)},
            "model": {"path": "qwq-nano"},
            "sampling": {"max_tokens": LONGEST // SHORTER, "seed": seed},
            "thinking": {"rescue": False, "detect_loops": False},
            "engine": {
                "kind": "simulated", "device": "cpu", "replicas": self._replicas,
                # As with traces of full length.
                "block_rows": TOKENS_A_BLOCK // LONGEST, **way,
                "vllm": {"max_num_seqs": SLOTS},
                "simulated": {
                    "tokens_median": MEDIAN // SHORTER, "tokens_sigma": SIGMA,
                    "endless": ENDLESS, "seconds_per_token": STEP_SECONDS * scale,
                    "seconds_per_sequence": SEQUENCE_SECONDS * scale, "log": str(log),
                },
            },
        }  # fmt: skip

    def _guesses(self, seed: int) -> Any:
        lengths = np.load(self._folder / f"lengths-{seed}.npy")
        rng = random.Random(seed)
        return [n * math.exp(rng.gauss(0, LOG_ERROR)) for n in lengths.tolist()]


def write_prompts(folder: Path, rows: int, guesses: Any = None) -> None:
    """Rows in shards, with the guesses at their lengths where there are any."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, ROWS_A_SHARD)):
        here = slice(start, min(start + ROWS_A_SHARD, rows))
        columns: dict[str, Any] = {"prompt": [f"Problem {i}" for i in range(here.start, here.stop)]}
        if guesses is not None:
            columns["expected_tokens"] = guesses[here]
        pq.write_table(pa.table(columns), folder / f"shard-{number:05d}.parquet")


def lengths_of(output: Path) -> Any:
    """The tokens of each row's trace, in order."""
    names = ["think_tokens", "answer_tokens"]
    tables = [pq.read_table(path, columns=names) for path in sorted(output.glob("*.parquet"))]
    found = pa.concat_tables(tables)
    return sum(found[name].to_numpy() for name in names)


def elapsed(log: Path, slots: int) -> tuple[float, float]:
    """Real seconds from the start to the last row's end, and of all rows together.

    The start is that of the rows that fill all ``slots``, in the mean.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    with log.open() as lines:
        for line in lines:
            step = json.loads(line)
            first[step["id"]] = min(first.get(step["id"], math.inf), step["begun"])
            last[step["id"]] = step["at"]
    begun = sorted(first.values())[:slots]
    whole = max(last.values()) - sum(begun) / len(begun)
    return whole, sum(last[key] - first[key] for key in first)


def main(args: argparse.Namespace, folder: Path) -> None:
    """Run all ways in turn, with several seeds."""
    name = f"tails-{args.replicas}-{args.rows}"
    tails, results = Tails(folder / name, args.replicas, args.rows, args.speed), list[Result]()
    ways = [*WAYS, PREDICTED] if args.ways is None else args.ways.split("; ")
    for seed in range(args.runs):
        for way in ways:
            results.append(tails.run(way, seed))
            print(results[-1], f"{results[-1].efficiency:.3f}", file=sys.stderr)
        lines = []
        for way in ways:
            mine = [result for result in results if result.way == way]
            lines.append(
                [
                    way,
                    spread([r.efficiency for r in mine], ".3f"),
                    spread([r.occupancy for r in mine], ".0%"),
                    spread([r.seconds for r in mine]),
                ]
            )
        head = [
            f"{args.replicas} x {SLOTS} slots, {args.rows:,} rows", "share of the bound",
            "slots busy", "simulated seconds",
        ]  # fmt: skip
        figures = {"speed": args.speed, "results": [asdict(result) for result in results]}
        keep(folder, name, markdown(head, lines), figures)
