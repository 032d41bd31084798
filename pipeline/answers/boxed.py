r"""Formulas and numbers in ``\boxed{…}`` or plainly marked as the answer, compared by value."""

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from pipeline.answers import equality
from pipeline.answers.base import AnswerFormat, ShortForm
from pipeline.answers.marked import last_marked, last_sentence, only_value
from pipeline.answers.numbers import number
from pipeline.answers.plain_text import tidy
from pipeline.answers.references import Reading
from pipeline.answers.values import LONGEST_FORMULA

_BOX = re.compile(r"\\(?:f?boxed|fbox)(?:\s*\{|\s+(-?\d[\d,.]*(?<=\d)|[A-Za-z](?![A-Za-z])))")
# A brace, or an escaped character.
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WORKED = re.compile(r"^\s*#{4}[ \t]+(?=\S)", re.MULTILINE)


class Boxed(AnswerFormat):
    r"""The content of the last ``\boxed{…}``, else what is plainly marked. 1/2 equals 0.5.

    `pipeline.answers.equality` says which answers are equal.
    """

    suffix_name = "math"
    # Qwen's own words, from the model card.
    suffix = r"Please reason step by step, and put your final answer within \boxed{}."

    @property
    def short_form(self) -> ShortForm:
        """The inside of a box; braces inside it may end it several times."""
        return ShortForm(r"\boxed{", "}")

    def parse(self, answer: str) -> str | None:
        """The content of the last whole box; else the marked number or formula, or the only one."""
        return last_box(answer) or last_marked(answer) or only_value(answer)

    def read_reference(self, reference: object, kind: str = "") -> str | None:
        """A number, a formula or a few words; of a worked solution, its last line or box."""
        if isinstance(reference, Sequence) and not isinstance(reference, (str, bytes)):
            items = [self.read_reference(item) for item in reference]
            return ", ".join(filter(None, items)) or None if all(items) else None
        if self.is_missing(reference):
            return None
        if isinstance(reference, Decimal):
            return format(reference, "f")
        if isinstance(reference, float):
            return _float_text(reference)
        if isinstance(reference, int):  # and true and false
            return str(reference)
        return self._read_text(reference) if isinstance(reference, str) else None

    def _read_text(self, reference: str) -> str | None:
        found = self.parse(reference) or last_sentence(reference)
        if found is None and (worked := _WORKED.split(reference))[1:]:
            found = worked[-1].strip()
        text = reference.strip() if found is None else found
        return text if tidy(text[: LONGEST_FORMULA + 1]) and len(text) <= LONGEST_FORMULA else None

    def _reading(self, references: Sequence[object]) -> Reading:
        kinds = Counter(map(_kind, references))
        return Reading("", ", ".join(kind for kind, _ in kinds.most_common()) or "formulas")

    def matches(self, parsed: str, reference: object) -> bool | None:
        """Whether the two are equal in value; None if that takes too long to tell."""
        return equality.equal(parsed, str(reference))

    def group(self, values: Sequence[str]) -> tuple[list[list[int]], int]:
        """Divide ``values`` into groups that are equal in value."""
        return equality.group(values)


def _float_text(number: float) -> str:
    """``number`` without the noise of computing: 0.1 + 0.2 is 0.3, and not 0.30000000000000004."""
    text, rounded = str(number), f"{number:.15g}"
    return rounded if len(rounded) < len(text) - 3 else text


def _kind(reference: object) -> str:
    """The kind of a reference, for people."""
    if isinstance(reference, bool):
        return "true or false"
    if not isinstance(reference, str):
        return "numbers"
    if _WORKED.search(reference):
        return "worked solutions ending in #### N"
    if last_box(reference) is not None:
        return r"solutions with a \boxed{} answer"
    if number(tidy(reference[: LONGEST_FORMULA + 1])) is not None:
        return "numbers"
    return "formulas or short texts"


def last_box(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}``, its braces balanced; None if no box is whole."""
    boxes = {opening.end(): opening[1] for opening in _BOX.finditer(text)}
    if not boxes:
        return None
    bare = [(end, content) for end, content in boxes.items() if content is not None]
    found = max(((end - len(content), end) for end, content in bare), default=None)
    open_braces = list[int]()
    for brace in _BRACE.finditer(text, next(iter(boxes)) - 1):  # each brace once, however nested
        if brace.group() == "{":
            open_braces.append(brace.end())
        elif brace.group() == "}" and open_braces:
            begin = open_braces.pop()
            if begin in boxes and (found is None or begin > found[0]):
                found = begin, brace.start()
    return None if found is None else text[found[0] : found[1]].strip() or None
