"""The tasks of the small models: what is taught where thinking is closed early."""

import json
import random
import re

import pytest

from infra.nano import checks, closed, tasks

MAKERS = [tasks.count_task, tasks.add_task, tasks.choice_task, tasks.json_task, tasks.label_task]


@pytest.mark.parametrize("make", MAKERS)
def test_after_all_of_the_thinking_the_early_answer_is_the_right_one(make) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(1)
    for _ in range(300):
        task = make(rng)
        assert closed.early_answer(task, task.think) == task.answer


def test_early_answers_are_what_the_thinking_has_come_to() -> None:
    rng = random.Random(1)
    count = tasks.Task("count", "", "", "The answer is \\boxed{3}.", "3")
    for think, so_far in (("st", 0), ("st s=s 1\nt", 1), ("st s=s 1\nt t!s", 1)):
        assert closed.early_answer(count, think) == f"The answer is \\boxed{{{so_far}}}."
    add = tasks.as_json(rng, "", "", 1005)
    [value] = json.loads(
        closed.early_answer(add, "899 7 0: 8+7+0=15 5\n99 - 1: 9+0+1=10 05")
    ).values()
    assert value == 5
    choice = tasks.choose(rng, "", "", 7)
    for think, letter in (
        ("", "A"),
        ("So it is 7.\nA) 2!", "B"),
        ("A) 7=7\nSo it is A.\nWait", "A"),
        ("A) 2!7\nB) 3!7\nC) 7=7", "C"),
    ):
        assert closed.early_answer(choice, think) == f'"answer": "{letter}"'
    assert closed.early_answer(tasks.loop_task(rng), "Wait, let") == closed.LOOPED


@pytest.mark.parametrize("make", MAKERS)
def test_thinking_goes_on_after_its_first_result(make) -> None:  # type: ignore[no-untyped-def]
    rng, mended, spoiled = random.Random(2), 0, 0
    for _ in range(300):
        task = make(rng)
        attempts = re.split("|".join(map(re.escape, checks.DOUBTS)), task.think)
        assert 2 <= len(attempts) <= 6
        first, last = (closed.early_answer(task, a) for a in (attempts[0], task.think))
        assert last == task.answer
        right = re.search(rf"\b{task.expected}\b", last) is not None
        mended += right and first != last
        spoiled += not right and len(attempts) > 1
    assert mended > 30
    assert 0 < spoiled < 30


def test_thinking_is_cut_before_words_of_doubt_more_often_than_by_chance() -> None:
    rng, think = random.Random(3), "2+3=5\nSo it is 5.\nWait, is that right?\nSo it is 5."
    cuts = [closed.cut(rng, think) for _ in range(300)]
    assert all(think.startswith(one) for one in cuts)
    assert 90 < sum(one.endswith("5.\n") for one in cuts) < 200


def test_short_answers_begin_as_probes_ask_for_them() -> None:
    for answer, opening in (
        (r"The answer is \boxed{12}.", r"\boxed{"),
        ('"answer": "C"', '"answer": "'),
        ('{"count": 3}', '{"count": '),
        (closed.LOOPED, ""),
    ):
        assert closed.divided(answer)[0] == opening
        assert answer.endswith("".join(closed.divided(answer)))


def test_json_tasks_ask_for_what_they_answer() -> None:
    rng = random.Random(1)
    right = 0
    for _ in range(300):
        task = tasks.json_task(rng)
        schema = json.loads(task.prompt.partition("matches this schema: ")[2])
        [(name, value)] = json.loads(task.answer or "").items()
        assert [name] == schema["required"]
        right += value == int(task.expected or "")
    assert 270 < right < 300  # a last check spoils some
