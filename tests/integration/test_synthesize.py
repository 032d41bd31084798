"""jobs.synthesize as a whole, on the simulated engine: a target, a restart, more samples, S3."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.samples import Samples
from jobs.synthesize import synthesize
from jobs.synthesize_config import Synthesis
from pipeline.config.load import parse_as
from pipeline.errors import ConfigError, IncompleteRunError, InputError, OutputError
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.storage import Storage
from tests.hub import Hub
from tests.s3 import S3Server

ROOT, SEEDS = Path(__file__).parents[2], 24


@pytest.fixture
def seeds(tmp_path: Path) -> str:
    rows = [{"number": i, "right": "42"} for i in range(SEEDS)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    return str(tmp_path / "in")


def config(tmp_path: Path, right: float = 0.5, **sections: Any) -> Synthesis:
    base: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 8},
        "model": {"path": "qwq-nano"},
        "prompt": {"template": "{how}, what is {number}?", "suffix": "math"},
        "answer": {"format": "boxed", "reference_column": "right"},
        "engine": {
            "kind": "simulated", "device": "cpu", "block_rows": 16,
            "simulated": {"tokens_median": 120, "seconds_per_token": 0, "right": right},
        },
        "synthesize": {"expand": {"how": ["Briefly", "In full"]}},
    }  # fmt: skip
    data = {name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}}
    return parse_as(Synthesis, data, "config")


def samples(tmp_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "out/samples").to_pylist()
    return rows


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_rounds_end_when_so_many_are_accepted_and_a_restart_goes_on(
    tmp_path: Path, seeds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first round is killed before its samples are looked at."""
    wanted = config(
        tmp_path, synthesize={"expand": {"how": ["Briefly", "In full"]}, "accepted": 14}
    )
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Samples, "add_new", lambda self: exec("raise KeyboardInterrupt"))
        synthesize(wanted)
    first = files(tmp_path / "out/traces")
    assert len(first) == len(files(tmp_path / "out/prompts")) == 2  # 14 prompts, if all are right
    capsys.readouterr()
    assert synthesize(wanted) == 0
    rows = samples(tmp_path)
    assert 14 <= sum(row["accepted"] for row in rows) < len(rows) <= 2 * SEEDS
    assert "more prompts" in capsys.readouterr().out
    traces, exported = files(tmp_path / "out/traces"), files(tmp_path / "out/export")
    assert {name: traces[name] for name in first} == first
    assert synthesize(wanted) == 0  # nothing is left to do
    assert (files(tmp_path / "out/traces"), samples(tmp_path)) == (traces, rows)
    assert exported.keys() == files(tmp_path / "out/export").keys()
    for row in rows:
        assert row["accepted"] == row["correct"] == (row["rejected"] is None)
    assert [row["sample_id"] for row in rows[:9:8]] == [
        "a.00000.00000:0:0", "a.00001.00000:0:0",
    ]  # fmt: skip


def test_every_export_is_what_trainers_read(
    tmp_path: Path, seeds: str, capsys: pytest.CaptureFixture[str], hub: Hub
) -> None:
    import datasets

    section = {"expand": {"how": ["Briefly", "In full"]}, "push_to": "hf://datasets/org/name"}
    of_two = config(tmp_path, sampling={"n": 2}, prompt={"system": "Be exact."}, synthesize=section)
    assert synthesize(of_two) == 0
    exported = {path for path in (tmp_path / "out/export").rglob("*") if path.is_file()}
    names = {str(path.relative_to(tmp_path / "out/export")) for path in exported}
    assert set(hub.files("org/name")) == {name for name in names if not name.startswith("__")}
    kept = {row["sample_id"]: row for row in samples(tmp_path) if row["accepted"]}
    folder, cache = str(tmp_path / "out/export"), str(tmp_path / "cache")
    tokenizer = load_tokenizer("qwq-nano")
    for variant in ("thinking", "answers"):
        table = datasets.load_dataset(folder, variant, split="train", cache_dir=cache)
        lines = datasets.load_dataset(
            "json", data_dir=f"{folder}/{variant}-jsonl", split="train", cache_dir=cache
        )
        assert list(table) == list(lines)
        assert [chat["id"] for chat in table] == list(kept)
        for chat in table:
            row = kept[chat["id"]]
            system, user, said = chat["messages"]
            assert system == {"role": "system", "content": "Be exact."}
            assert user["content"].startswith(f"{row['how']}, what is {row['number']}?\nPlease")
            whole = f"<think>\n{row['think']}\n</think>\n\n{row['answer']}"
            assert said["content"] == (whole if variant == "thinking" else row["answer"])
            text = tokenizer.apply_chat_template(chat["messages"], tokenize=False)
            assert text.endswith(f"<|im_start|>assistant\n{said['content']}<|im_end|>\n")
    info = json.loads((tmp_path / "out/export/dataset_info.json").read_text())
    for entry in info.values():
        assert all(n.endswith(".jsonl") for n in os.listdir(f"{folder}/{entry['file_name']}"))
    out = capsys.readouterr().out
    assert f"{len(kept)} conversations, " in out
    assert f"prompts for RL in {folder}, README.md says" in out
    assert "-- assistant\n<think>" in out


def test_seeds_that_are_used_up_are_told_and_more_samples_go_on(tmp_path: Path, seeds: str) -> None:
    section: dict[str, Any] = {"accepted": 40, "near_duplicate": None}
    prompt = {"template": "What is {number}?"}
    with pytest.raises(ConfigError, match=r"24 prompts with sampling.n=1 make 24 samples"):
        synthesize(config(tmp_path, synthesize={"expand": {}, **section}, prompt=prompt))
    assert not (tmp_path / "out").exists()
    two = config(
        tmp_path, synthesize={"expand": {}, **section}, prompt=prompt, sampling={"n": 2}
    )  # fmt: skip
    with pytest.raises(IncompleteRunError, match=r"of 40 rows .* all 24 prompts .* sampling.n"):
        synthesize(two)
    before = {row["sample_id"]: row["seed"] for row in samples(tmp_path)}
    assert len(before) == 2 * SEEDS
    assert list((tmp_path / "out/export").iterdir()), "what there is, is exported"
    five = config(
        tmp_path, synthesize={"expand": {}, **section}, prompt=prompt, sampling={"n": 5}
    )  # fmt: skip
    assert synthesize(five) == 0
    after = {row["sample_id"]: row["seed"] for row in samples(tmp_path)}
    assert len(after) == 5 * SEEDS
    assert before.items() <= after.items()
    assert "- sampling: `n` 5," in (tmp_path / "out/export/README.md").read_text()


def test_without_accepted_samples_there_is_no_export_unless_all_are_wanted(
    tmp_path: Path, seeds: str
) -> None:
    with pytest.raises(IncompleteRunError, match=r"no sample is accepted; the column rejected in"):
        synthesize(config(tmp_path, right=0))
    folders = {path.parent.name for path in (tmp_path / "out/export").rglob("*.parquet")}
    assert folders == {"rl"}, "a prompt that is never solved is one all the same"
    assert {row["rejected"] for row in samples(tmp_path)} == {"wrong"}
    everything = {"expand": {"how": ["Briefly", "In full"]}, "export": "all"}
    with pytest.raises(IncompleteRunError, match=r"no sample is accepted"):
        synthesize(config(tmp_path, right=0, synthesize=everything))
    chats = pq.read_table(tmp_path / "out/export/thinking")
    assert chats.num_rows == 2 * SEEDS


def test_without_expansion_or_target_the_input_is_read_as_it_is(tmp_path: Path, seeds: str) -> None:
    """Earlier turns stay; a row without a question is kept and rejected; repeated ones are marked."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": [*turns, {"role": "user", "content": "q2"}]}, {"messages": []}]
    (tmp_path / "in/a.parquet").unlink()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    simulated = {"tokens_median": 60, "tokens_sigma": 0, "seconds_per_token": 0, "right": 1}
    given = config(
        tmp_path, sampling={"n": 3}, synthesize={"expand": {}}, prompt={"template": None},
        answer={"format": "text", "reference_column": None},
        engine={"kind": "simulated", "device": "cpu", "simulated": simulated},
    )  # fmt: skip
    assert synthesize(given) == 0
    assert not (tmp_path / "out/prompts").exists()
    found = samples(tmp_path)
    assert Counter(row["rejected"] for row in found) == {None: 1, "duplicate": 2, "state": 3}
    assert [row["near_duplicate_of"] for row in found[:3]] == [None, *["a.00000:0:0"] * 2]
    [chat] = pq.read_table(tmp_path / "out/export/answers").to_pylist()
    assert [m["content"][:2] for m in chat["messages"]] == ["q", "a", "q2", "\\b"]
    _only_own_files_are_replaced(given, tmp_path / "out")


def _only_own_files_are_replaced(given: Synthesis, out: Path) -> None:
    for name in (
        "samples/notes.txt", "samples/x.00000.parquet", "export/answers/train-00007.parquet",
    ):  # fmt: skip
        (out / name).write_text("mine")
        with pytest.raises(OutputError, match=f"has not written, .*: {name}; move them, or choose"):
            synthesize(given)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "export/LICENSE").write_text("mine")
    (out / "__qwq/files.txt").unlink()  # as earlier versions left it
    (out / "export/answers-jsonl/train-00007.jsonl").write_text("outdated")
    assert synthesize(given) == 0
    assert not (out / "export/answers-jsonl/train-00007.jsonl").exists()
    assert (out / "export/LICENSE").read_text() == "mine"
    (out / "export/README.md").unlink()
    (out / "__qwq/files.txt").write_text("")
    (out / "export/README.md").write_text("mine")
    with pytest.raises(OutputError, match="export/README"):
        synthesize(given)


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"prompt": {"template": "{how} {c}"}}, InputError, "names c, but the input has only"),
        ({"answer": {"reference_column": "gold"}}, InputError, "reference_column is gold"),
        ({"input": {"path": "nowhere"}}, InputError, "nowhere: no Parquet, JSON lines"),
        ({"output": {"path": "{tmp}/in/out"}}, OutputError, "lies in input.path"),
        (
            {"output": {"path": "{tmp}/mine"}},
            OutputError,
            r"has not written, .*: samples/my.txt; move",
        ),
    ],
)
def test_what_can_not_run_is_one_message(
    tmp_path: Path, seeds: str, sections: dict[str, Any], error: type, message: str
) -> None:
    (tmp_path / "mine/samples").mkdir(parents=True)
    (tmp_path / "mine/samples/my.txt").write_text("mine")
    path = sections.get("output", {}).get("path", "")
    if path:
        sections = {"output": {"path": path.replace("{tmp}", str(tmp_path))}}
    with pytest.raises(error, match=message):
        synthesize(config(tmp_path, **sections))
    assert (tmp_path / "mine/samples/my.txt").exists()


def test_retry_does_again_what_ended_badly_and_needs_a_run(tmp_path: Path, seeds: str) -> None:
    with pytest.raises(OutputError, match=r"there is nothing to retry"):
        synthesize(config(tmp_path), retry=["truncated"])
    short = config(tmp_path, right=1, sampling={"max_tokens": 60}, thinking={"rescue": False})
    assert synthesize(short) == 0
    assert {row["rejected"] for row in samples(tmp_path)} == {None, "state"}
    longer = config(tmp_path, right=1, sampling={"max_tokens": 4096}, thinking={"rescue": False})
    assert synthesize(longer, retry=["truncated"]) == 0
    assert {(row["accepted"], row["attempt"]) for row in samples(tmp_path)} == {
        (True, 0),
        (True, 1),
    }
    assert "`sampling.max_tokens` 4096" in (tmp_path / "out/export/README.md").read_text()


@pytest.mark.long
def test_all_of_it_on_s3_as_a_command(tmp_path: Path, s3: S3Server) -> None:
    s3.filesystem().makedirs("synthesis", exist_ok=True)
    seeds, out = Storage("s3://synthesis/seeds"), "s3://synthesis/out"
    sink = pa.BufferOutputStream()
    rows = [{"number": i, "right": "42"} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), sink)
    seeds.put("a.parquet", sink.getvalue().to_pybytes())
    wanted = config(
        tmp_path, input={"path": seeds.url}, output={"path": out},
        synthesize={"expand": {"how": ["Briefly", "In full"]}, "accepted": 3},
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(wanted.model_dump(exclude_unset=True)))
    command = [sys.executable, "-m", "jobs.synthesize", str(tmp_path / "c.yaml")]
    before: list[str] = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("warning") <= 1
        names = [info.name for info in Storage(f"{out}/export").files()]
        assert {"README.md", "dataset_info.json", "thinking/train-00000.parquet"} <= set(names)
        assert before in ([], names)
        before = names
