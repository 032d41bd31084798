"""The same rows by vLLM alone, this pipeline, ray.data.llm and vLLM's run-batch.

    python -m jobs.bench engines --setting small --runs 5
    python -m jobs.bench engines --setting small --kill        # after that: kill each at half time
    python -m jobs.bench engines --setting engine-bound --systems raw,ours
    python -m jobs.bench engines --setting qwq-32b             # needs a GPU of 80 GB or more

Systems take turns. Each is a whole process, measured from start to exit, with the same prompts,
model, engine arguments and sampling. Tokens are those that the engine counts. A row is durable once
it is in a file that its system, or a person, can read after a crash.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.measure import run
from jobs.bench.tables import keep, markdown, spread
from pipeline.output.layout import parse_listing
from pipeline.prompts.tokenizer import resolve_model
from pipeline.storage import Storage

ROWS_A_SHARD = 1024
SAMPLING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0}
# Small beside QwQ, but large enough that computing outweighs the pipeline's own cost.
WIDE = {
    "hidden_size": 640, "intermediate_size": 1792, "num_hidden_layers": 8,
    "num_attention_heads": 10, "num_key_value_heads": 2,
}  # fmt: skip
# QwQ-32B's own config.json (Qwen/QwQ-32B at the Hugging Face hub).
QWQ_32B = {
    "hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152_064,
    "max_position_embeddings": 40_960, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}, "dtype": "bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One comparison.

    ``max_tokens``: of a trace. ``slots``: vLLM's ``max_num_seqs``. ``shape``: config of a model of
    random weights; None: the built-in model. ``engine``: further vLLM arguments.
    """

    rows: int
    max_tokens: int
    slots: int
    shape: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"


SETTINGS = {
    "small": Setting(4096, 512, 256),
    "engine-bound": Setting(4096, 128, 64, WIDE),
    "qwq-32b": Setting(
        2048,
        2048,
        256,
        QWQ_32B,
        {"enforce_eager": False, "enable_chunked_prefill": True, "max_model_len": 8192},
        "gpu",
    ),
}


@dataclass
class Result:
    """One run of one system; ``durable_half``: rows durable at half of its ``seconds``."""

    system: str
    seconds: float
    tokens: int
    peak_bytes: int
    first_durable: float | None
    durable_half: int


@dataclass
class Killed:
    """One killed run: when, the rows it kept, and the ``seconds`` of the run after it."""

    system: str
    killed_after: float
    kept: int
    seconds: float


class Bench:
    """Runs each system on one setting, in ``folder``."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self._setting, self._folder = setting, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._prompts = folder / f"prompts-{setting.rows}"
        if not self._prompts.exists():
            write_prompts(self._prompts, setting.rows)
        self._model = resolve_model("qwq-nano")
        if setting.shape is not None:
            self._model = str(_wider(Path(self._model), folder / "model", setting.shape))
        self._engine = {
            "max_num_seqs": setting.slots,
            "max_model_len": 2048,
            "enforce_eager": True,
            "enable_prefix_caching": True,
            # vLLM can't cut the prompt of a seeded request in chunks on a CPU.
            "enable_chunked_prefill": False,
            **({} if setting.shape is None else {"load_format": "dummy"}),
            **setting.engine,
        }

    def run(self, system: str) -> Result:
        """Run all rows on one system."""
        ready = self._ready(system)
        measured = run(ready.command, self._folder / f"{system}.log", ready.count_rows)
        half = measured.durable_at(measured.seconds / 2)
        tokens = ready.count_tokens()
        return Result(
            system, measured.seconds, tokens, measured.peak_bytes, measured.first_durable, half
        )

    def killed(self, system: str, after: float) -> Killed:
        """Kill a system ``after`` seconds and start it again; only ours resumes, others restart."""
        ready = self._ready(system)
        log = self._folder / f"{system}-killed.log"
        first = run(ready.command, log, ready.count_rows, kill_after=after)
        kept = first.durable[-1][1] if system == "ours" else 0
        if system != "ours":
            ready = self._ready(system)
        return Killed(
            system, first.seconds, kept, run(ready.command, log, ready.count_rows).seconds
        )

    def _ready(self, system: str) -> "Ready":
        output = self._folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        return self._systems()[system](output)

    def _systems(self) -> dict[str, Callable[[Path], "Ready"]]:
        return {
            "raw": lambda out: self._peer("raw", out, seeded=True),
            "raw-unseeded": lambda out: self._peer("raw", out, seeded=False),
            "ours": self._ours,
            "ray.data.llm": lambda out: self._peer(
                "ray_data_llm", out, seeded=True, small_blocks=False
            ),
            "ray.data.llm-small": lambda out: self._peer(
                "ray_data_llm", out, seeded=True, small_blocks=True
            ),
            "run-batch": self._run_batch,
        }

    def _sampling(self) -> dict[str, Any]:
        return {**SAMPLING, "max_tokens": self._setting.max_tokens}

    def _peer(self, module: str, output: Path, **options: bool) -> "Ready":
        path = self._folder / "spec.json"
        spec = {
            "prompts": str(self._prompts.resolve()), "output": str(output.resolve()),
            "model": self._model, "engine": self._engine, "sampling": self._sampling(),
            "device": self._setting.device, **options,
        }  # fmt: skip
        path.write_text(json.dumps(spec))
        command = [sys.executable, "-m", f"jobs.bench.peers.{module}", str(path)]
        return Ready(command, FileRows(output).count, lambda: _sum(output, ["output_tokens"]))

    def _ours(self, output: Path) -> "Ready":
        command = [sys.executable, "-m", "pipeline", "run", str(self.config(output))]
        tokens = ["think_tokens", "answer_tokens"]
        return Ready(command, LedgerRows(output).count, lambda: _sum(output, tokens))

    def config(self, output: Path) -> Path:
        """Write our configuration; returns its path."""
        config = {
            "input": {"path": str(self._prompts)},
            "output": {"path": str(output)},
            "model": {"path": self._model},
            "sampling": self._sampling(),
            "thinking": {"rescue": False, "detect_loops": self._setting.shape is None},
            "engine": {"device": self._setting.device, "vllm": self._engine},
        }
        path = self._folder / "ours.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _run_batch(self, output: Path) -> "Ready":
        requests, results = self._folder / "requests.jsonl", output / "results.jsonl"
        output.mkdir()
        rows = pq.read_table(self._prompts).to_pylist()
        with requests.open("w") as out:
            for row in rows:
                body = {
                    "model": self._model, **self._sampling(), "seed": row["id"],
                    "messages": [{"role": "user", "content": row["prompt"]}],
                }  # fmt: skip
                line = {"custom_id": str(row["id"]), "method": "POST", "body": body}
                out.write(json.dumps({**line, "url": "/v1/chat/completions"}) + "\n")
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(requests),
            "-o", str(results), "--model", self._model, *_flags(self._engine),
        ]  # fmt: skip

        def tokens() -> int:
            lines = results.read_text().splitlines()
            bodies = (json.loads(line)["response"]["body"] for line in lines)
            return sum(body["usage"]["completion_tokens"] for body in bodies)

        return Ready(command, lambda: _lines(results), tokens)


@dataclass(frozen=True)
class Ready:
    """A system's command; counts its durable rows and, at the end, its output tokens."""

    command: Sequence[str]
    count_rows: Callable[[], int]
    count_tokens: Callable[[], int]


class FileRows:
    """Counts the rows of the Parquet files in a folder; reads each footer once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, dict[str, int]()

    def count(self) -> int:
        """Number of rows now."""
        for path in self._folder.rglob("*.parquet"):
            if str(path) not in self._known:
                try:
                    self._known[str(path)] = pq.read_metadata(path).num_rows
                except (pa.ArrowException, OSError):
                    continue  # still being written
        return sum(self._known.values())


class LedgerRows:
    """Counts the durable rows of a run of ours: in parts, and in fragments by their names."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts = folder, FileRows(folder)

    def count(self) -> int:
        """Number of rows now."""
        if not self._folder.exists():
            return 0
        listing = parse_listing(Storage(str(self._folder)).files())
        finished = listing.finished_parts()
        fragments = (
            stop - start
            for part, spans in listing.durable_ranges(0).items()
            if part not in finished
            for start, stop in spans
        )
        return self._parts.count() + sum(fragments)


def write_prompts(folder: Path, rows: int) -> None:
    """Write additions, which the built-in model has learned, in shards."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for start in range(0, rows, ROWS_A_SHARD):
        numbers = range(start, min(start + ROWS_A_SHARD, rows))
        prompts = [f"What is {rng.randrange(10**4)} + {rng.randrange(10**4)}?" for _ in numbers]
        table = pa.table({"id": list(numbers), "prompt": prompts})
        pq.write_table(table, folder / f"shard-{start // ROWS_A_SHARD:05d}.parquet")


def table(results: Sequence[Result], rows: int) -> str:
    """Medians and ranges by system; times also as multiples of raw vLLM's."""
    by_system: dict[str, list[Result]] = {}
    for result in results:
        by_system.setdefault(result.system, []).append(result)
    raw = [r.seconds for r in by_system.get("raw", [])]
    base = [statistics.median(raw)] if raw else []
    lines = []
    for system, runs in by_system.items():
        firsts = [r.first_durable for r in runs if r.first_durable is not None]
        lines.append(
            [
                system,
                spread([r.seconds for r in runs]),
                spread([statistics.median(r.seconds for r in runs) / b for b in base], ".2f"),
                spread([r.tokens / r.seconds for r in runs]),
                spread(firsts),
                spread([r.durable_half / rows for r in runs], ".0%"),
                spread([r.peak_bytes / 2**30 for r in runs], ".1f"),
            ]
        )
    head = [
        f"{rows:,} rows", "seconds, start to exit", "× raw", "output tokens/s of that",
        "first durable row, s", "durable at half time", "peak GiB",
    ]  # fmt: skip
    return markdown(head, lines)


def killed_table(results: Sequence[Result], killed: Sequence[Killed], rows: int) -> str:
    """What a kill at half time costs, by system."""
    lines = []
    for one in killed:
        whole = statistics.median(r.seconds for r in results if r.system == one.system)
        both = one.killed_after + one.seconds
        cells = [f"{one.killed_after:,.0f}", f"{one.kept / rows:.0%}", f"{both:,.0f}"]
        lines.append([one.system, *cells, f"{both / whole:.2f}"])
    head = [
        f"{rows:,} rows", "killed after, s", "rows kept", "seconds, both starts",
        "× not killed",
    ]  # fmt: skip
    return markdown(head, lines)


def main(args: argparse.Namespace, folder: Path) -> None:
    """Run all systems in turn, ``args.runs`` times; print the table after each round."""
    setting = SETTINGS[args.setting]
    if args.rows:
        setting = replace(setting, rows=args.rows)
    name = f"engines-{args.setting}-{setting.rows}"
    bench, systems = Bench(setting, folder / name), args.systems.split(",")
    results, killed = earlier(folder / f"{name}.json") if args.add or args.kill else ([], [])

    def show() -> None:
        figures = {"results": [asdict(r) for r in results], "killed": [asdict(k) for k in killed]}
        tables = table(results, setting.rows)
        if killed:
            tables += f"\n\n{killed_table(results, killed, setting.rows)}"
        keep(folder, name, tables, {"setting": asdict(setting), **figures})

    for system in systems if args.kill else []:
        whole = statistics.median(r.seconds for r in results if r.system == system)
        killed.append(bench.killed(system, whole / 2))
        print(killed[-1], file=sys.stderr)
        show()
    for number in range(0 if args.kill else args.runs):
        for system in systems:
            print(f"run {number + 1}: {system}", file=sys.stderr)
            results.append(bench.run(system))
            print(results[-1], file=sys.stderr)
        show()


def earlier(path: Path) -> tuple[list[Result], list[Killed]]:
    """The results of an earlier call, from its file."""
    kept = json.loads(path.read_text())
    return [Result(**r) for r in kept["results"]], [Killed(**k) for k in kept.get("killed", [])]


def _wider(model: Path, folder: Path, shape: Mapping[str, Any]) -> Path:
    """Copy the built-in ``model`` without weights, with a config of another ``shape``."""
    folder.mkdir(exist_ok=True)
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copy(file, folder / file.name)
    config = {**json.loads((model / "config.json").read_text()), **shape}
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder.resolve()


def _sum(folder: Path, columns: Sequence[str]) -> int:
    total = 0
    for path in folder.rglob("*.parquet"):
        table = pq.ParquetFile(path).read(columns=columns)
        total += sum(sum(table[name].to_pylist()) for name in columns)
    return total


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Engine arguments as flags of vLLM's command line."""
    flags: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags
