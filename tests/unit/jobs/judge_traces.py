"""Jobs that judge, and the traces of rows whose samples say given values."""

import json
from typing import Any

import pyarrow as pa

from jobs.judge import JudgeJob
from jobs.judge_answer import Judgement
from jobs.judge_prompt import JudgeSection
from pipeline.config.load import parse_as

VERDICTS = {"rubric": "Right?", "verdicts": ["right", "wrong"]}
SCORES = {"rubric": "How good?", "scores": [1, 5]}
PAIRS = {"rubric": "Which is better?", "against_column": "other"}
NAMES = {name: f"judge_{name}" for name in ("sample", "parsed", "vote", "state", "think", "answer")}


def job_of(judge: dict[str, Any] | None = None, **sections: Any) -> JudgeJob:
    data = {
        "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
        "judge": VERDICTS if judge is None else judge, **sections,
    }  # fmt: skip
    return parse_as(JudgeJob, data, "config")


def format_of(judge: dict[str, Any]) -> Judgement:
    return Judgement(JudgeSection.model_validate(judge).form)


def said(section: JudgeSection, value: str, reason: str) -> str:
    return json.dumps(
        {"reason": reason, section.value_name: int(value) if section.scores else value}
    )


def traces_of(
    judge: dict[str, Any], rows: list[list[str | None]], **columns: list[Any]
) -> pa.Table:
    """The traces of rows whose samples say these values; other columns a value for each row."""
    section, answers, made = JudgeSection.model_validate(judge), format_of(judge), []
    for i, values in enumerate(rows):
        vote, _ = answers.vote(values)
        for sample, value in enumerate(values):
            trace = {
                "sample": sample, "parsed": value, "vote": vote, "think": f"thought {sample}",
                "state": "unparsed" if value is None else "finished",
                "answer": None if value is None else said(section, value, f"reason {sample}"),
            }  # fmt: skip
            made.append(
                {
                    "prompt": "q", "answer": "a", "other": "b",
                    **{name: values[i] for name, values in columns.items()},
                    **{NAMES[name]: value for name, value in trace.items()},
                }
            )  # fmt: skip
    return pa.Table.from_pylist(made)
