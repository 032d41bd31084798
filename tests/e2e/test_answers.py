"""Answers in a form of the user's, and what a second pass costs, on the real engine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.e2e.command import NOISE, ROOT, qwq_batch

JSON_ANSWERS = """
input: {path: IN}
output: {path: OUT}
model: {path: qwq-nano}
prompt: {suffix: json}
sampling: {n: 4, agree: 2, max_tokens: 600}
thinking: {budget_tokens: 260, answer_tokens: 64}
answer:
  format: json
  json_schema:
    type: object
    properties: {answer: {type: integer, minimum: 0}}
    required: [answer]
    additionalProperties: false
  reference_column: right
engine:
  device: cpu
  tensor_parallel: 2
  vllm: {enforce_eager: true, max_num_seqs: 32, max_model_len: 2048}
"""


def _json_config(folder: Path) -> Path:
    counts = {"strawberry": 3, "carrot": 2, "mirror": 3, "banana": 0, "error": 3, "river": 2}
    rows: list[dict[str, str | None]] = [
        {"prompt": f'How many r\'s are in the word "{word}"?', "right": f'{{"answer": {count}}}'}
        for word, count in counts.items()
    ]
    (folder / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "in" / "a.parquet")
    text = JSON_ANSWERS.replace("IN", str(folder / "in")).replace("OUT", str(folder / "out"))
    config = folder / "json.yaml"
    config.write_text(text)
    return config


def test_json_answers_fit_their_schema_and_few_samples_agree(tmp_path: Path) -> None:
    """On two processes with tensor parallelism. Thinking that closes and (strawberry's) that runs out; two of four samples are to agree."""
    done = qwq_batch("run", str(_json_config(tmp_path)))
    assert done.returncode == 0, done.stderr
    assert not NOISE.search(done.stderr), done.stderr
    assert re.search(r"agreement +\d+ samples not needed", done.stdout), done.stdout
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["state"] for row in rows} <= {"finished", "rescued"}
    spelled = [row["think"] for row in rows if "strawberry" in row["prompt"]]
    assert all(think.startswith("strawberry s!r 0\ntrawberry t!r 0") for think in spelled)
    for row in rows:
        assert list(json.loads(row["answer"])) == ["answer"]
        assert re.fullmatch(r'\{"answer": \d+\}', row["answer"]), row["answer"]
        assert row["parsed"] == row["answer"]
        assert "</think>" not in row["think"] + row["answer"]
        assert (row["state"] == "rescued") == (row["closed_by"] is not None)
    whole = [row for row in rows if row["state"] == "finished"]
    assert sum(row["correct"] for row in whole) >= 0.7 * len(whole)
    assert {row["closed_by"] for row in rows} == {None, "budget"}
    drawn = [sum(row["prompt"] == prompt for row in rows) for prompt in {r["prompt"] for r in rows}]
    assert 2 <= min(drawn) <= max(drawn) <= 4
    assert sum(drawn) < 24


# One engine without Ray: it refuses a schema, then does the two passes of a rescue.
CHECKS = """
import asyncio
from infra.nano import rescue
from pipeline.config.load import parse_config
from pipeline.engines import Request
from pipeline.engines.vllm import VllmEngine
from pipeline.errors import ModelError

SCHEMA = {"type": "object", "properties": {"a": {"type": "array"}}, "unevaluatedProperties": False}
config = parse_config(rescue.CONFIG | {"answer": {"format": "json", "json_schema": SCHEMA}})

async def main():
    engine = VllmEngine(config)
    try:
        await engine.generate(Request("row", (65,), (), config.sampling, 0), lambda new: False)
    except ModelError as error:
        print("refused:", error)
    engine._unchecked = None  # from now on like an engine without a schema
    print("cached:", *await rescue.second_pass(engine, 1024))
    engine.close()

asyncio.run(main())
"""


def test_engine_refuses_a_schema_it_can_not_generate_by_and_caches_the_prefix_of_a_rescue() -> None:
    done = subprocess.run([sys.executable, "-c", CHECKS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"refused: vLLM can't generate by answer.json_schema: .*unevaluated", done.stdout
    ), done.stdout
    counts = re.search(r"cached: (\d+) (\d+)", done.stdout)
    assert counts is not None, done.stdout
    tokens, cached = map(int, counts.groups())
    assert tokens > 1024
    assert cached >= 0.8 * tokens
