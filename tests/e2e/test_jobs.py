"""The jobs as their configs are, on the real engine; each is one engine start."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.e2e.command import NOISE, ROOT, python_m


def _run(name: str, folder: Path, *settings: str) -> str:
    job, overrides = name.replace("-", "_"), [f"output.path={folder}", *settings]
    sets = [word for override in overrides for word in ("--set", override)]
    done = python_m(f"jobs.{job}", f"configs/{name}.yaml", *sets)
    assert done.returncode == 0, done.stderr
    assert not NOISE.search(done.stderr), done.stderr
    return done.stdout


def test_label(tmp_path: Path) -> None:
    texts = pq.read_table(ROOT / "configs/label-texts").to_pylist()
    chosen = [row for i, row in enumerate(texts) if row["text"] is None or i % 5 < 2]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(chosen), tmp_path / "in/a.parquet")
    printed = _run(
        "label",
        tmp_path / "out",
        f"input.path={tmp_path / 'in'}",
        "sampling.n=4",
        "sampling.agree=2",
    )
    rows = pq.read_table(tmp_path / "out/labels").to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in chosen]
    [unlabeled] = [row for row in rows if row["text"] is None]
    assert (unlabeled["label"], unlabeled["review"]) == (None, "failed")
    gold = [row for row in rows if row["team"] is not None and row["text"] is not None]
    right = sum(row["label"] == row["team"] for row in gold)
    assert right >= 0.6 * len(gold), right
    assert {row["label"] for row in rows} == {"billing", "delivery", "account", "other", None}
    assert {row["confidence"] < 1 for row in rows} == {True, False}
    review = pq.read_table(tmp_path / "out/review.parquet").to_pylist()
    assert 0 < len(review) == sum(row["review"] is not None for row in rows)
    assert re.search(rf"\| all rows \| {len(gold)} \| \d+\.\d% \| 0\.\d+ \|", printed)


@pytest.mark.long
def test_judge(tmp_path: Path) -> None:
    answers = pq.read_table(ROOT / "configs/judge-answers").to_pylist()
    printed = _run("judge", tmp_path, "sampling.n=3", "sampling.agree=2")
    rows = pq.read_table(tmp_path / "judged").to_pylist()
    assert [row["id"] for row in rows] == [row["id"] for row in answers]
    [unanswered] = [row for row in rows if row["answer"] is None]
    assert (unanswered["verdict"], unanswered["reason"]) == (None, "no answer")
    judged = [row for row in rows if row["answer"] is not None]
    right = sum(row["verdict"] == row["verdict_by_people"] for row in judged)
    assert right >= 0.6 * len(judged), right
    assert {row["verdict"] for row in judged} == {"right", "wrong"}
    assert all(re.match(r"It is \d+", row["reason"]) for row in judged)
    assert re.search(rf"\| all rows \| {len(judged)} \| \d+\.\d% \| 0\.\d+ \|", printed)


def test_synthesize(tmp_path: Path) -> None:
    _run("synthesize", tmp_path, "synthesize.accepted=8")
    samples = pq.read_table(tmp_path / "samples").to_pylist()
    accepted = [row for row in samples if row["accepted"]]
    assert len(accepted) >= 8
    assert all(row["correct"] for row in accepted)
    cache = str(tmp_path / "cache")
    splits = load_dataset(str(tmp_path / "export"), "thinking", cache_dir=cache)
    chats = [chat for split in splits.values() for chat in split]
    assert len(chats) == len(accepted)
    question, answer = chats[0]["messages"]
    assert question["role"] == "user"
    assert re.match(r"What is \d+ (\+|plus) \d+\?", question["content"])
    assert re.fullmatch(r"(?s)<think>\n.*\n</think>\n\nThe answer is .*", answer["content"])
