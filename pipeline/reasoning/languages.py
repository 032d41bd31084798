"""The share of a text in scripts that its prompt does not use; no I/O.

Models trained on several languages switch between them while they think: the first limitation that
QwQ-32B-Preview's model card names. Latin and Greek letters are never foreign: formulas, code and
names use them in every language.
"""

import re
from collections.abc import Callable

# Unicode ranges of the letters of widely used scripts.
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
_LISTED_LETTER = re.compile("[" + "".join(_SCRIPTS.values()) + "]")
_WORD_LETTER = re.compile(r"[^\W\d_]")


def foreign_share(text: str | None, prompt: Callable[[], str]) -> float | None:
    """The share (0 to 1) of ``text``'s letters in scripts without a letter in the prompt.

    None if ``text`` has no letters. ``prompt`` returns the prompt's text; it is only called if
    ``text`` has letters of such scripts, because rendering all prompts again is slow.
    """
    if not text or not _WORD_LETTER.search(text):
        return None
    if not _LISTED_LETTER.search(text):
        return 0.0
    prompt_text = prompt()
    foreign = [letter for letter in _LETTERS.values() if not letter.search(prompt_text)]
    letters = len(_WORD_LETTER.findall(text))
    return min(1.0, sum(len(letter.findall(text)) for letter in foreign) / letters)
