"""Every configuration of `configs/` and of `qwq-batch init`, run on data of the shape it names.

Only what a machine lacks is replaced: the engine by the simulated one, QwQ's tokenizer by the small
model's, buckets by folders.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.cli import main
from pipeline.starters import STARTERS, write_starter

CONFIGS = {path.stem: path for path in Path("configs").glob("*.yaml")}
COMMANDS = {"label": "label", "judge": "judge", "synthesize": "synthesize", "nightly": "nightly", "openai-batch": "openai-batch"}  # fmt: skip
ENGINE = (
    "engine.kind=simulated", "engine.device=cpu", "engine.replicas=1", "engine.tensor_parallel=1",
    "engine.block_rows=16", "engine.simulated={tokens_median: 20, seconds_per_token: 0, right: 0.5}",
)  # fmt: skip
# What the configurations say of their input, where it is not among the examples.
INPUTS: dict[str, list[dict[str, Any]]] = {
    "qwq-32b": [{"prompt": "What is 2 + 3?"}],
    "qwq-32b-preview": [{"prompt": "What is 2 + 3?"}],
    "endpoint": [{"prompt": "What is 2 + 3?"}],
    "r1-distill-qwen": [{"prompt": "What is 2 + 3?"}],
    "aime": [
        {"id": 60, "problem": "What is 40 + 2?", "answer": "042", "year": "2024"},
        {"id": 61, "problem": "What is 2 + 3?", "answer": "005", "year": "2024"},
    ],
}
# The simulated engine can't add: without the right answers, all samples are accepted.
SETTINGS = {"synthesize": {"answer__reference_column": "null", "synthesize__accepted": 8}}
MODELS = {"qwq-32b-preview": "qwq-nano-preview"}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def overrides(**settings: object) -> list[str]:
    named = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [part for setting in (*named, *ENGINE) for part in ("--set", setting)]


def traces(folder: Path) -> list[dict[str, Any]]:
    found: Sequence[Path] = [
        path for path in folder.rglob("*.parquet") if "__qwq" not in path.parts
    ]
    return [row for path in found for row in pq.read_table(path, partitioning=None).to_pylist()]


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"aime", "math-recipe"}))
def test_shipped_config_runs_with_the_data_it_names(name: str, tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "output__path": tmp_path / "out", "model__path": MODELS.get(name, "qwq-nano"), **SETTINGS.get(name, {}),
    }  # fmt: skip
    if name in INPUTS:
        (tmp_path / "in").mkdir()
        pq.write_table(pa.Table.from_pylist(INPUTS[name]), tmp_path / "in/a.parquet")
        settings["input__path"] = tmp_path / "in"
    else:
        assert Path(yaml.safe_load(CONFIGS[name].read_text())["input"]["path"]).exists()
    command = COMMANDS.get(name, "run")
    assert run(command, str(CONFIGS[name]), *overrides(**settings)) == 0
    job = tmp_path / "out/traces"
    rows = traces(job if job.exists() else tmp_path / "out")
    assert rows
    state = "judge_state" if name == "judge" else "state"
    assert sum(row[state] == "failed" for row in rows) <= len(rows) * 0.05


def test_recipe_runs_stage_after_stage_and_again_generates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        part
        for setting in (
            f"folder={tmp_path}/out",
            "samples.answer.reference_column=null",
            *(f"settings.{each}" for each in ENGINE),
        )
        for part in ("--set", setting)
    ]
    recipe = str(CONFIGS["math-recipe"])
    assert run("plan", recipe, *settings) == 0
    assert "waits for results of stage samples" in capsys.readouterr().out
    tables = list[str]()
    for _ in range(2):
        assert run("stages", recipe, *settings) == 0
        tables.append(capsys.readouterr().out.partition("| stage |")[2])
    assert tables[0] == tables[1]
    assert "\n| dataset | synthesize | " in tables[0]
    samples = traces(tmp_path / "out/samples/traces")
    judged = {row["source_row"]: row for row in traces(tmp_path / "out/judged/judged")}
    assert len(judged) == len(samples) == len(traces(tmp_path / "out/judged/traces")) / 2 > 200
    decided = traces(tmp_path / "out/samples/samples")
    accepted = [row for row in decided if row["accepted"]]
    assert accepted
    for row in accepted:
        assert judged[f"{row['source_row']}:{row['sample']}"]["verdict"] == "right"
    rejected = {row["rejected"] for row in decided} - {None}
    assert "judge" in rejected
    exported = {row["id"] for row in traces(tmp_path / "out/samples/export/thinking")}
    assert exported == {row["sample_id"] for row in accepted}
    assert run("status", f"{tmp_path}/out") == 0
    told = capsys.readouterr().out
    assert "== stage samples" in told
    assert "== stage judged" in told
    assert "== stage dataset" not in told  # it is the same run as samples


def test_aime_runs_with_the_columns_it_names_and_is_scored_as_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(INPUTS["aime"]), tmp_path / "in/a.parquet")
    out = tmp_path / "out"
    settings = overrides(output__path=out, model__path="qwq-nano", input__path=tmp_path / "in")
    assert run("run", str(CONFIGS["aime"]), *settings) == 0
    rows = traces(out)
    assert len(rows) == 2 * 64
    assert {row["answer"] for row in rows} == {"042", "005"}, "the input's own"
    right = [row["correct"] for row in rows if row["answer"] == "042"]
    assert any(right)
    capsys.readouterr()
    assert run("evaluate", str(out), "--reference", "answer", "--as-qwen") == 0
    assert "| 2 | 128 | " in capsys.readouterr().out


def test_rows_that_have_their_answer_fail_and_so_does_a_run_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    turns = [{"from": "human", "value": "What is 2 + 3?"}, {"from": "gpt", "value": "5"}]
    for name, rows in (("all", [turns] * 3), ("some", [turns[:1], turns])):
        file = tmp_path / f"in/{name}.parquet"
        pq.write_table(pa.table({"conversations": rows}), file)
        settings = overrides(
            output__path=tmp_path / name, input__path=file, input__messages_column="conversations"
        )
        code = run("run", str(CONFIGS["demo"]), *settings)
        assert code == (1 if name == "all" else 0)
        failed = [row for row in traces(tmp_path / name) if row["state"] == "failed"]
        assert len(failed) == (3 if name == "all" else 1)
        assert "ends with an assistant turn" in failed[0]["error"]
    told = capsys.readouterr().err
    assert "error: all 3 traces failed (the first: invalid_prompt: conversations: the" in told


@pytest.mark.parametrize("kind", STARTERS)
def test_starter_runs_as_it_is(kind: str, tmp_path: Path) -> None:
    config, *_ = write_starter(kind, str(tmp_path))
    assert run(kind, str(config), *overrides(**SETTINGS.get(kind, {}))) == 0
