"""The judging tasks of the small models, and the demo's answers."""

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from infra.nano import demo_answers, judging
from jobs.judge import JudgeJob
from jobs.judge_answer import Judgement
from pipeline.config.load import load_as
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages

ROOT = Path(__file__).parents[3]


def test_the_small_model_learns_the_prompt_that_the_job_sends() -> None:
    run = load_as(JudgeJob, ROOT / "configs/judge.yaml").run
    row = {"prompt": "What is 2 + 3?", "answer": "5"}
    columns = PromptColumns(template=run.prompt.template)
    [message] = row_messages(row, columns, None, run.suffix_text)
    learnt = {
        judging.as_verdict(random.Random(i), row["prompt"], ["5"], "", {"verdict": "right"}).prompt
        for i in range(20)
    }
    assert message["content"] in learnt


@pytest.mark.parametrize("pairs", [False, True])
def test_answers_of_tasks_are_judgements_that_follow_from_the_numbers(pairs: bool) -> None:
    section = judging.two() if pairs else judging.one_answer()
    answers, rng, seen = Judgement(section.form), random.Random(1), set()
    for _ in range(100):
        task = judging.judge(rng, "What is 2 + 3?", "", 5, pairs)
        assert answers.parse(task.answer or "") == task.expected
        assert json.loads(task.answer or "")["reason"].startswith("It is 5")
        assert ("5=5" in task.think) or pairs or task.expected == "wrong"
        seen.add(task.expected)
    assert seen == set(section.values)


def test_the_demo_s_answers_are_those_that_the_module_writes() -> None:
    rng = random.Random(11)
    rows = [demo_answers.row(rng, number) for number in range(demo_answers.ROWS)]
    assert pq.read_table(ROOT / "configs/judge-answers").to_pylist() == rows
    assert sum(row["answer"] is None for row in rows) == 1
    for name, values in (("verdict", judging.VERDICTS), ("better", ("A", "B", "tie"))):
        assert {row[f"{name}_by_people"] for row in rows} == {*values, None}
