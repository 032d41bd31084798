"""The share of a text in scripts that its prompt does not use; no I/O.

Models trained on several languages switch between them while they think: the first limitation that
QwQ-32B-Preview's model card names. Latin and Greek letters are never foreign: formulas, code and
names use them in every language.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import regex

# The scripts that Unicode recommends (UAX 31), by what is written together; all others are one.
_SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Gujarati",
    "Gurmukhi", "Han|Bopomofo", "Hangul", "Hebrew", "Hiragana|Katakana", "Kannada", "Khmer", "Lao",
    "Malayalam", "Myanmar", "Oriya", "Sinhala", "Tamil", "Telugu", "Thaana", "Thai", "Tibetan",
    "Latin|Greek|Common|Inherited",
)  # fmt: skip
# Where their letters stand in Unicode: not among Latin, Greek and symbols.
_MAY_BE_FOREIGN = re.compile("[\u0400-\u1dff\u2c00-\U0010ffff]")
_LETTER = regex.compile(r"\p{L}")
_NEVER_FOREIGN = len(_SCRIPTS)
_SCRIPT = regex.compile(
    "|".join(
        "(" + "|".join(rf"\p{{Script={name}}}" for name in names.split("|")) + ")"
        for names in _SCRIPTS
    )
)


def foreign_share(text: str | None, prompt: Callable[[], str]) -> float | None:
    """The share (0 to 1) of ``text``'s letters in scripts without a letter in the prompt.

    None if ``text`` has no letters. ``prompt`` returns the prompt's text; it is only called if
    ``text`` has letters of such scripts, because rendering all prompts again is slow.
    """
    if not text or not _LETTER.search(text):
        return None
    if not _MAY_BE_FOREIGN.search(text):
        return 0.0
    letters = _letters_by_script(text)
    if not letters.keys() - {_NEVER_FOREIGN}:
        return 0.0
    known = {_NEVER_FOREIGN, *_letters_by_script(prompt())}
    return sum(letters[script] for script in letters.keys() - known) / letters.total()


def _letters_by_script(text: str) -> Counter[int]:
    scripts = Counter[int]()
    for character, count in Counter(text).items():
        if character.isalpha():
            scripts[_script(character)] += count
    return scripts


@cache
def _script(letter: str) -> int:
    """The number of a letter's script; 0 if it is none of `_SCRIPTS`."""
    found = _SCRIPT.match(letter)
    return 0 if found is None else int(found.lastindex)
