"""Judging on the simulated engine: the files beside the traces, resume, retry, both orders."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.judge import JudgeJob, judge
from pipeline.config.load import parse_as
from pipeline.errors import ConfigError, IncompleteRunError, OutputError
from pipeline.output.reader import read_traces
from pipeline.schema import OUR_COLUMNS
from tests.conftest import MakeConfig, write_shards

ENGINE = {
    "kind": "simulated", "device": "cpu", "block_rows": 4,
    "simulated": {"tokens_median": 20, "seconds_per_token": 0},
}  # fmt: skip


def _job(folder: Path, judging: dict[str, Any], **sections: Any) -> JudgeJob:
    data = {
        "input": {"path": str(folder / "in")}, "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"}, "engine": ENGINE, "sampling": {"n": 3},
        "judge": {"rubric": "Right?", **judging}, **sections,
    }  # fmt: skip
    return parse_as(JudgeJob, data, "config")


def _answers(folder: Path, rows: int = 6) -> list[dict[str, Any]]:
    """Traces with columns such as a run's own, the first without an answer."""
    made = [
        {"prompt": f"question {i}", "answer": f"{i}" if i else None, "other": "9", "state": "mine",
         "think": "mine", "sample": i, "gold": "right"}
        for i in range(rows)
    ]  # fmt: skip
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(made), folder / "in/a.parquet")
    return made


def test_judgements_are_written_beside_the_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = _answers(tmp_path), tmp_path / "out"
    log = tmp_path / "log"
    engine = {**ENGINE, "simulated": {**ENGINE["simulated"], "log": str(log)}}  # type: ignore[dict-item]
    verdicts = {"verdicts": ["right", "wrong"], "gold_column": "gold"}
    job = _job(tmp_path, verdicts, engine=engine)
    assert judge(job) == 0
    printed = capsys.readouterr().out
    found = pq.read_table(out / "judged").to_pylist()
    assert [{name: row[name] for name in rows[0]} for row in found] == rows, "the input's columns"
    assert (found[0]["verdict"], found[0]["reason"]) == (None, "no answer")
    for row in found[1:]:
        assert row["verdict"] in ("right", "wrong")
        assert row["reason"].isdigit(), "as the simulated engine fills a text"
        assert (
            row["judge_agreement"] == pytest.approx(2 / 3, abs=1e-6) or row["judge_agreement"] == 1
        )
        assert row["judge_state"] == "finished"
        assert row["judge_think"]
    for trace in read_traces(job.traces):
        if trace["judge_parsed"] is not None:
            assert json.loads(trace["judge_answer"])["verdict"] == trace["judge_parsed"]
    asked = {json.loads(line)["id"].split(":")[1] for line in log.read_text().splitlines()}
    assert len(asked) == 5, "the row without an answer took tokens"
    report = (out / "report.md").read_text()
    assert report.startswith("# Judgements of 6 rows\n")
    assert "not judged: 1 rows without an answer" in report
    assert report in printed
    assert judge(job, ["failed"]) == 0
    assert judge(job) == 0
    assert pq.read_table(out / "judged").to_pylist() == found
    (out / "judged/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"has not written, .*: judged/notes.txt; move them"):
        judge(job)
    assert (out / "judged/notes.txt").read_text() == "mine"


def test_two_answers_are_compared_in_both_orders_and_the_same_command_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _answers(tmp_path)
    job, out = _job(tmp_path, {"against_column": "other"}), tmp_path / "out"
    assert judge(job) == 0
    printed = capsys.readouterr().out
    assert "prefer the first place" in printed
    assert "report.md, traces/, traces-swapped/" in printed
    found = pq.read_table(out / "judged").to_pylist()
    assert (found[0]["better"], found[0]["reason"]) == (None, "no answer")
    # The simulated engine's answer depends on the seed alone: it always prefers the same place.
    for row in found[1:]:
        both = (row["better_a_first"], row["better_b_first"])
        assert both in (("A", "B"), ("B", "A"), ("tie", "tie"))
        assert row["consistent"] == (both == ("tie", "tie"))
        assert row["better"] == "tie"
        assert row["judge_samples"] == 6
    (out / "traces-swapped").rename(tmp_path / "lost")
    assert judge(job) == 0
    assert pq.read_table(out / "judged").to_pylist() == found


def test_a_run_s_output_is_judged_as_it_is(make_config: MakeConfig, tmp_path: Path) -> None:
    from pipeline.execution.run import run

    write_shards(tmp_path / "in", [4])
    config = make_config(sampling={"n": 2}, answer={"format": "boxed"})
    run(config)
    traces = list(read_traces(config.output.path))
    job = _job(
        tmp_path, {"scores": [1, 5]}, input={"path": config.output.path},
        output={"path": str(tmp_path / "judged")},
    )  # fmt: skip
    assert judge(job) == 0
    found = pq.read_table(tmp_path / "judged/judged").to_pylist()
    carried = {name: f"stage1_{name}" if name in OUR_COLUMNS else name for name in traces[0]}
    assert [{name: row[carried[name]] for name in traces[0]} for row in found] == traces
    assert {row["score"] for row in found} <= {1, 2, 3, 4, 5}
    assert all(0 <= row["score_spread"] <= 4 for row in found)


def test_another_rubric_is_another_run(tmp_path: Path) -> None:
    _answers(tmp_path, 2)
    verdicts = {"verdicts": ["right", "wrong"]}
    assert judge(_job(tmp_path, verdicts)) == 0
    with pytest.raises(OutputError, match=r"prompt\.template"):
        judge(_job(tmp_path, {**verdicts, "rubric": "Is it polite?"}))
    renamed = {**verdicts, "rename": {"verdict": "mark"}, "review_below": 0.1}
    assert judge(_job(tmp_path, renamed)) == 0, "what is only made of traces may change"
    assert "mark" in pq.read_table(tmp_path / "out/judged").column_names


def test_rows_that_all_lack_an_answer_are_no_success(tmp_path: Path) -> None:
    _answers(tmp_path, 1)
    with pytest.raises(IncompleteRunError, match="answer is null"):
        judge(_job(tmp_path, {"verdicts": ["right", "wrong"]}))
    assert pq.read_table(tmp_path / "out/judged")["reason"].to_pylist() == ["no answer"]


def test_columns_are_checked_before_anything_starts(tmp_path: Path) -> None:
    _answers(tmp_path, 1)
    with pytest.raises(ConfigError, match="set one of verdicts, scores and against_column"):
        _job(tmp_path, {})
    with pytest.raises(Exception, match=r"judge\.reference_column is solution, but the input"):
        judge(_job(tmp_path, {"scores": [1, 5], "reference_column": "solution"}))
    assert not (tmp_path / "out").exists()
