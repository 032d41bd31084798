"""Answers that machines read: taken out of the text, compared with a reference; no I/O.

An answer that is not in the agreed form is not guessed at: its trace is ``unparsed``.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.answers.json_schema import JsonForm, canonical, without_nulls

AnswerFormat = Literal["text", "boxed", "choice", "json"]

# A longer answer is no number or formula that is worth comparing as one.
LONGEST_FORMULA = 400
_BOX = re.compile(r"\\f?boxed\s*\{")
# The JSON field that the QwQ card's prompt asks for, with the quotes that models forget.
_FIELD = re.compile(
    r"""["'“]?\banswer\b["'”]?\s*[:=]\s*(?:is\s+)?["'“*`(\s]*([A-Z])["'”*`)]*(?![\w'’])"""
    r"""(?!(?<=[AI])\s+[a-z])""",  # an article or a pronoun
    re.IGNORECASE,
)
_LETTER = re.compile(r"""[\s"'*`(\[]*([A-Z])[\s"'*`)\].:]*""")
_SAID = re.compile(r"answer is:?\s*\$?([^\n$]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_IN_TEXT = re.compile(r"\\text(?:bf|rm|it)?\{([^{}]*)\}|\\mathrm\{([^{}]*)\}")


def parse(
    answer: str | None, answer_format: AnswerFormat, form: JsonForm | None = None
) -> str | None:
    """What ``answer`` says in ``answer_format``; None if it is not in that form.

    ``form``: that of JSON answers.
    """
    if answer is None:
        return None
    if answer_format == "boxed":
        return boxed(answer)
    if answer_format == "choice":
        return choice(answer)
    if answer_format == "json":
        assert form is not None
        return form.parse(answer)
    return answer


def boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``, its braces balanced; None if there is none whole."""
    for opening in reversed(list(_BOX.finditer(text))):
        depth = 1
        for i in range(opening.end(), len(text)):
            escaped = text[i - 1] == "\\" and text[i - 2 : i - 1] != "\\"
            if text[i] in "{}" and not escaped:
                depth += 1 if text[i] == "{" else -1
            if not depth:
                return text[opening.end() : i].strip() or None
    return None


def choice(text: str) -> str | None:
    r"""The chosen letter, A to Z: of the last ``"answer": "C"``, box, or line that is a letter."""
    if fields := _FIELD.findall(text):
        return str(fields[-1]).upper()
    if (box := boxed(text)) is not None:
        plain = _IN_TEXT.sub(lambda found: found[1] or found[2] or "", box)
        found = _LETTER.fullmatch(plain)
        return found[1] if found else None
    lines = [line for line in text.splitlines() if line.strip()]
    found = _LETTER.fullmatch(lines[-1]) if lines else None
    return found[1] if found else None


def qwen_answer(raw: str) -> str:
    r"""What Qwen's own math evaluation takes for the answer of an output, guesses included.

    It looks behind ``\n</think>\n\n``, in the whole text where that is missing: at the last box,
    then behind "answer is", then at the last number.
    """
    _, marker, answer = raw.partition("\n</think>\n\n")
    text = answer if marker else raw
    if (box := boxed(text)) is not None:
        return box
    if said := _SAID.findall(text):
        return str(said[-1]).strip().rstrip(".")
    numbers = _NUMBER.findall(text.replace(",", ""))
    return str(numbers[-1]) if numbers else ""


def is_correct(parsed: str | None, reference: object, answer_format: AnswerFormat) -> bool | None:
    """Whether ``parsed`` says the same as ``reference``; None if there is no reference.

    Formulas are compared by `math_verify`, which must be called in a process's main thread: it
    ends what takes too long by a signal. A JSON reference is a value, or JSON text of one.
    """
    if reference is None:
        return None
    if parsed is None:
        return False
    if answer_format == "json":
        return parsed in _as_json(reference)
    expected = str(reference).strip()
    if parsed.strip() == expected:
        return True
    if answer_format == "choice":
        return parsed.upper() == (choice(expected) or expected).upper()
    if answer_format == "boxed":
        return _same_formula(boxed(expected) or expected, parsed)
    return False


def vote(answers: Sequence[str | None], answer_format: AnswerFormat) -> tuple[str | None, float]:
    """The answer that most samples of a row agree on, and their share of all samples.

    Formulas agree if they are equal in value. Of answers with as many samples the earliest counts;
    None and 0 where no sample has an answer.
    """
    groups: list[tuple[str, int]] = []
    for answer, count in Counter(answer for answer in answers if answer is not None).items():
        for i, (other, size) in enumerate(groups):
            # JSON answers are canonical: those that say the same are the same text.
            if answer_format != "json" and is_correct(answer, other, answer_format):
                groups[i] = (other, size + count)
                break
        else:
            groups.append((answer, count))
    if not groups:
        return None, 0.0
    winner, size = max(groups, key=lambda group: group[1])
    return winner, size / len(answers)


def _as_json(reference: object) -> Iterator[str]:
    """What ``reference`` is as JSON: text may be JSON or the value itself.

    Objects of a column have all the same keys, null where there was none.
    """
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        yield canonical(reference)
        yield canonical(without_nulls(reference))
    if isinstance(reference, str):
        with contextlib.suppress(ValueError, RecursionError):
            yield canonical(json.loads(reference))


def _same_formula(expected: str, found: str) -> bool:
    if max(len(expected), len(found)) > LONGEST_FORMULA:
        return False
    import math_verify

    try:
        return bool(
            math_verify.verify(*(math_verify.parse(f"${text}$") for text in (expected, found)))
        )
    except Exception:  # what models write can raise anything in a computer algebra system
        return False
