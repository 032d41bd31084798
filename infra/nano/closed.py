"""Thinking that is closed early, and what qwq-nano learns to answer then; no I/O."""

import json
import random
import re

from infra.nano.tasks import Task

LOOPED = "I went round in circles."


def early_answer(task: Task, think: str) -> str:
    """The answer to ``task`` if its thinking is closed after ``think``, at any point.

    What was concluded last is the answer. Before the first conclusion, a very small model can only
    read it off nearby tokens. A count or sum is the result so far on the last line (0 if there is
    none), which is correct only after all lines. A choice is the first option that no line has
    ruled out, a guess unless the comparisons were complete. A label is the last named team, or
    ``other``. A loop admits that it looped. All other answers are unchanged.
    """
    if task.answer is None:
        return LOOPED
    if task.kind == "choice":
        found = re.findall(r"^So it is ([A-D])\.|^([A-D])\) \d+=", think, re.MULTILINE)
        ruled_out = len(re.findall(r"^[A-D]\) \d+!", think, re.MULTILINE))
        return f'"answer": "{"".join(found[-1]) if found else "ABCD"[min(ruled_out, 3)]}"'
    if task.kind == "label":
        teams = re.findall(r"(?: \(|So it is )(billing|delivery|account|other)\b", think)
        return json.dumps({"label": teams[-1] if teams else "other"})
    if task.kind in ("count", "add", "json"):
        results = re.findall(r"So it is (\d+)\.", think)
        results = results or re.findall(r"(?:[=!]\w+|: 1) (\d+)", think)
        return re.sub(r"\d+", str(int(results[-1]) if results else 0), task.answer)
    return task.answer


def cut(rng: random.Random, think: str) -> str:
    """The begin of ``think``: up to words of doubt, if it has any, in 60 % of the cases."""
    doubts = [match.end() for match in re.finditer(r"\n(?=Wait|Hmm|But|Alternatively|Let)", think)]
    is_before_doubt = doubts and rng.random() < 0.6
    return think[: rng.choice(doubts) if is_before_doubt else rng.randint(0, len(think))]


def divided(answer: str) -> tuple[str, str]:
    """The opening of a short answer, as a probe gives it, and the rest."""
    match = re.fullmatch(
        r"(?:The answer is |Done: )?(\\boxed\{|\"answer\": \"|\{\"\w+\": )(.*)", answer
    )
    return (match[1], match[2]) if match else ("", answer)
