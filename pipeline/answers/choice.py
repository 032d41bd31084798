"""The letter of a multiple-choice question; no I/O."""

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.answers.base import AnswerFormat, ShortForm
from pipeline.answers.boxed import last_box
from pipeline.answers.marked import TAGGED_ANSWER
from pipeline.answers.plain_text import plain
from pipeline.answers.references import Reading
from pipeline.answers.values import Value

# Where an answer is said: in the JSON field that the QwQ card's prompt asks for (with the quotes
# that models forget), after a colon, or in a sentence.
_FIELD = re.compile(
    r"""\b(?:answer|option|choice)\b(?:\\(?=["'])|["'”*_`\s])*+[:=：]""", re.IGNORECASE
)
_CHINESE = re.compile(
    r"(?<![不未])(?:答案|故选|应选|选择|所以选|因此选|本题选|正确选项|정답|正解)[*_\s]*+[是为选项：:】은는は]*+"
)
_SENTENCE = re.compile(
    r"\b(?:answer|option|choice)\b[*_\s]*+(?<=[*_\s])(?:is|(?:should|must|would|will)\s+be)\b"
    r"|\bI(?:'d|’d|\s+would|\s+will)?\s+(?:choose|pick|select)\b",
    re.IGNORECASE,
)
_RIGHT = re.compile(
    r"(?:^|[,.:;]\s|\b(?:so|therefore|thus|hence|option|choice|answer)\s)\s{0,4}[*_(\[]{0,4}"
    r"(?:(?i:option|choice|answer)\s+[*_(\[]{0,4})?([A-Z])[*_)\].]{0,4}\s+is\s+(?:the\s+)?"
    r"(?:correct|right|best)\b",
)
_CONDITION = re.compile(r"\b(?:if|suppose|assume|assuming)\b[^.]*$", re.IGNORECASE)
_OPENING = r"""(?:\\(?=["'(\[])|[\s"'“*_`$(（\[])*+"""
_CLOSING = r"""(?:\\(?=["')\]])|["'”*_`$)）\]}.])*"""
_LETTER = re.compile(
    rf"""[:：*_\s]*+(?:is\s+)?{_OPENING}(?:(?:option|choice|选项)(?![A-Za-z]))?{_OPENING}
    (?:\\(?:text|math)[a-z]*\{{{_OPENING})?([A-Za-z]){_CLOSING}(?![\w'’])\s*""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
# A letter that begins a phrase, a term or a formula: A matter, T cells, X-rays, C++, F = ma.
_PHRASE = re.compile(
    r"[A-Za-z](?:\s+(?!(?:as|based|because|but|by|due|for|given|is|or|and|since|so|the|which|with)\b)"
    r"[a-z]|[-–+#^]\S|#|\s?=)"
)
# A lower-case letter that is marked as an option.
_LOWER = re.compile(r"[a-z]\)|(?<=[(\[{*`])[a-z]|[b-hj][.\s]*$")
_ALTERNATIVE = re.compile(rf"(?:[,/、;&–\-]|or\b|and\b|或|和){_OPENING}[A-Z](?![\w'’])")
_FULL_WIDTH = {0xFF01 + i: 0x21 + i for i in range(94)}
_OPTION_LINE = re.compile(r"[\s*_\-]{0,8}\(?([A-Za-z])[).:](?=[\s*_])")
_LOWER_OPTION = re.compile(r"(?:\(([a-hj])\)|([a-hj])\)).*|([a-hj])[.:]?")
_LABEL = re.compile(r"(?:option|choice)\s+(?=\S{1,4}$|\S{0,2}[A-Z]\S{0,2}\s)", re.IGNORECASE)
# What is looked at behind a mark, and the longest line or box that is an option.
LONGEST_MARKED, LONGEST_OPTION = 80, 400
MOST_OPTIONS = 26
# How many times the smallest possible chance has to be exceeded before numbers count from 1.
CHANCE = 0.001


class Choice(AnswerFormat):
    """One letter, A to Z."""

    suffix_name = "choice"
    # Qwen's own words, from the model card.
    suffix = (
        "Please show your choice in the `answer` field with only the choice letter, "
        'e.g.,`"answer": "C"`.'
    )

    @property
    def short_form(self) -> ShortForm:
        """The letter in Qwen's field."""
        return ShortForm('"answer": "', '"', tokens=4)

    def parse(self, answer: str) -> str | None:
        """The letter of the last ``"answer": "C"``; else of the last box, a sentence or line.

        None too where several letters are said to be right.
        """
        answer = answer.translate(_FULL_WIDTH)
        marks = [*_FIELD.finditer(answer), *_CHINESE.finditer(answer)]
        ends = sorted((mark.end() for mark in marks), reverse=True)
        if (field := next(_said(answer, ends), None)) is not None:
            return field or None
        if (box := last_box(answer)) is not None:
            return option_letter(box)
        if tagged := TAGGED_ANSWER.search(answer):
            return option_letter(tagged[2])
        lines = [line for line in answer.splitlines() if line.strip()]
        said = {
            letter
            for line in (
                *(line[:LONGEST_OPTION] for line in lines[:1]),
                *(line[-LONGEST_OPTION:] for line in lines[-1:]),
            )
            for letter in (*_said(line, _sentences(line), is_field=False), *_right(line))
        }
        if said:
            return said.pop() or None if len(said) == 1 else None
        return _last_line(lines)

    def _reading(self, references: Sequence[object]) -> Reading:
        letters = [letter for cell in references if (letter := _letter(cell))]
        numbers = [n for cell in references if (n := _number(cell)) is not None]
        if len(letters) >= len(numbers):
            span = f" {min(letters)} to {max(letters)}" if letters else ""
            return Reading("letters", f"letters{span}")
        low, high, first = min(numbers), max(numbers), 0
        if low > 0:
            # By chance none of them is 0, if 0 stands for A.
            if low > 1 or high < 4 or (high / (high + 1)) ** len(numbers) > CHANCE:
                raise ValueError(
                    f"it has the numbers {low} to {high} in {len(numbers):,} sampled rows, and "
                    "either 0 or 1 may stand for A; write letters into the column"
                )
            first = 1
        kind = f"numbers from {first}"
        return Reading(kind, f"indices {low}..{high} ({first} = A)")

    def read_reference(self, reference: object, kind: str = "") -> str | None:
        """The letter, of an option's number or text; ``kind``: letters, or the number of A."""
        if self.is_missing(reference):
            return None
        if not kind.startswith("numbers from "):
            return _letter(reference)
        found = _number(reference)
        place = None if found is None else found - int(kind.removeprefix("numbers from "))
        return chr(ord("A") + place) if place in range(MOST_OPTIONS) and place is not None else None

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether both are the same letter."""
        return parsed.strip().upper() == str(reference).strip().upper()


def _said(text: str, ends: Iterable[int], is_field: bool = True) -> Iterator[str]:
    """The letters behind marks that end at ``ends``; empty text for several at once."""
    for end in ends:
        tail = text[end : end + LONGEST_MARKED]
        found = _LETTER.match(tail)
        if found is None or _PHRASE.match(tail, found.start(1)) is not None:
            continue
        if is_field or found[1].isupper() or _LOWER.match(tail, found.start(1)):
            is_alone = _ALTERNATIVE.match(tail, found.end()) is None
            yield found[1].upper() if is_alone else ""


def _right(line: str) -> list[str]:
    """The letters that ``line`` says are right, as in "Option B is correct"."""
    marks = _RIGHT.finditer(line)
    return [mark[1] for mark in marks if not _CONDITION.search(line, 0, mark.start(1))]


def _sentences(line: str) -> list[int]:
    """Where sentences begin to say the answer, those with an "if" left out."""
    marks = _SENTENCE.finditer(line)
    return [
        mark.end()
        for mark in marks
        if not _CONDITION.search(line, max(0, mark.start() - LONGEST_MARKED), mark.start())
    ]


def _last_line(lines: Sequence[str]) -> str | None:
    """The letter of an option that is the last of ``lines``, and no list of options."""
    found = option_letter(lines[-1]) if lines else None
    others = {option[1].upper() for line in lines[:-1] if (option := _OPTION_LINE.match(line))}
    return None if others - {found} else found


def option_letter(text: str) -> str | None:
    """The letter of an option such as ``C``, ``(C)``, ``**C) text**`` or ``Option C``."""
    if len(text) > LONGEST_OPTION:
        return None
    bare = text.strip("\"'“”*_`[]: \n").replace("*", "")
    if lower := _LOWER_OPTION.fullmatch(plain(bare)):
        return "".join(filter(None, lower.groups())).upper()
    return Value.read(_LABEL.sub("", bare)).letter


def _letter(reference: object) -> str | None:
    """The letter that a reference gives, also in lower case or in a sentence."""
    if not isinstance(reference, str):
        return None
    text = reference.strip()
    is_short = len(text) <= 4 and sum(character.isalpha() for character in text) == 1
    return option_letter(text.upper() if is_short else text) or Choice().parse(text)


def _number(reference: object) -> int | None:
    """The number that a reference is, if it is a small whole one."""
    if isinstance(reference, bool) or not isinstance(reference, (int, float, str)):
        return None
    try:
        number = float(reference)
    except ValueError:
        return None
    return int(number) if number in range(MOST_OPTIONS + 1) else None
