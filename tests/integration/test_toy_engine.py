"""An engine from outside the package runs through the whole pipeline, and no file changes for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, OutputError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from pipeline.insight.doctor import examine
from tests.conftest import MakeConfig, write_shards

KIND = "tests.toy_engine:TOY"


def toy(make_config: MakeConfig, options: dict[str, Any], **engine: Any) -> RunConfig:
    return make_config(
        engine={"kind": KIND, "options": {"answer": "42", **options}, **engine},
        answer={"format": "boxed"},
    )


def test_engine_from_outside_the_package_runs_with_its_own_settings(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [5, 4])
    config = toy(make_config, {"slots": 2})
    lines = list(preview.plan_lines(prepare(config)))
    assert f"engines   1 x {KIND} on 1 cpu, qwq-nano (qwq-32b)" in "\n".join(lines)
    assert 'options   {"answer": "42", "slots": 2}' in lines
    findings = "\n".join(map(str, examine(config)))
    assert f"pytest {pytest.__version__}" in findings
    assert "vllm" not in findings
    assert "warning   engine.kind: a toy answers every prompt alike" in findings

    summary = flow.run(config)
    assert summary.is_complete
    rows = pq.read_table(config.output.path).to_pylist()
    assert [row["id"] for row in rows] == list(range(9))
    assert {(row["think"], row["parsed"]) for row in rows} == {("Easy.", "42")}
    manifest = prepare(config).ledger.manifest()
    assert manifest is not None
    assert manifest["settings"]["engine.kind"] == KIND
    assert manifest["settings"]["engine.options.answer"] == "42"
    assert "engine.options.slots" not in manifest["settings"]
    assert manifest["versions"]["pytest"] == pytest.__version__

    assert flow.run(toy(make_config, {"slots": 7})) == summary
    with pytest.raises(OutputError, match=r"engine.options.answer: there '42', now '7'"):
        prepare(toy(make_config, {"answer": "7"}))
    with pytest.raises(ConfigError, match=r"options\.slotz: unknown key slotz; did you mean slots"):
        prepare(toy(make_config, {"slotz": 7}))


def test_engine_from_outside_the_package_runs_long_rows(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    shutil.copytree(Path(pipeline.__file__).parent / "models/qwq-nano", tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 400}))
    write_shards(tmp_path / "in", [2], prompt="x" * 10)
    write_shards(tmp_path / "in", [2, 2], prompt="x" * 1000)
    write_shards(tmp_path / "in", [2, 2, 1], prompt="x" * 5000)
    config = toy(make_config, {}, context="auto")
    model = config.model.model_copy(update={"path": str(tmp_path / "model")})
    sampling = config.sampling.model_copy(update={"max_tokens": 200})
    thinking = config.thinking.model_copy(update={"answer_tokens": 50})
    flow.run(config.model_copy(update={"model": model, "sampling": sampling, "thinking": thinking}))
    rows = pq.read_table(config.output.path).to_pylist()
    assert [(row["yarn_factor"], row["parsed"]) for row in rows] == [
        (None, "42"), (None, "42"), (4.0, "42"), (4.0, "42"), (None, None),
    ]  # fmt: skip
    assert rows[-1]["error"].startswith(
        "prompt_too_long: the prompt has 5021 tokens, the context 1600"
    )
