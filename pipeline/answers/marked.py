r"""Numbers and formulas that a text plainly marks as its answer, without a box; no I/O.

last_marked("**Answer:** 42")                    # "42"
last_marked("**Final Answer**\n\n$x = 5$")       # "$x = 5$"
last_marked("**Answer:** not clear")             # None: these are words
only_value("$x = 5$")                            # itself: there is nothing else
only_value("1, 2")                               # None: several numbers
last_sentence("So the answer is 42.")            # "42"
"""

import re

from pipeline.answers.numbers import number
from pipeline.answers.plain_text import tidy
from pipeline.answers.values import Value

# What is looked at of a line, and how much of the end of a text.
LONGEST_LINE, MOST_CHARACTERS = 400, 100_000
_HEADING = re.compile(
    r"[\s#*_>\-]{0,16}(?:#{4}[ \t]+(?!\D*answer)"
    r"|(?:the\s+)?(?:final\s+|correct\s+)?answer[\s*_]{0,8}[:：=]"
    r"|(?:the\s+)?final\s+answer[\s*_]{0,8}$|(?<=[#*])[ \t]*answer[\s*_]{0,8}$"
    r"|(?:最终|正确)?答案[\s*_]{0,8}(?:[:：是为]|$))(.*)",
    re.IGNORECASE,
)
# The end that the worked examples of a common prompt for mathematics have.
_HOPED = re.compile(
    r"\bfinal answer is[ :]{0,4}(.+?)\.? I hope it is correct\.?\s*$", re.IGNORECASE
)
# The whole answer in tags of its own at the end of a text, as prompts ask for.
TAGGED_ANSWER = re.compile(
    r"<((?:final[ _-]?)?(?:answer|solution|result|choice))>([^<>]*)</\1>[\s.。]*\Z", re.IGNORECASE
)
_SENTENCE = re.compile(r"\banswer\s+is\b\s{0,8}[:：]?", re.IGNORECASE)
_WRAPPED = re.compile(r"\$\$?[^$]+\$\$?|\\\(.+\\\)|\\\[.+\\\]")
_WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}")
_COMMAND = re.compile(r"\\[A-Za-z]")
_MATRIX = re.compile(r"\\(?:begin|end)\s?\{[a-z]{0,8}matrix\}")
# A display of a formula that stands on several lines.
_DISPLAY = re.compile(r"(\\\[|\$\$)[ \t]*\n+([^\n$]+)\n+[ \t]*(\\\]|\$\$)")
# Not one formula: half a box, other signs, an item of a list, numbers beside each other.
_SEVERAL = re.compile(r"box|[#?\"@]|^\s*(?:\d+[.)]|[-*•])\s|\d\s+[-+]?\d")


def last_marked(text: str) -> str | None:
    """The value of the last heading that marks one as the answer; None if there is none."""
    text = _DISPLAY.sub(r"\1\2\3", text[-MOST_CHARACTERS:])
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and (hoped := _HOPED.search(lines[-1][-LONGEST_LINE:])):
        return _value(hoped[1])
    for i in reversed(range(len(lines))):
        heading = _HEADING.match(lines[i][:LONGEST_LINE])
        if heading is not None:
            rest = heading[1].strip(" \t*_")
            value = _value(rest) if rest or i + 1 == len(lines) else _value(lines[i + 1])
            if value is not None:
                return value
    return None


def only_value(text: str) -> str | None:
    """The number or formula that is all of ``text``, or of its end in tags such as ``<answer>``.

    None for words and for several numbers.
    """
    tagged = TAGGED_ANSWER.search(text[-MOST_CHARACTERS:])
    bare = (tagged[2] if tagged else text[: LONGEST_LINE + 1]).strip()
    bare = _DISPLAY.sub(r"\1\2\3", bare)
    if len(bare) > LONGEST_LINE or "\n" in bare:
        return None
    value = _value(bare)
    if value is None or number(tidy(value)) is not None:
        return value
    short = Value.read(value)
    is_one = _SEVERAL.search(short.text) is None and short.text.isascii()
    return value if is_one and bool(short.brackets) >= bool(short.items) else None


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
    has_symbol = any(character.isdigit() for character in bare) or _COMMAND.search(bare)
    return bare if has_symbol and _WORD.search(_MATRIX.sub("", bare)) is None else None
