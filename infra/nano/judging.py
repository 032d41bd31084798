"""Judging tasks of the small models: is an answer to a count or sum right, which of two is better.

The thinking says what the answer says (``It says 20.``), does the task itself, and compares the
numbers digit by digit up to the first that differs (``20 19 2!1 no``).
"""

import json
import random
from itertools import zip_longest

from infra.nano import tasks
from infra.nano.checks import near
from jobs.judge_prompt import JudgeSection
from pipeline.answers.json import Json
from pipeline.prompts.template import fill

YES_NO = ("no", "yes")
VERDICTS = {"right": None, "wrong": None}
RUBRIC = "Is the answer right? Work it out yourself first."
RUBRICS = (
    RUBRIC,
    "Judge whether the answer to the question is right.",
    "Check the answer. It is right if its number is the right one.",
)
PREFERENCE = "Which answer is better? Work it out yourself first. Say tie if both are as good."
PREFERENCES = (PREFERENCE, "Which answer is right, A or B? If both or none are, it is a tie.")


def judge_task(rng: random.Random) -> tasks.Task:
    """Judge one answer, or in half of the cases two."""
    prompt, lines, result = tasks.question(rng, 0.4)
    return judge(rng, prompt, lines, result, pairs=rng.random() < 0.5)


def judge(rng: random.Random, prompt: str, lines: str, result: int, pairs: bool) -> tasks.Task:
    """The task of judging one answer to a question, or two of them."""
    said = [claimed(rng, result) for _ in range(2 if pairs else 1)]
    names = ["A", "B"] if pairs else ["It"]
    spells = "\n".join(f"{name} says {n}." for name, n in zip(names, said, strict=True))
    right = [n == result for n in said]
    think = [spells, *lines.splitlines(), f"So it is {result}."]
    for number in said:
        think += compared(number, result)
    better = "tie" if right[0] == right[-1] else "AB"[right.index(True)]
    if pairs:
        think += [f"A {YES_NO[right[0]]} B {YES_NO[right[1]]}", f"So it is {better}."]
    reason = f"It is {result}."
    if pairs:
        verdict = {"reason": reason, "better": better}
    elif right[0]:
        verdict = {"reason": reason, "verdict": "right"}
    else:
        verdict = {"reason": f"It is {result}, not {said[0]}.", "verdict": "wrong"}
    return as_verdict(
        rng, prompt, [spoken(rng, number) for number in said], "\n".join(think), verdict
    )


def as_verdict(
    rng: random.Random, prompt: str, answers: list[str], think: str, verdict: dict[str, str]
) -> tasks.Task:
    """The task with the prompt that `jobs.judge` makes."""
    section = one_answer(rng.choice(RUBRICS)) if len(answers) == 1 else two(rng.choice(PREFERENCES))
    row = {"prompt": prompt, "answer": answers[0], "other": answers[-1]}
    content = f"{fill(section.template(), row)}\n{Json(section.form).suffix}"
    return tasks.Task("judge", content, think, json.dumps(verdict), verdict[section.value_name])


def one_answer(rubric: str = RUBRIC) -> JudgeSection:
    """The section that judges one answer."""
    return JudgeSection(rubric=rubric, verdicts=VERDICTS)


def two(rubric: str = PREFERENCE) -> JudgeSection:
    """The section that compares two answers."""
    return JudgeSection(rubric=rubric, against_column="other")


def claimed(rng: random.Random, result: int) -> int:
    """What an answer says: the result in 45 % of the cases, or something near it, or far."""
    draw = rng.random()
    if draw < 0.45:
        return result
    if draw < 0.7:
        return int(rng.choice(near(result)))
    digits = list(str(result))
    digits[rng.randrange(len(digits))] = rng.choice("123456789")
    return int("".join(digits)) if draw < 0.9 else rng.randrange(10 ** rng.randint(1, 5))


def spoken(rng: random.Random, number: int) -> str:
    """An answer with ``number`` in one of several forms."""
    return rng.choice(
        [f"The answer is \\boxed{{{number}}}."] * 3
        + [f'{{"answer": {number}}}', f"{number}", f"It is {number}."]
    )


def compared(said: int, result: int) -> list[str]:
    """A line for each digit of both numbers, with what is left of them, up to one that differs."""
    pairs = list(zip_longest(str(said), str(result), fillvalue="-"))
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs) - 1)
    lines = [
        f"{str(said)[i:] or '-'} {str(result)[i:] or '-'} {a}{'=' if a == b else '!'}{b}"
        for i, (a, b) in enumerate(pairs[: first + 1])
    ]
    lines[-1] += f" {YES_NO[said == result]}"
    return lines
