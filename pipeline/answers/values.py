r"""What a short answer means: words, a number, a formula, a list of these, or an option; no I/O.

Value.read("a=-2, b=3").items         # -2, called a, and 3, called b
Value.read(r"\textbf{(B)}\ 5")        # option B, and its text, 5
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from pipeline.answers.numbers import number
from pipeline.answers.plain_text import plain, tidy
from pipeline.answers.units import is_other, label, split_unit

# Longer text is not worth a computer algebra system; much longer text is not even taken apart.
LONGEST_FORMULA, LONGEST_TEXT = 1000, 4000
_OPTION = re.compile(
    r"(?:(?i:option|choice)\s)?(?:(?:\(([A-Z])\)|([A-Z])\))[.:]?\s?(.*)|([A-Z])[.:]\s(.*)|([A-Z]))"
)
_NAME = r"\\?[A-Za-z]\w*(?:_\{?\w+\}?)?'?(?:\s?\(\s?\w\s?\))?"
_NAMED = re.compile(rf"({_NAME})\s?(?:=(?![=<>])|\\in(?![A-Za-z]))\s?(.+)")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[\s-][^\W\d_]+)*")
_AND = re.compile(
    r"\s?,?\s?(?:\\text\s?\{\s?,?\s?(?:and|or)\s?\}|(?<![\w\\{])(?:and|or)(?![\w}]))\s?|\s?;\s?"
)
_BRACKET = re.compile(r"\\[A-Za-z]+|\\.|[()\[\]{},]")
_OPENING = {"(": ")", "[": ")]", r"\{": r"\}", "{": "}"}
_CLOSING = (")", "]", r"\}", "}")
# Spaces that say nothing, unlike those between digits, as in 1 1/2; and braces that hold nothing
# together, unlike those of 2^{n+1} and 2^{10}.
_SPACES = re.compile(r"(?<![\d.,])\s+|\s+(?![\d.])")
_BRACES = re.compile(r"(?<=[\^_A-Za-z])\s?\{\s?(\w)\s?\}(?!\s?\w)")


@dataclass(frozen=True)
class Value:
    """A short answer, taken apart.

    ``text``: as `tidy` has it. ``name``: what it is said to be, as the ``x`` of ``x=5``. ``unit``:
    one that is known, else empty. ``body``: the rest. ``items``: the elements, if it is a list or a
    set. ``brackets``: around them, such as ``[)``; empty without.
    """

    text: str
    name: str | None
    body: str
    items: tuple["Value", ...] = ()
    brackets: str = ""
    unit: str = ""

    @classmethod
    def read(cls, text: str) -> "Value":
        """The value that ``text`` is."""
        if len(text) > LONGEST_TEXT:
            return cls(text.strip(), None, text.strip())
        return cls._read(tidy(text), 4)

    @classmethod
    def _read(cls, text: str, depth: int) -> "Value":
        named = _NAMED.fullmatch(text)
        name, body = (named[1], named[2]) if named else (None, text)
        bare, unit = split_unit(body)
        if unit or number(bare) is not None:  # a comma may divide thousands
            return cls(text, name, bare, unit=unit)
        brackets, inner = _outer_brackets(body)
        parts = _split(_AND.sub(",", inner)) if depth and len(text) <= LONGEST_FORMULA else [inner]
        if "," in text and name is not None and len(parts) > 1 and not brackets:
            name, body = None, text  # a=1, b=2
            parts = _split(_AND.sub(",", text))
        if not all(parts):
            return cls(text, name, body)
        if len(parts) > 1:
            items = tuple(cls._read(part, depth - 1) for part in parts)
            return cls(text, name, body, items, brackets)
        if depth and brackets in ("()", "{}"):
            return cls(text, name, inner)
        return cls(text, name, body)

    @cached_property
    def words(self) -> str:
        """Text that is the same for the same words and symbols."""
        if len(self.text) > LONGEST_TEXT:
            return self.text
        bare = plain(self.text)
        return (
            bare.casefold() if _WORDS.fullmatch(bare) else _SPACES.sub("", _BRACES.sub(r"\1", bare))
        )

    @cached_property
    def is_words(self) -> bool:
        """Whether it is text that no algebra is needed for."""
        bare = plain(self.text) if len(self.text) <= LONGEST_TEXT else ""
        if is_other(self.body[:LONGEST_FORMULA]):
            return True
        return _WORDS.fullmatch(bare) is not None and not (len(bare) < 4 and bare.islower())

    @cached_property
    def label(self) -> str | None:
        """The date, time or range that this is."""
        return label(self.body) if len(self.body) <= LONGEST_FORMULA else None

    @property
    def is_text(self) -> bool:
        """Whether it has no value that could be computed."""
        return self.is_words or self.label is not None

    @cached_property
    def letter(self) -> str | None:
        """The letter, if this is an option such as ``(B) 5``, or a letter alone."""
        found = self._option
        return None if found is None else next(filter(None, (found[i] for i in (1, 2, 4, 6))))

    @cached_property
    def without_letter(self) -> "Value":
        """The text of an option; the value itself if it is none."""
        found = self._option
        text = None if found is None else found[3] or found[5]
        return Value.read(text) if text else self

    @cached_property
    def _option(self) -> re.Match[str] | None:
        is_short = len(self.text) <= LONGEST_FORMULA
        return _OPTION.fullmatch(plain(self.text)) if is_short else None

    @property
    def names(self) -> tuple[str, ...]:
        """What its items are said to be, if all are said to be something."""
        names = tuple(item.name for item in self.items if item.name is not None)
        return names if len(names) == len(self.items) else ()

    def leaves(self) -> Iterator[str]:
        """The text of each element within, that of nested lists too."""
        if not self.items:
            yield self.body
        for item in self.items:
            yield from item.leaves()


def _outer_brackets(text: str) -> tuple[str, str]:
    """The brackets around all of ``text``, and what is within; empty if there are none."""
    opening = next((each for each in (r"\{", "(", "[", "{") if text.startswith(each)), None)
    closing = next((each for each in _CLOSING if opening and text.endswith(each)), None)
    if opening is None or closing is None or (opening in "{\\{") != (closing in "}\\}"):
        return "", text
    depth = 0
    for found in _BRACKET.finditer(text):
        depth += (found.group() in _OPENING) - (found.group() in _CLOSING)
        if depth == 0:
            is_whole = found.end() == len(text)
            inner = text[len(opening) : -len(closing)].strip()
            return (opening + closing, inner) if is_whole else ("", text)
    return "", text


def _split(text: str) -> list[str]:
    """``text`` at the commas that are in no brackets."""
    depth, start, parts = 0, 0, list[str]()
    for found in _BRACKET.finditer(text):
        depth += (found.group() in _OPENING) - (found.group() in _CLOSING)
        if found.group() == "," and depth == 0:
            parts.append(text[start : found.start()].strip())
            start = found.end()
    return [*parts, text[start:].strip()]
