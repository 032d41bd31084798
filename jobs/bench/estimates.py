"""`qwq-batch estimate` from 200 rows, beside what the whole run then takes.

    python -m jobs.bench estimates

Three workloads: additions (short traces of similar length) and counting down (long, uneven traces,
some cut by the budget) on the real engine with the built-in model; and traces as uneven as QwQ's,
at a hundredth of their length, on two simulated GPU engines. Tokens are those of the whole run.
Beside them stands how many other pilots of the same run would have a range that contains the truth.
Seconds are those of the rows that the pilot leaves, from the request for engines to their end.
"""

import argparse
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import yaml

from jobs.bench.tables import keep, markdown
from jobs.bench.tails import MEDIAN, SEQUENCE_SECONDS, SHORTER, SIGMA, SLOTS, STEP_SECONDS
from pipeline.errors import EngineError
from pipeline.insight.projection import bootstrap_total
from pipeline.monitor.figures import clock
from pipeline.monitor.history import all_figures
from pipeline.storage import Storage

PILOT_ROWS, PILOTS = 200, 200
CPU = {"device": "cpu", "vllm": {"enforce_eager": True, "max_num_seqs": 64, "max_model_len": 4096}}
GPUS = {
    "kind": "simulated", "device": "cpu", "replicas": 2, "vllm": {"max_num_seqs": SLOTS},
    "simulated": {
        "tokens_median": MEDIAN // SHORTER, "tokens_sigma": SIGMA, "endless": 0.02,
        "seconds_per_token": STEP_SECONDS * 4, "seconds_per_sequence": SEQUENCE_SECONDS * 4,
    },
}  # fmt: skip


def additions(rng: random.Random) -> str:
    """A prompt; all traces of such prompts are about as long."""
    return f"What is {rng.randrange(10**4)} + {rng.randrange(10**4)}?"


def counts(rng: random.Random) -> str:
    """A prompt whose trace has any length, beyond the budget for some."""
    return f"Count down from {int(math.exp(rng.uniform(math.log(4), math.log(150))))}."


# Number of rows, prompts, and further settings.
WORKLOADS: dict[str, tuple[int, Callable[[random.Random], str], Mapping[str, Any]]] = {
    "additions": (3000, additions, {"engine": CPU}),
    "counting down": (1500, counts, {"engine": CPU, "sampling": {"max_tokens": 512}}),
    "as QwQ, simulated": (4000, additions, {"engine": GPUS, "sampling": {"max_tokens": 327}}),
}


def main(_: argparse.Namespace, folder: Path) -> None:
    """Run each workload's pilot and the rest; print the estimate beside the truth."""
    head = [
        "workload", "output tokens, range", "truth", "other pilots", "time of the rest, range",
        "truth",
    ]  # fmt: skip
    lines, figures = [], {}
    for name, (rows, prompt, sections) in WORKLOADS.items():
        print(name, file=sys.stderr)
        config, output = _config(folder / "estimates" / name, rows, prompt, sections)
        estimate = json.loads(_qwq_batch("estimate", str(config), "--json"))
        _qwq_batch("run", str(config))
        store = Storage(str(output))
        spent = _spent_by_row(output)
        last = list(all_figures(store))[-1]
        truth = {
            "tokens": int(spent.sum()), "seconds": last[-1].seconds, "hits": hits(spent, PILOTS),
        }  # fmt: skip
        figures[name] = {"said": estimate, "was": truth}
        tokens, seconds = estimate["whole"]["output_tokens"], estimate["left"]["seconds"]
        lines.append(
            [
                f"{name}, {rows:,} rows",
                " to ".join(f"{tokens[end]:,.0f}" for end in ("low", "high")),
                f"{truth['tokens']:,}",
                f"{truth['hits']} of {PILOTS}",
                " to ".join(clock(seconds[end]) for end in ("low", "high")),
                clock(truth["seconds"]),
            ]
        )
        keep(folder, "estimates", markdown(head, lines), figures)


def hits(spent: np.ndarray, pilots: int) -> int:
    """How many of ``pilots`` random pilots have a range that contains the sum of ``spent``.

    ``spent``: generated tokens by row.
    """
    rng, stretches = np.random.default_rng(0), np.array_split(spent, PILOT_ROWS)
    samples = (np.array([rng.choice(stretch) for stretch in stretches]) for _ in range(pilots))
    return sum(bootstrap_total(one, len(spent)).contains(spent.sum()) for one in samples)


def _spent_by_row(output: Path) -> np.ndarray:
    table = ds.dataset(output, exclude_invalid_files=True).to_table()
    kinds = [table[f"{kind}_tokens"].to_numpy() for kind in ("think", "answer", "wasted")]
    return np.asarray(np.sum(kinds, axis=0))


def _config(
    folder: Path, rows: int, prompt: Callable[[random.Random], str], sections: Mapping[str, Any]
) -> tuple[Path, Path]:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    rng, each = random.Random(0), rows // 4
    for shard in range(4):
        table = pa.table({"prompt": [prompt(rng) for _ in range(each)]})
        pq.write_table(table, folder / "in" / f"{shard}.parquet")
    output = folder / "out"
    config = {
        "input": {"path": str(folder / "in")}, "output": {"path": str(output)},
        "model": {"path": "qwq-nano"}, **sections,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml", output


def _qwq_batch(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603 (our own)
        [sys.executable, "-m", "pipeline", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(f"qwq-batch {' '.join(arguments)}: {done.stderr[-2000:]}")
    return done.stdout
