"""How full simulated GPU engines are kept, with traces as uneven as QwQ's.

    python -m jobs.bench tails --replicas 8 --rows 5000

The whole pipeline runs, with an engine that counts steps instead of computing them. The engine is
calibrated to published figures of a 32B model on two H100: Qwen3-32B in BF16, with outputs as for
GPQA, reaches 475, 827, 1,294 and 2,079 tokens/s at 8, 16, 32 and 64 sequences. That is 15.5 ms per
step and 0.24 ms per sequence. Lengths are log-normal with a median of 5,000 tokens, and 2 % of the
traces run to 32,768. All lengths are divided by a hundred. The pipeline then handles as many rows
per second as on about a hundred GPUs, though not as many tokens.

The bound, which no order can beat, is the longer of two times: all tokens at full slots, and the
longest trace by itself. An engine's time starts with its first rows. On two cores, many engines
start a second or two apart, which the simulated speed would multiply.
"""

import argparse
import json
import math
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
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
LOG_ERROR = 0.5  # standard deviation of a guess, in log length
# Settings for how rows are given to engines.
WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "batches of 16, rows in flight = slots": {"rows_in_flight": SLOTS, "block_rows": 16},
    "batches of 16, four times that": {"rows_in_flight": 4 * SLOTS, "block_rows": 16},
}
PREDICTED = "ours, lengths guessed"


@dataclass
class Result:
    """One run: simulated seconds at full length, and the bound in the same unit."""

    way: str
    replicas: int
    rows: int
    seed: int
    seconds: float
    bound: float
    occupancy: float

    @property
    def efficiency(self) -> float:
        """The bound as a share of the time taken; 1 is optimal."""
        return self.bound / self.seconds


class Tails:
    """Runs of one size in ``folder``; ``speed``: simulated seconds per second."""

    def __init__(self, folder: Path, replicas: int, rows: int, speed: float) -> None:
        self._folder, self._replicas, self._rows, self._speed = folder, replicas, rows, speed
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, way: str, seed: int) -> Result:
        """Run once; `PREDICTED` needs an earlier run with the same seed, for its lengths."""
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
        full = float(lengths.sum()) * step / SLOTS / self._replicas
        longest = float(lengths.max()) * (STEP_SECONDS + SEQUENCE_SECONDS) * SHORTER
        seconds *= self._speed
        slots = self._replicas * SLOTS
        return Result(
            way, self._replicas, self._rows, seed, seconds, max(full, longest),
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
                # The block size for traces of full length.
                "block_rows": TOKENS_A_BLOCK // LONGEST, **way,
                "vllm": {"max_num_seqs": SLOTS},
                "simulated": {
                    "tokens_median": MEDIAN // SHORTER, "tokens_sigma": SIGMA,
                    "endless": ENDLESS, "seconds_per_token": STEP_SECONDS * scale,
                    "seconds_per_sequence": SEQUENCE_SECONDS * scale, "log": str(log),
                },
            },
        }  # fmt: skip

    def _guesses(self, seed: int) -> list[float]:
        lengths = np.load(self._folder / f"lengths-{seed}.npy")
        rng = random.Random(seed)
        return [n * math.exp(rng.gauss(0, LOG_ERROR)) for n in lengths.tolist()]


def write_prompts(folder: Path, rows: int, guesses: Sequence[float] | None = None) -> None:
    """Write rows in shards, with the ``guesses`` at their lengths, if any."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, rows, ROWS_A_SHARD)):
        stop = min(start + ROWS_A_SHARD, rows)
        columns: dict[str, Any] = {"prompt": [f"Problem {i}" for i in range(start, stop)]}
        if guesses is not None:
            columns["expected_tokens"] = guesses[start:stop]
        pq.write_table(pa.table(columns), folder / f"shard-{number:05d}.parquet")


def lengths_of(output: Path) -> np.ndarray:
    """Output tokens of each row's trace (shape: rows), in order."""
    names = ["think_tokens", "answer_tokens"]
    tables = [pq.read_table(path, columns=names) for path in sorted(output.glob("*.parquet"))]
    traces = pa.concat_tables(tables)
    return np.asarray(sum(traces[name].to_numpy() for name in names))


def elapsed(log: Path, slots: int) -> tuple[float, float]:
    """Real seconds from the start to the last row's end, and the sum of all rows' seconds.

    The start is the mean start of the first rows that fill all ``slots``.
    """
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    with log.open() as lines:
        for line in lines:
            step = json.loads(line)
            first[step["id"]] = min(first.get(step["id"], math.inf), step["begun"])
            last[step["id"]] = step["at"]
    begun = sorted(first.values())[:slots]
    total = max(last.values()) - sum(begun) / len(begun)
    return total, sum(last[key] - first[key] for key in first)


def main(args: argparse.Namespace, folder: Path) -> None:
    """Run all ways in turn, with each of ``args.runs`` seeds; print the table after each round."""
    name = f"tails-{args.replicas}-{args.rows}"
    tails, results = Tails(folder / name, args.replicas, args.rows, args.speed), list[Result]()
    ways = [*WAYS, PREDICTED] if args.ways is None else args.ways.split("; ")
    for seed in range(args.runs):
        for way in ways:
            results.append(tails.run(way, seed))
            print(results[-1], f"{results[-1].efficiency:.3f}", file=sys.stderr)
        lines = []
        for way in ways:
            runs = [result for result in results if result.way == way]
            lines.append(
                [
                    way,
                    spread([r.efficiency for r in runs], ".3f"),
                    spread([r.occupancy for r in runs], ".0%"),
                    spread([r.seconds for r in runs]),
                ]
            )
        head = [
            f"{args.replicas} x {SLOTS} slots, {args.rows:,} rows", "share of the bound",
            "slots busy", "simulated seconds",
        ]  # fmt: skip
        figures = {"speed": args.speed, "results": [asdict(result) for result in results]}
        keep(folder, name, markdown(head, lines), figures)
