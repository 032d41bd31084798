r"""Formulas and numbers in ``\boxed{…}``, compared by value."""

import re
from decimal import Decimal

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formulas import FORMULAS

# Longer text is not worth a comparison by computer algebra.
LONGEST_FORMULA = 400
_BOX = re.compile(r"\\f?boxed\s*\{")
# A brace, or an escaped character.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_POWER = re.compile(
    r"(?:([+-]?\d+(?:\.\d+)?)\s*\\(?:times|cdot)\s*)?10\s*\^\s*(?:\{\s*([+-]?\d{1,3})\s*\}|(\d))"
)
# Exponents and factorials that no answer means, and that take hours to compute.
_HUGE = re.compile(r"(?:\^|\*\*|[eE])\s*\{?\s*[+-]?\d{5,}|\d{5,}\s*!")


class Boxed(AnswerFormat):
    r"""The content of the last ``\boxed{…}``. 1/2 equals 0.5.

    Plain numbers are compared exactly, and `math_verify` compares formulas.
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
    boxes = {opening.end(): None for opening in _BOX.finditer(text)}
    if not boxes:
        return None
    found, open_braces = None, list[int]()
    for brace in _BRACE.finditer(text, next(iter(boxes)) - 1):  # each brace once, however nested
        if brace.group() == "{":
            open_braces.append(brace.end())
        elif brace.group() == "}" and open_braces:
            begin = open_braces.pop()
            if begin in boxes and (found is None or begin > found[0]):
                found = begin, brace.start()
    return None if found is None else text[found[0] : found[1]].strip() or None


def _same_value(expected: str, parsed: str) -> bool:
    if max(len(expected), len(parsed)) > LONGEST_FORMULA:
        return False
    numbers = _number(expected), _number(parsed)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if _HUGE.search(expected) or _HUGE.search(parsed):
        return False
    return FORMULAS.are_equal(_plain(expected), _plain(parsed))


def _plain(text: str) -> str:
    """``text``; a number with an exponent as its digits, because LaTeX takes e for Euler's."""
    number = _number(text)
    digits = "" if number is None else format(number, "f")
    return digits if 0 < len(digits) <= LONGEST_FORMULA else text


def _number(text: str) -> Decimal | None:
    """The value of a plain number, exactly, also of a power of ten; None for anything else."""
    if power := _POWER.fullmatch(text.strip()):
        mantissa, braced, bare = power.groups()
        return Decimal(f"{mantissa or 1}E{braced or bare}")
    found = _NUMBER.fullmatch(text.strip())
    return None if found is None else Decimal(found.group().replace(",", ""))
