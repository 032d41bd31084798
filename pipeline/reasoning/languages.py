"""How much of a text is in scripts that its prompt does not use; no I/O.

Models trained on several languages slip from one into another while they think (the first limit
that QwQ-32B-Preview's card names). Latin and Greek letters are never foreign: formulas, code and
names use them in every language.
"""

import re
from collections.abc import Callable

# Unicode blocks in which letters of widely used scripts lie.
_SCRIPTS = {
    "Han": r"\u2e80-\u2fdf\u3005-\u3007\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": r"\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Cyrillic": r"\u0400-\u052f\u1c80-\u1c8f",
    "Arabic": r"\u0620-\u064a\u066e-\u06d3\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefc",
    "Hebrew": r"\u05d0-\u05ea",
    "Devanagari": r"\u0904-\u0939\u0958-\u0961",
    "Bengali": r"\u0985-\u09b9",
    "Tamil": r"\u0b85-\u0bb9",
    "Thai": r"\u0e01-\u0e30\u0e40-\u0e46",
    "Georgian": r"\u10a0-\u10ff",
    "Armenian": r"\u0531-\u0556\u0561-\u0587",
}
_LETTERS = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_ANY = re.compile("[" + "".join(_SCRIPTS.values()) + "]")
_WORD_LETTER = re.compile(r"[^\W\d_]")


def foreign_share(text: str | None, prompt: Callable[[], str]) -> float | None:
    """The share, 0 to 1, of ``text``'s letters in scripts that the prompt has no letter of.

    None if there is no text, or none with letters. ``prompt``: gives its text, where that matters.
    """
    if not text or not _WORD_LETTER.search(text):
        return None
    if not _ANY.search(text):
        return 0.0
    own = prompt()
    foreign = [letter for letter in _LETTERS.values() if not letter.search(own)]
    letters = len(_WORD_LETTER.findall(text))
    return min(1.0, sum(len(letter.findall(text)) for letter in foreign) / letters)
