"""The tasks of the small models: what is taught where thinking is closed early."""

import json
import random

import pytest

from infra.nano import tasks

MAKERS = [tasks.count_task, tasks.add_task, tasks.choice_task, tasks.json_task, tasks.label_task]


@pytest.mark.parametrize("make", MAKERS)
def test_after_all_of_the_thinking_the_early_answer_is_the_right_one(make) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(1)
    for _ in range(300):
        task = make(rng)
        assert tasks.early_answer(task, task.think) == task.answer


def test_early_answers_are_what_the_thinking_has_come_to() -> None:
    rng = random.Random(1)
    count = tasks.Task("count", "", "", "The answer is \\boxed{3}.", "3")
    for think, so_far in (("st", 0), ("st s=s 1\nt", 1), ("st s=s 1\nt t!s", 1)):
        assert tasks.early_answer(count, think) == f"The answer is \\boxed{{{so_far}}}."
    add = tasks.as_json(rng, "", "", 1005)
    [value] = json.loads(
        tasks.early_answer(add, "899 7 0: 8+7+0=15 5\n99 - 1: 9+0+1=10 05")
    ).values()
    assert value == 5
    choice = tasks.choose(rng, "", "", 7)
    for think, letter in (("", "A"), ("So it is 7.\nA) 2!", "B"), ("A) 2!7\nB) 3!7\nC) 7=7", "C")):
        assert tasks.early_answer(choice, think) == f'"answer": "{letter}"'
    assert tasks.early_answer(tasks.loop_task(rng), "Wait, let") == tasks.LOOPED


def test_json_tasks_ask_for_what_they_answer() -> None:
    rng = random.Random(1)
    for _ in range(300):
        task = tasks.json_task(rng)
        schema = json.loads(task.prompt.partition("matches this schema: ")[2])
        assert json.loads(task.answer or "") == {schema["required"][0]: int(task.expected or "")}
