"""Measure early answers with the whole pipeline on the real vLLM engine, with qwq-nano.

    python -m infra.nano.early                          # all, a minute or two for each kind
    python -m infra.nano.early --settings off 2:64      # some: K:DISTANCE, or off
    python -m infra.nano.early --compare 2:64           # each trace with itself, some five minutes

Unseen prompts of three kinds: letter counts and sums (a number in the box), choices (a letter), and
messages to label (`jobs.label`). For each setting, K probes in a row that agree at least DISTANCE
tokens apart, the tables show what was generated for a trace, thinking, answer, given-up thinking
and probes together; how many answers are right; and what the run's own control group says. The
last table shows what probes cost the engine: how much of their prompts was in the prefix cache, and
tokens/s. With ``--compare`` all rows are in the control group, and the table counts the answers
that closing early would have made wrong or right.
"""

import argparse
import json
import os
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import pipeline
from infra.nano import messages
from infra.nano.evaluate import numbers
from infra.nano.tasks import choose, unseen_question
from jobs.bench.tables import keep, markdown
from jobs.label import LabelJob
from jobs.label import label as run_label_job
from pipeline.config.load import load_as
from pipeline.config.run_config import RunConfig
from pipeline.engines.protocol import Request
from pipeline.engines.vllm import Vllm, VllmEngine
from pipeline.monitor.history import all_figures
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import closing_text
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.storage import Storage

OFF = "off"
SETTINGS = (OFF, "2:64", "3:64", "4:64", "2:128", "3:128", "4:128", "2:every 64")
ROWS = {"numbers": 260, "choices": 120, "labels": 150}
CONTROL_SHARE = 0.1
COMPARED_ROWS = 400  # of each kind, with --compare
SPENT = ("think_tokens", "answer_tokens", "wasted_tokens", "probe_tokens")
# Where the engine notes the prompts of probes, for the last table.
NOTES = "QWQ_NANO_PROBES"
SLOTS = 32


class CountingEngine(VllmEngine):
    """Notes of each probe the tokens of its prompt, and how many of them were in the cache."""

    def count_prompt(self, request: Request, tokens: int, cached: int) -> None:
        """A line in the file that `NOTES` names."""
        super().count_prompt(request, tokens, cached)
        if request.id.endswith(":probe"):
            with Path(os.environ[NOTES]).open("a") as notes:
                notes.write(json.dumps([tokens, cached]) + "\n")


class CountingVllm(Vllm):
    """The kind ``vllm``, with a `CountingEngine`."""

    def build(self, config: RunConfig, tokenizer: Any) -> CountingEngine:
        """Start vLLM; it loads a tokenizer of its own."""
        return CountingEngine(config)


COUNTING = CountingVllm()


@dataclass(frozen=True)
class Outcome:
    """One kind of prompts with one setting.

    ``traces``: the output rows. ``probed``: of each probe, tokens of its prompt and those in the
    cache. ``rate``: tokens/s of the engine, probes included.
    """

    traces: Sequence[Mapping[str, Any]]
    probed: Sequence[tuple[int, int]]
    rate: float

    @property
    def tokens(self) -> float:
        """Tokens generated for a trace."""
        return statistics.mean(sum(t.get(name) or 0 for name in SPENT) for t in self.traces)

    @property
    def probe_share(self) -> float:
        """The tokens of probes, as a share of all."""
        probes = sum(t.get("probe_tokens") or 0 for t in self.traces)
        return float(probes / sum(t.get(name) or 0 for t in self.traces for name in SPENT))

    @property
    def right(self) -> float:
        """The share of right answers, of the rows with a reference."""
        judged = [t for t in self.traces if t["expected"] is not None]
        return float(sum(_answer(t) == t["expected"] for t in judged) / len(judged))

    @property
    def control(self) -> tuple[int, int]:
        """Of the control group: early answers that are the full one's, and those compared."""
        compared = [
            t["early_agrees"]
            for t in self.traces
            if t.get("control") and t["early_agrees"] is not None
        ]
        return sum(compared), len(compared)


def _answer(trace: Mapping[str, Any], column: str = "parsed") -> str | None:
    parsed = trace[column]
    if parsed is None or not parsed.startswith("{"):
        return parsed  # type: ignore[no-any-return]
    label: str = json.loads(parsed)["label"]
    return label


def prompts(kind: str, rows: int) -> list[dict[str, Any]]:
    """The rows of a kind, the same each time."""
    rng = random.Random(2121)
    if kind == "labels":
        found = list[dict[str, Any]]()
        while len(found) < rows:
            text, teams = messages.message(rng, two=False)
            found.append({"text": text, "expected": teams[0]})
        return found
    if kind == "numbers":
        tasks = numbers(rng, rows)
    else:
        names = ("count", "add")
        tasks = [choose(rng, *unseen_question(rng, names[i % 2])) for i in range(rows)]
    return [{"prompt": task.prompt, "expected": task.expected} for task in tasks]


def early_answer(setting: str, control_share: float) -> dict[str, Any] | None:
    """The section of a setting such as ``2:64``, or ``2:every 64`` for probes without signs."""
    if setting == OFF:
        return None
    agree, _, distance = setting.partition(":")
    found: dict[str, Any] = {"agree": int(agree), "every_tokens": int(distance.split()[-1])}
    if distance.startswith("every"):
        found["signs"] = []
    return {**found, "control_share": control_share}


def measure(kind: str, setting: str, model: str, folder: Path, compares: bool = False) -> Outcome:
    """Run the prompts of ``kind`` with ``setting``; all in the control group if it ``compares``."""
    rows, share = (COMPARED_ROWS, 1.0) if compares else (ROWS[kind], CONTROL_SHARE)
    source, out, notes = folder / "in" / kind, folder / "out", folder / "probes.jsonl"
    source.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(prompts(kind, rows)), source / "unseen.parquet")
    os.environ[NOTES] = str(notes)
    common = {
        "input.path": str(source), "output.path": str(out), "model.path": model,
        "thinking": {"early_answer": early_answer(setting, share)},
        "engine": {
            "kind": "infra.nano.early:COUNTING", "device": "cpu",
            "vllm": {
                "enforce_eager": True, "max_num_seqs": SLOTS, "max_model_len": 4096,
                "stream_interval": 8, "block_size": 32,
            },
        },
    }  # fmt: skip
    traces = _label(common) if kind == "labels" else _generate(kind, common)
    figures = [run[-1] for run in all_figures(Storage(str(traces)))]
    spent = sum(f.tokens["spent"] for f in figures)
    seconds = sum(f.seconds - (f.ready_seconds or 0) for f in figures)
    lines = notes.read_text().splitlines() if notes.exists() else []
    made = pq.read_table(traces).to_pylist()
    return Outcome(made, [tuple(json.loads(line)) for line in lines], spent / seconds)


def _generate(kind: str, settings: dict[str, Any]) -> Path:
    config = {
        "input": {"path": settings["input.path"]},
        "output": {"path": settings["output.path"]},
        "model": {"path": settings["model.path"]},
        "answer": {"format": "boxed" if kind == "numbers" else "choice"},
        "thinking": settings["thinking"],
        "engine": settings["engine"],
    }
    pipeline.run(pipeline.parse_config(config), progress=False)
    return Path(settings["output.path"])


def _label(settings: dict[str, Any]) -> Path:
    named = {**settings, "sampling.n": 1, "sampling.agree": None, "label.gold_column": "expected"}
    overrides = [f"{name}={json.dumps(value)}" for name, value in named.items()]
    job = load_as(LabelJob, "configs/label.yaml", overrides)
    run_label_job(job)
    return Path(settings["output.path"], "traces")


def rows_of(outcomes: Mapping[str, Outcome]) -> Iterator[list[str]]:
    """A line of the table for each setting."""
    full = outcomes.get(OFF)
    for setting, outcome in outcomes.items():
        agreeing, compared = outcome.control
        saved = "–" if full is None or setting == OFF else f"{1 - outcome.tokens / full.tokens:.1%}"
        is_off = setting == OFF
        yield [
            setting, f"{outcome.tokens:,.0f}", saved, f"{outcome.right:.1%}",
            "–" if is_off else f"{agreeing} of {compared}",
            "–" if is_off else f"{outcome.probe_share:.1%}",
        ]  # fmt: skip


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    """Several kinds as one."""
    return Outcome(
        [t for o in outcomes for t in o.traces],
        [p for o in outcomes for p in o.probed],
        statistics.mean(o.rate for o in outcomes),
    )


def cost_lines(everything: Mapping[str, Outcome]) -> Iterator[list[str]]:
    """What probes cost the engine, a line for each setting."""
    closing = len(load_tokenizer("qwq-nano").encode(closing_text(THINK_TAGS)))
    for setting, outcome in everything.items():
        tokens = sum(tokens for tokens, _ in outcome.probed)
        cached = sum(cached for _, cached in outcome.probed)
        own = tokens - closing * len(outcome.probed)
        yield [
            setting, f"{len(outcome.probed):,}",
            f"{cached / tokens:.1%}" if tokens else "–", f"{cached / own:.1%}" if tokens else "–",
            f"{outcome.rate:,.0f}",
        ]  # fmt: skip


def compare(kind: str, setting: str, model: str) -> list[str]:
    """A line of the table of early and full answers of the same traces."""
    with TemporaryDirectory() as folder:
        traces = measure(kind, setting, model, Path(folder), compares=True).traces
    both = [
        (_answer(t, "early_answer") == t["expected"], _answer(t) == t["expected"])
        for t in traces if t["early_answer"] is not None and t["expected"] is not None
    ]  # fmt: skip
    wrong, right = both.count((False, True)), both.count((True, False))
    return [kind, f"{len(traces):,}", f"{len(both):,}", f"{wrong:,}", f"{right:,}"]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description="Early answers of qwq-nano on vLLM.")
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--kinds", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--model", default="qwq-nano", help="a checkpoint like it")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--compare", metavar="K:DISTANCE", help="in place of all settings")
    args = parser.parse_args()
    if args.compare:
        head = ["prompts", "rows", "with an early answer", "made wrong", "made right"]
        lines = [compare(kind, args.compare, args.model) for kind in args.kinds]
        print(markdown(head, lines))
        return
    found: dict[str, dict[str, Outcome]] = {kind: {} for kind in args.kinds}
    for kind in args.kinds:
        for setting in args.settings:
            with TemporaryDirectory() as folder:
                found[kind][setting] = measure(kind, setting, args.model, Path(folder))
    everything = {s: joined([found[kind][s] for kind in args.kinds]) for s in args.settings}
    head = [
        "probes that agree : distance",
        "tokens a trace",
        "fewer",
        "right",
        "control agrees",
        "probes",
    ]
    tables = [
        f"{kind}, {sum(1 for _ in outcomes[args.settings[0]].traces):,} prompts\n\n"
        + markdown(head, rows_of(outcomes))
        for kind, outcomes in {**found, "all": everything}.items()
    ]
    cost_head = ["setting", "probes", "of their prompts cached", "of the trace cached", "tokens/s"]
    tables.append("Cost to the engine\n\n" + markdown(cost_head, cost_lines(everything)))
    figures = {
        kind: {s: [o.tokens, o.right, *o.control, o.probe_share] for s, o in outcomes.items()}
        for kind, outcomes in {**found, "all": everything}.items()
    }
    keep(args.out, "early", "\n\n".join(tables), {"figures": figures})


if __name__ == "__main__":
    main()
