r"""Numbers and formulas that a text plainly marks as its answer, without a box; no I/O.

last_marked("**Answer:** 42")                    # "42"
last_marked("**Final Answer**\n\n$x = 5$")       # "$x = 5$"
last_marked("**Answer:** not clear")             # None: these are words
last_sentence("So the answer is 42.")            # "42"
"""

import re

from pipeline.answers.numbers import number
from pipeline.answers.plain_text import tidy

# What is looked at of a line, and how much of the end of a text.
LONGEST_LINE, MOST_CHARACTERS = 400, 100_000
_HEADING = re.compile(
    r"[\s#*_>\-]{0,16}(?:#{4}[ \t]+(?!\D*answer)"
    r"|(?:the\s+)?(?:final\s+|correct\s+)?answer[\s*_]{0,8}[:：=]"
    r"|(?:the\s+)?final\s+answer[\s*_]{0,8}$|(?:最终|正确)?答案[\s*_]{0,8}(?:[:：是为]|$))(.*)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"\banswer\s+is\b\s{0,8}[:：]?", re.IGNORECASE)
_WRAPPED = re.compile(r"\$\$?[^$]+\$\$?|\\\(.+\\\)|\\\[.+\\\]")
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")


def last_marked(text: str) -> str | None:
    """The value of the last heading that marks one as the answer; None if there is none."""
    lines = [line for line in text[-MOST_CHARACTERS:].splitlines() if line.strip()]
    for i in reversed(range(len(lines))):
        heading = _HEADING.match(lines[i][:LONGEST_LINE])
        if heading is not None:
            rest = heading[1].strip(" \t*_")
            value = _value(rest) if rest or i + 1 == len(lines) else _value(lines[i + 1])
            if value is not None:
                return value
    return None


def last_sentence(text: str) -> str | None:
    """The value of a last line that ends in "the answer is …"; None if there is none."""
    lines = text[-MOST_CHARACTERS:].rstrip().splitlines()
    _, *found = _SENTENCE.split(lines[-1][-LONGEST_LINE:]) if lines else [""]
    return _value(found[-1]) if found else None


def _value(text: str) -> str | None:
    """``text`` without emphasis, if it is a number or a formula and nothing else."""
    bare = text[:LONGEST_LINE].strip().strip("*_`").strip().rstrip(".。").strip("*_`").strip()
    if not bare:
        return None
    if number(tidy(bare)) is not None:
        return bare
    if _WRAPPED.fullmatch(bare):
        return bare
    has_digit = any(character.isdigit() for character in bare)
    return bare if has_digit and _WORD.search(bare) is None else None
