"""synthesize without Ray: pass rates, verifiers, required values, decontamination, every export."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import synthesize as job
from jobs.splits import split_of
from jobs.synthesize import synthesize
from jobs.synthesize_config import Synthesis
from pipeline.config.load import parse_as
from pipeline.errors import ConfigError, IncompleteRunError, InputError
from pipeline.output.summary import Summary
from pipeline.prompts.columns import PromptColumns
from tests.outputs import finish

SEEDS = 40
Trace = Callable[[int, int], dict[str, Any]]


def right_in(row: int) -> int:
    """How many of its four samples a seed has right."""
    return row % 5


def trace(row: int, sample: int) -> dict[str, Any]:
    is_right = sample < right_in(row)
    return {
        "think": f"Seed {row}, way {sample}.", "answer": f"It is {sample} of {row}.",
        "correct": is_right, "parsed": "7", "think_tokens": 10 * (sample + 1),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(run: Any, *_: Any) -> Summary:
        return finish(run, trace)

    monkeypatch.setattr(job, "generate", generate)


def config(tmp_path: Path, synthesize: dict[str, Any], **sections: Any) -> Synthesis:
    if not (tmp_path / "in").exists():
        (tmp_path / "in").mkdir()
        rows = [{"id": f"s{i}", "number": i, "gold": "7"} for i in range(SEEDS)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/a.parquet")
    base: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in")},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 8},
        "model": {"path": "qwq-nano"}, "sampling": {"n": 4},
        "prompt": {"template": "What is the number {number} called?", "system": "Be exact."},
        "answer": {"format": "boxed", "reference_column": "gold"},
        "engine": {"kind": "simulated", "device": "cpu"},
    }  # fmt: skip
    section = {"near_duplicate": None, **synthesize}
    return parse_as(Synthesis, {**base, **sections, "synthesize": section}, "config")


def samples(tmp_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "out/samples").to_pylist()
    return rows


def exported(tmp_path: Path, name: str, split: str = "train") -> list[dict[str, Any]]:
    folder, cache = str(tmp_path / "out/export"), str(tmp_path / "cache")
    return list(datasets.load_dataset(folder, name, split=split, cache_dir=cache))


# Pass rates


def test_pass_rate_is_the_share_of_right_samples_and_selects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synthesize(config(tmp_path, {"pass_rate": [0.5, 0.75]})) == 0
    reasons = {0.0: "wrong", 0.25: "too_hard", 0.5: None, 0.75: None, 1.0: "too_easy"}
    for row in samples(tmp_path):
        assert row["pass_rate"] == right_in(row["number"]) / 4
        assert row["passed"] == row["correct"]
        expected = reasons[row["pass_rate"]] if row["correct"] else "wrong"
        assert (row["rejected"], row["accepted"]) == (expected, expected is None)
    out = capsys.readouterr().out
    assert "prompts whose samples are right: 8 always, 24 at times, 8 never" in out
    assert {row["pass_rate"] for row in exported(tmp_path, "rl")} == {0.5, 0.75}
    assert synthesize(config(tmp_path, {"pass_rate": [0, 0.25]})) == 0  # judged anew
    assert Counter(row["rejected"] for row in samples(tmp_path))["too_easy"] == 8 * (2 + 3 + 4)


def test_more_samples_and_undecided_ones_change_the_pass_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed trace says nothing; a cut off one is no right answer."""
    states = {1: {"state": "failed", "correct": False}, 2: {"state": "truncated", "correct": False}}

    def generate(run: Any, *_: Any) -> Summary:
        return finish(run, lambda _, sample: {"correct": True, **states.get(sample, {})})

    monkeypatch.setattr(job, "generate", generate)
    assert synthesize(config(tmp_path, {})) == 0
    assert {row["pass_rate"] for row in samples(tmp_path)} == {2 / 3}
    assert [row["passed"] for row in samples(tmp_path)[:4]] == [True, None, False, True]


# Verifiers


def verify(sample: dict[str, Any]) -> Any:
    """Accepts odd numbers; cannot read 6; forgets to answer for 7."""
    if sample["number"] == 6:
        raise KeyError("no tests\nfor this one")
    return None if sample["number"] == 7 else sample["number"] % 2 == 1


def test_verifier_decides_and_its_failures_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config(tmp_path, {"verifier": f"{__name__}:verify"})
    assert synthesize(wanted) == 0
    for row in samples(tmp_path):
        number = row["number"]
        reason: str | None = "wrong"
        if row["correct"]:
            reason = "verifier_error" if number in (6, 7) else None if number % 2 else "verifier"
        assert row["rejected"] == reason
        assert row["passed"] == {"verifier_error": None, None: True}.get(reason, False)
    errors = {row["verifier_error"] for row in samples(tmp_path)}
    assert errors == {
        None,
        "KeyError: 'no tests\\nfor this one'",
        "it returned None, not True or False",
    }
    first = "the verifier failed for 3 samples, first for a.00000:6:0: KeyError"
    assert first in capsys.readouterr().out


def test_verifier_alone_gives_pass_rates_without_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(run: Any, *_: Any) -> Summary:
        cut = {"state": "truncated", "answer": None}
        return finish(run, lambda row, sample: cut if sample == 3 else {"answer": f"{row}{sample}"})

    monkeypatch.setattr(job, "generate", generate)
    wanted = config(
        tmp_path,
        {"verifier": f"{__name__}:verify", "pass_rate": [0.5, 1]},
        answer={"format": "text"},
    )
    assert synthesize(wanted) == 0
    rates = {row["number"]: row["pass_rate"] for row in samples(tmp_path)}
    assert (rates[1], rates[2], rates[6]) == (0.75, 0.0, 0.0)  # 6: only the cut off one is decided
    assert len(exported(tmp_path, "thinking")) == 19 * 3
    assert not (tmp_path / "out/export/rl").exists()  # there is no reference


# Required values


def judged(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    (tmp_path / "judged").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "judged/j.parquet")
    return str(tmp_path / "judged")


def test_judged_samples_are_joined_by_their_id(tmp_path: Path) -> None:
    assert synthesize(config(tmp_path, {})) == 0
    right = [row for row in samples(tmp_path) if row["accepted"]]
    values = [
        {"sample_id": row["sample_id"], "score": i % 5, "verdict": ("good", "bad")[i % 2]}
        for i, row in enumerate(right)
    ]
    where = judged(tmp_path, values[:-1])
    section = {"judged": where, "require": {"score": 2, "verdict": "good"}, "preference": ["score"]}
    assert synthesize(config(tmp_path, section)) == 0
    by_id = {row["sample_id"]: row for row in values[:-1]}
    for row in samples(tmp_path):
        value = by_id.get(row["sample_id"])
        expected = (
            "unjudged"
            if value is None
            else (None if value["score"] >= 2 and value["verdict"] == "good" else "judge")
        )
        assert row["rejected"] == (expected if row["correct"] else "wrong")
    pairs = exported(tmp_path, "preference")
    assert pairs
    for pair in pairs:
        assert pair["pair"] == "score"
        assert by_id[pair["id"]]["score"] == pair["chosen_score"] > pair["rejected_score"]
    judged(tmp_path, [*values, values[0]])
    with pytest.raises(InputError, match=r"has sample a.00000:1:0 twice"):
        synthesize(config(tmp_path, section))


def test_columns_of_the_input_can_be_required(tmp_path: Path) -> None:
    assert synthesize(config(tmp_path, {"require": {"number": 30}})) == 0
    assert {row["number"] >= 30 for row in samples(tmp_path) if row["accepted"]} == {True}
    for require, message in (
        ({"nowhere": 1}, r"require has nowhere, but the run's output has only"),
        ({"gold": 1}, r"gold is string in the run's output, and 1 is a number"),
        ({"number": True}, r"number is int64 .* True is true or false"),
        ({"number": "1"}, r"number is int64 .* '1' is text"),
    ):
        with pytest.raises(InputError, match=message):
            synthesize(config(tmp_path, {"require": require}))


def test_without_judgements_the_message_says_what_to_run(tmp_path: Path) -> None:
    where = judged(tmp_path, [{"sample_id": "other", "score": 1.5}])
    section = {"judged": where, "require": {"score": 1}, "accepted": 20}
    with pytest.raises(
        IncompleteRunError,
        match=r"0 samples are accepted, and 13 are not in synthesize.judged .*run the judge over ",
    ):
        synthesize(config(tmp_path, section))
    prompts = pq.read_table(tmp_path / "out/prompts").num_rows
    assert prompts == 8, "no further round while samples wait for the judge"


# Decontamination


def benchmark(tmp_path: Path, numbers: list[int]) -> str:
    path = tmp_path / "bench.jsonl"
    lines = [json.dumps({"question": f"what is the NUMBER {i} called"}) for i in numbers]
    path.write_text("\n".join(lines))
    return str(path)


def test_contaminated_prompts_are_not_generated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = config(tmp_path, {"benchmarks": [benchmark(tmp_path, [3, 4, 39])]})
    for _ in range(2):  # again: from the footers
        assert synthesize(wanted) == 0
        assert {row["number"] for row in samples(tmp_path)} == set(range(SEEDS)) - {3, 4, 39}
        out = capsys.readouterr().out
        assert "3 more prompts were not generated: contaminated, such as by " in out
        assert "bench.jsonl:0" in out
    assert (
        "left out for a question of a benchmark: 3"
        in (tmp_path / "out/export/README.md").read_text()
    )
    table = pq.read_table(tmp_path / "in/a.parquet")
    pq.write_table(table, tmp_path / "in/a.parquet", compression="gzip")  # another file, equal rows
    assert synthesize(wanted) == 0
    without = config(tmp_path, {})
    assert synthesize(without) == 0, "the run goes on with the prompts that it has"
    with pytest.raises(InputError, match=r"all 40 prompts have questions of .*bench.jsonl:0"):
        synthesize(
            config(
                tmp_path, {"benchmarks": [benchmark(tmp_path, list(range(SEEDS)))]},
                output={"path": str(tmp_path / "other"), "rows_per_part": 8},
            )
        )  # fmt: skip


def test_benchmark_that_is_named_later_rejects_what_is_there(tmp_path: Path) -> None:
    """Also with `export: all`, which has all else; and no traces are made anew."""
    assert synthesize(config(tmp_path, {})) == 0
    wanted = config(tmp_path, {"benchmarks": [benchmark(tmp_path, [4])], "export": "all"})
    assert synthesize(wanted) == 0
    assert not (tmp_path / "out/prompts").exists()
    for row in samples(tmp_path):
        is_met = row["number"] == 4
        assert row["contaminated_by"] == (f"{tmp_path}/bench.jsonl:0" if is_met else None)
        assert (row["rejected"] == "contaminated") == is_met
    assert len(exported(tmp_path, "thinking")) == 4 * (SEEDS - 1)
    assert not any("number 4 " in row["prompt"][-1]["content"] for row in exported(tmp_path, "rl"))


def test_target_counts_only_prompts_that_are_generated(tmp_path: Path) -> None:
    section = {"benchmarks": [benchmark(tmp_path, list(range(12)))], "accepted": 20}
    assert synthesize(config(tmp_path, section)) == 0
    rows = samples(tmp_path)
    assert min(row["number"] for row in rows) == 12
    assert sum(row["accepted"] for row in rows) >= 20


# Exports


def test_every_export_has_its_shape_and_its_split(tmp_path: Path) -> None:
    assert synthesize(config(tmp_path, {"validation": 0.3})) == 0
    by_id = {row["sample_id"]: row for row in samples(tmp_path)}
    sides = {name: set[str]() for name in ("train", "validation")}
    for split, ids in sides.items():
        for chat in exported(tmp_path, "thinking", split):
            ids.add(chat["seed_id"])
            assert by_id[chat["id"]]["id"] == chat["seed_id"]
        for pair in exported(tmp_path, "preference", split):
            ids.add(pair["seed_id"])
            chosen, rejected = by_id[pair["id"]], by_id[pair["rejected_id"]]
            assert (chosen["correct"], rejected["correct"]) == (True, False)
            assert (pair["pair"], pair["rejected_reason"]) == ("wrong", "wrong")
            assert chosen["number"] == rejected["number"]
            assert [m["role"] for m in pair["prompt"]] == ["system", "user"]
            for side, row in (("chosen", chosen), ("rejected", rejected)):
                text = f"<think>\n{row['think']}\n</think>\n\n{row['answer']}"
                assert pair[side] == [{"role": "assistant", "content": text}]
        for row in exported(tmp_path, "rl", split):
            ids.add(row["seed_id"])
            assert row["prompt"][1]["content"].startswith("What is the number ")
            assert row["solution"] == row["reward_model"]["ground_truth"] == "7"
            assert row["extra_info"]["split"] == split
            assert row["pass_rate"] == by_id[f"{row['id']}:0"]["pass_rate"]
    assert sides["train"].isdisjoint(sides["validation"])
    assert len(sides["train"] | sides["validation"]) == SEEDS
    indices = [row["extra_info"]["index"] for s in sides for row in exported(tmp_path, "rl", s)]
    assert sorted(indices) == list(range(SEEDS))
    _llama_factory_reads(tmp_path / "out/export")


def _llama_factory_reads(folder: Path) -> None:
    """As its converter of ``sharegpt`` does."""
    info = json.loads((folder / "dataset_info.json").read_text())
    assert set(info) == {
        f"synthetic_{config}{split}"
        for config in ("thinking", "answers", "preference") for split in ("", "_validation")
    }  # fmt: skip
    for name, entry in info.items():
        files = sorted((folder / entry["file_name"]).iterdir())
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        assert lines
        for line in lines:
            messages = line[entry["columns"]["messages"]]
            roles = [m[entry["tags"]["role_tag"]] for m in messages if m["role"] != "system"]
            assert roles == (["user"] if entry.get("ranking") else ["user", "assistant"])
            for side in ("chosen", "rejected") if entry.get("ranking") else ():
                assert line[entry["columns"][side]]["role"] == "assistant"
        assert entry.get("ranking", False) == ("preference" in name)


def test_files_of_a_split_that_is_gone_are_removed(tmp_path: Path) -> None:
    assert synthesize(config(tmp_path, {"validation": 0.3})) == 0
    assert list((tmp_path / "out/export").rglob("validation-*"))
    assert synthesize(config(tmp_path, {"preference": []})) == 0
    assert not list((tmp_path / "out/export").rglob("validation-*"))
    assert not list((tmp_path / "out/export").rglob("preference*/*"))


def test_split_follows_the_seed_and_not_how_it_is_asked() -> None:
    columns = PromptColumns(template="{how}, {question}")
    splits = [
        {
            split_of({"how": how, "question": text.format(i)}, columns, {"how"}, 0.1)
            for how in ("briefly", "in full")
            for text in ("what  is\n{}?", "what is {}?")
        }
        for i in range(2000)
    ]
    assert all(len(split) == 1 for split in splits)
    assert 150 < sum(split == {"validation"} for split in splits) < 250
    row = {"how": "x", "question": "y", "messages": [{"role": "user", "content": "z"}]}
    assert split_of(row, columns, {"how"}, None) == "train"
    by_messages = PromptColumns(messages="messages")
    assert split_of(row, by_messages, (), 0.5) == split_of(dict(row), by_messages, (), 0.5)
    asked = {
        split_of({"how": f"{i}"}, PromptColumns(template="{how}"), {"how"}, 0.5) for i in range(50)
    }
    assert asked == {"train", "validation"}


# The config


@pytest.mark.parametrize(
    ("synthesize", "sections", "message"),
    [
        ({"pass_rate": [0.9, 0.1]}, {}, r"lower bound of pass_rate, 0.9, is above the upper, 0.1"),
        ({"pass_rate": [0, 1.5]}, {}, r"pass_rate"),
        ({"pass_rate": [0, 0.5]}, {"sampling": {"n": 1}}, r"pass_rate needs several samples"),
        ({"pass_rate": [0, 0.5]}, {"answer": {}}, r"set answer.reference_column or"),
        ({"pass_rate": [0, 0.5]}, {"sampling": {"n": 4, "agree": 2}}, r"biased by sampling.agree"),
        ({"min_tokens": 9, "max_tokens": 8}, {}, r"lower bound of tokens, 9, is above"),
        ({"judged": "x"}, {}, r"judged needs require"),
        ({"validation": 1}, {}, r"validation"),
        ({"preference": ["shorter"]}, {}, r"preference"),
        ({"verifier": "nowhere"}, {}, r"nowhere must name a function as package.module:function"),
        ({"verifier": "nowhere:f"}, {}, r"nowhere:f can't be loaded"),
        ({"verifier": "jobs.accept:REASONS"}, {}, r"jobs.accept:REASONS is no function"),
    ],
)
def test_setting_without_a_sensible_meaning_is_refused(
    tmp_path: Path, synthesize: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, synthesize, **sections)
