"""The real engine: vLLM on CPU with the built-in models, driven by the command line.

An engine start takes half a minute to a minute on two cores, so rows of many cases share one.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.engines.vllm_arguments import WATERMARK
from pipeline.monitor.history import all_figures
from pipeline.output import engine_starts
from pipeline.reasoning.policy import EARLY_STOP
from pipeline.storage import Storage
from tests.conftest import PROMPTS, write_shards
from tests.e2e.command import NOISE, ROOT, free_port, qwq_batch, scraped
from tests.s3 import S3Server


def test_demo_on_s3(s3: S3Server, tmp_path: Path) -> None:
    """Each command on the demo's own config, its input and output in a bucket."""
    fs, port = s3.filesystem(), free_port()
    fs.makedirs("demo", exist_ok=True)
    fs.put(str(ROOT / "configs/demo-prompts") + "/", "demo/prompts/", recursive=True)
    config = ["configs/demo.yaml", "--set", "input.path=s3://demo/prompts",
              "--set", "output.path=s3://demo/traces", "--set", "output.raw_text=true"]  # fmt: skip
    doctor = qwq_batch("doctor", *config)
    assert doctor.returncode == 0, doctor.stdout
    with scraped(f"http://127.0.0.1:{port}/metrics") as metrics:
        done = qwq_batch(
            "run", *config, "--set", f"ray.metrics_port={port}",
            "--set", "engine.vllm.disable_log_stats=false", RAY_metrics_report_interval_ms="1000",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "240 of 240 traces in s3://demo/traces" in done.stdout
    assert '"rows": 240, "rows_to_do": 240' in done.stderr  # one line at least, however fast it is
    assert not NOISE.search(done.stderr), done.stderr
    # vLLM's own metrics come through Ray's endpoint, and its KV cache is in the record.
    assert {"ray_vllm_generation_tokens_total", "ray_vllm_kv_cache_usage_perc"} <= metrics
    [start] = engine_starts.read(Storage("s3://demo/traces"))
    assert start.details["KV cache tokens"] > 100_000
    assert (start.details["slots"], start.details["watermark"]) == (64, WATERMARK)
    runs = all_figures(Storage("s3://demo/traces"))
    assert any(engine.kv_usage for run in runs for f in run for engine in f.engines)
    parts = sorted(path for path in fs.find("demo/traces") if "__qwq" not in path)
    assert [path.rpartition("/")[2] for path in parts] == [
        f"prompts-{shard:05}.00000.parquet" for shard in range(4)
    ]
    rows = [row for path in parts for row in pq.read_table(path, filesystem=fs).to_pylist()]
    assert [row["id"] for row in rows] == [f"demo-{i:03}" for i in range(240)]
    _traces_are_what_the_model_can_do(rows)
    _finished_run_is_told_of_without_an_engine(config, tmp_path / "report.html")


def _finished_run_is_told_of_without_an_engine(config: list[str], page: Path) -> None:
    again = qwq_batch("run", *config)
    assert again.returncode == 0
    assert again.stderr == "", "a finished run must start no engine"
    shown = qwq_batch("show", "s3://demo/traces", "--rows", "1")
    assert 'prompt: How many r\'s are in the word "strawberry"?' in shown.stdout
    assert r"\boxed{3}" in shown.stdout
    prices = "prices={gpu_hour: 2.5, million_input_tokens: 0.12, million_output_tokens: 0.18}"
    estimate = qwq_batch("estimate", *config, "--rows", "40", "--set", prices)
    assert estimate.returncode == 0, estimate.stderr
    for text in ("40 rows", "P95", "tokens/s", "the whole run: 240 rows", "cost", "API"):
        assert text in estimate.stdout
    assert "240 of 240 are durable" in qwq_batch("status", "s3://demo/traces").stdout
    report = qwq_batch("report", "s3://demo/traces", "--to", str(page))
    assert report.returncode == 0, report.stderr
    assert "tokens/s" in page.read_text()


def _traces_are_what_the_model_can_do(rows: list[dict[str, Any]]) -> None:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_kind.setdefault(row["kind"], []).append(row)
    strawberry = rows[0]
    assert strawberry["state"] == "finished"
    assert strawberry["answer"] == r"The answer is \boxed{3}."
    assert "</think>" not in strawberry["think"]
    for kind in ("count", "add"):
        right = [rf"\boxed{{{r['expected']}}}" in (r["answer"] or "") for r in by_kind[kind]]
        assert sum(right) >= 0.8 * len(right), kind
    choices = [re.fullmatch(r'"answer": "[A-D]"', r["answer"] or "") for r in by_kind["choice"]]
    assert sum(map(bool, choices)) >= 0.9 * len(choices)  # the letter itself is a weak point
    circles = by_kind["loop"] + by_kind["near_loop"]
    for row in circles:
        assert row["state"] in ("rescued", "truncated", "looped")
        assert EARLY_STOP not in row["think"]
        assert EARLY_STOP in row["raw"]
    loops = [row for row in circles if row["closed_by"] == "loop"]
    assert len(loops) >= len(circles) - 1, "a sampled near loop may be none"
    for row in loops:
        assert row["loop_retries"] == 1
        assert 0 < row["wasted_tokens"] < 2048
    [failed] = by_kind["none"]
    assert failed["state"] == "failed"
    assert failed["error"] == "invalid_prompt: prompt must be text, not null"
    for row in rows:
        if row["state"] == "finished":
            # Byte tokens: every character one, the closing tag one, the end of turn one.
            length = len(row["raw"]) - len("</think>") + 2
            assert row["think_tokens"] + row["answer_tokens"] == length
            assert row["think_tokens"] == row["raw"].index("</think>") + 1


def test_counting_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """SIGTERM to the driver in mid-count, SIGKILL to the next run's engine actor, then the end."""
    (tmp_path / "in").mkdir()
    rows = [{"id": i, "prompt": f"Count down from {100 + i}."} for i in range(12)]
    pq.write_table(pa.Table.from_pylist(rows, PROMPTS), tmp_path / "in/shard-00000.parquet")
    command = [
        sys.executable, "-m", "pipeline", "run", "configs/demo.yaml",
        "--set", f"input.path={tmp_path / 'in'}", "--set", f"output.path={tmp_path / 'out'}",
        "--set", "output.checkpoint_seconds=0.5", "--set", "thinking.detect_loops=false",
    ]  # fmt: skip
    mark = f"QWQ_TEST={uuid.uuid4().hex}"
    with _driver(command, mark) as first:
        _wait_for(lambda: sum(_saved(tmp_path / "out").values()) > 500, first)
        first.terminate()
        printed = first.communicate()[1]
    assert first.returncode == 143, printed
    assert "ended by SIGTERM" in printed
    saved = _saved(tmp_path / "out")
    with _driver(command, mark) as second:
        _wait_for(
            lambda: any(n > saved.get(r, n) for r, n in _saved(tmp_path / "out").items()), second
        )
        engines = _processes("EngineActor", mark)
        assert engines, "no engine was found, so none is killed"
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
        printed = second.communicate()[1]
    assert second.returncode == 0, printed
    traces = pq.read_table(tmp_path / "out").to_pylist()
    assert [trace["id"] for trace in traces] == list(range(12))
    assert all(trace["carried_tokens"] >= saved.get(trace["id"], 0) for trace in traces)
    right = [
        trace["think"] == "\n".join(str(n) for n in range(100 + trace["id"], -1, -1))
        for trace in traces
    ]
    assert sum(right) >= 9, "the count has gaps where it was broken off"
    _wait_for(lambda: not _processes("EngineActor", mark) + _processes("VLLM::EngineCore", mark))


def _saved(output: Path) -> dict[int, int]:
    """By row, how many tokens of its running trace are in checkpoints."""
    most: dict[int, int] = {}
    for path in output.glob("__qwq/running/*/*.running"):
        try:
            data = path.read_bytes()  # at once: the file is replaced again and again
        except FileNotFoundError:
            continue
        for row in pq.read_table(BytesIO(data), columns=["row", "token_ids"]).to_pylist():
            most[row["row"]] = max(most.get(row["row"], 0), len(row["token_ids"]))
    return most


def _driver(command: list[str], mark: str) -> subprocess.Popen[str]:
    """Start the command; all its processes, wherever they end up, have ``mark`` as a variable."""
    name, _, value = mark.partition("=")
    environment = {**os.environ, name: value}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def _processes(name: str, mark: str) -> list[int]:
    """The running processes with ``name`` in their title and ``mark`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
            state = (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if name.encode() in title and mark.encode() in variables and state != "Z":
            found.append(int(path.name))
    return found


def _wait_for(condition: Callable[[], bool], driver: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert driver is None or driver.poll() is None, "the driver ended before"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_preview_model_with_messages(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sums = [(12, 34), (205, 17), (78, 4), (391, 266), (50, 49), (7, 6)]
    messages = [[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in sums]
    pq.write_table(pa.table({"messages": messages}), tmp_path / "in" / "a.parquet")
    done = qwq_batch(
        "run", "configs/demo.yaml", "--set", f"input.path={tmp_path / 'in'}",
        "--set", f"output.path={tmp_path / 'out'}", "--set", "prompt.suffix=math",
        "--set", "model.path=qwq-nano-preview", "--set", "model.preset=qwq-32b-preview",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(tmp_path / "out").to_dict("records")
    right = [
        rf"\boxed{{{a + b}}}" in str(row["answer"]) for (a, b), row in zip(sums, rows, strict=True)
    ]
    assert sum(right) >= 5
    assert all("**Final Answer**" not in str(row["think"]) + str(row["answer"]) for row in rows)
    query = f"select count(*) from '{tmp_path}/out/*.parquet' where think <> ''"
    assert duckdb.connect().execute(query).fetchall() == [(6,)]


OPENING, CLOSING = "<|begin_of_thought|>", "<|end_of_thought|>"
OTHER_CHECKPOINT = """
input: {path: IN}
output: {path: OUT, raw_text: true}
model:
  path: MODEL
  preset: qwen2
  format: {open: "<|begin_of_thought|>", close: "<|end_of_thought|>"}
sampling: {max_tokens: 800, top_k: 20}
thinking: {budget_tokens: 700, answer_tokens: 32}
answer: {format: boxed}
engine: {device: cpu, context: auto, vllm: {enforce_eager: true, max_num_seqs: 8}}
"""
WORDS = [("mirror", "r"), ("banana", "a"), ("carrot", "r"), ("engine", "e")]
SENTENCE = "You are a careful assistant who reads all of what is said before the question. "


def _other_checkpoint(folder: Path) -> Path:
    """qwq-nano's own weights with other tags and template, and a context of 1,024 tokens."""
    model = folder / "model"
    shutil.copytree(ROOT / "pipeline/models/qwq-nano", model)
    tokenizer = (model / "tokenizer.json").read_text()
    renamed = tokenizer.replace("<think>", OPENING).replace("</think>", CLOSING)
    (model / "tokenizer.json").write_text(renamed)
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        f"<|im_start|>assistant\n{OPENING}\n{{{{ '' }}}}"
    )
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 1024}))
    return model


@pytest.mark.long
def test_other_checkpoint_by_its_config_alone_and_its_long_prompts_with_yarn(
    tmp_path: Path,
) -> None:
    """Tags, template and preset of another kind; a prompt of 3,000 tokens is long for it."""
    question = f'How many {WORDS[0][1]}\'s are in the word "{WORDS[0][0]}"?'
    prompts = [f'How many {letter}\'s are in the word "{word}"?' for word, letter in WORDS]
    prompts += ["Count down from 300.", (SENTENCE * 70)[:3000] + question, "x" * 5000]
    rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, PROMPTS), tmp_path / "in/a.parquet")
    paths = {"IN": "in", "OUT": "out"}
    text = OTHER_CHECKPOINT.replace("MODEL", str(_other_checkpoint(tmp_path)))
    for word, name in paths.items():
        text = text.replace(f"{{path: {word}", f"{{path: {tmp_path / name}")
    config = tmp_path / "run.yaml"
    config.write_text(text)
    planned = qwq_batch("plan", str(config))
    assert [line for line in planned.stdout.splitlines() if line.startswith("tier")] == [
        "tier      1,024 tokens: 5 rows",
        "tier      2,048 tokens, YaRN 2: 0 rows",
        "tier      4,096 tokens, YaRN 4: 1 rows",
        "tier      no engine: 1 rows",
    ]
    done = qwq_batch("run", str(config))
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [warning.split()[1] for warning in warnings] == [
        "sampling.max_tokens",  # 800: most traces would be truncated
        "answer.format",  # nothing asks for the box
    ]
    assert not NOISE.search(done.stderr), done.stderr
    assert '"lane": "4,096 tokens, YaRN 4"' in done.stderr
    traces = pq.read_table(tmp_path / "out").to_pylist()
    assert [trace["id"] for trace in traces] == list(range(7))
    assert [trace["yarn_factor"] for trace in traces] == [*[None] * 5, 4.0, None]
    *counted, cut, long, too_long = traces
    for (word, _), row in zip(WORDS, counted, strict=True):
        assert row["state"] == "finished", row
        assert row["think"].endswith(f"So it is {row['parsed']}."), row
        assert row["think"].startswith(f"{word} {word[0]}")
        assert CLOSING not in row["think"] + row["answer"]
        assert row["think_tokens"] == len(row["raw"].partition(CLOSING)[0]) + 1
    assert counted[0]["answer"] == r"The answer is \boxed{3}."
    assert (cut["closed_by"], cut["think_tokens"]) == ("budget", 700)
    assert f"{EARLY_STOP}\n{CLOSING}\n\n" in cut["raw"]
    assert long["state"] != "failed"
    assert long["prompt_tokens"] == 3000 + counted[0]["prompt_tokens"]
    assert long["think_tokens"] + long["answer_tokens"] > 20
    assert too_long["state"] == "failed"
    assert re.match(
        r"prompt_too_long: the prompt has 50\d\d tokens, the context 4096", too_long["error"]
    )


def test_engine_that_can_not_start_is_one_clear_message(tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [2])
    done = qwq_batch(
        "run", "configs/demo.yaml", "--set", f"input.path={tmp_path / 'in'}",
        "--set", f"output.path={tmp_path / 'out'}",
        "--set", "engine.vllm.num_gpu_blocks_override=1",
    )  # fmt: skip
    assert done.returncode == 2
    # What vLLM's own process wrote, not "Engine core initialization failed".
    reason = f"the engine did not start on {socket.gethostname()}: ValueError: "
    assert f"error: {reason}" in done.stderr, done.stderr
    assert "memory for the cache" in done.stderr
    assert "lower engine.vllm.max_model_len" in done.stderr
    assert "See root cause above" not in done.stderr
    told = qwq_batch("status", str(tmp_path / "out")).stdout
    assert re.search(rf"no start   1 x on .*: {re.escape(reason)}", told), told
    assert "Failed to apply UDF" not in done.stderr
    assert not NOISE.search(done.stdout + done.stderr), done.stdout + done.stderr


@pytest.mark.long
def test_lora_adapter_is_applied(tmp_path: Path) -> None:
    """A random adapter scrambles what the model says; without it, it would spell the word."""
    import torch
    from safetensors.torch import save_file

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    weights = {}
    for layer in range(4):
        for name, rows in (("q_proj", 192), ("v_proj", 64)):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(8, 192)
            weights[f"{key}.lora_B.weight"] = torch.randn(rows, 8)
    save_file(weights, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none",
                "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    write_shards(tmp_path / "in", [2], 'How many r\'s are in the word "strawberry"? {}')
    done = qwq_batch(
        "run", "configs/demo.yaml", "--set", f"input.path={tmp_path / 'in'}",
        "--set", f"output.path={tmp_path / 'out'}", "--set", f"model.lora={adapter}",
        "--set", "sampling.max_tokens=100",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in pq.read_table(tmp_path / "out").to_pylist():
        assert row["think_tokens"] + row["answer_tokens"] > 0
        assert "strawberry s!r 0" not in row["think"]
