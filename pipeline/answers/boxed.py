r"""Formulas and numbers in ``\boxed{…}``, compared by value; no I/O."""

import re

from pipeline.answers.base import AnswerFormat

# Longer text is not worth a comparison by computer algebra.
LONGEST_FORMULA = 400
_BOX = re.compile(r"\\f?boxed\s*\{")


class Boxed(AnswerFormat):
    r"""The content of the last ``\boxed{…}``. 1/2 equals 0.5.

    `math_verify` compares formulas. It must be called in a process's main thread, because it ends
    slow comparisons with a signal.
    """

    suffix_name = "math"
    # Qwen's own words, from the model card.
    suffix = r"Please reason step by step, and put your final answer within \boxed{}."

    def parse(self, answer: str) -> str | None:
        """The content of the last whole box."""
        return last_box(answer)

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether the two are the same text or equal in value; a reference may be boxed."""
        expected = str(reference).strip()
        same_text = super().matches(parsed, reference)
        return same_text or _same_value(last_box(expected) or expected, parsed)


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``, its braces balanced; None if no box is whole."""
    for opening in reversed(list(_BOX.finditer(text))):
        depth = 1
        for i in range(opening.end(), len(text)):
            escaped = text[i - 1] == "\\" and text[i - 2 : i - 1] != "\\"
            if text[i] in "{}" and not escaped:
                depth += 1 if text[i] == "{" else -1
            if not depth:
                return text[opening.end() : i].strip() or None
    return None


def _same_value(expected: str, parsed: str) -> bool:
    if max(len(expected), len(parsed)) > LONGEST_FORMULA:
        return False
    import math_verify

    try:
        return bool(
            math_verify.verify(*(math_verify.parse(f"${text}$") for text in (expected, parsed)))
        )
    except Exception:  # what models write can raise anything in a computer algebra system
        return False
