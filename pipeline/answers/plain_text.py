r"""One spelling for the many ways in which people and models write the same short text; no I/O.

tidy("１\u2009234")              # "1 234"
tidy(r"\[5\,\text{cm}\]")        # r"5 \text{cm}"
plain(r"**\mathbf{C}**")         # "C"
"""

import re
import unicodedata

# Commands that change how their argument looks, not what it means.
_STYLE = re.compile(
    r"\\(?:text(?:bf|rm|it|sf|tt|normal)?|math(?:bf|rm|it|sf|tt|bb|cal)?|mbox|hbox|bold(?:symbol)?"
    r"|bm|operatorname|f?box(?:ed)?|underline)\s?\{([^{}]*)\}"
)
MOST_NESTED = 8
_SPACE = re.compile(
    r"(?<!\\)\\[,;:>! ]|~|\\(?:q?quad|thinspace|displaystyle|left|right)(?![A-Za-z])"
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\[", r"\]"), (r"\(", r"\)"), ("**", "**"), ("`", "`"))
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
# A range, such as 67~75, also with an en dash.
_RANGE = re.compile(r"(?<=\d)\s?[–~∼〜]\s?(?=\d)")
_SAME = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‑": "-", "﹣": "-",
     "、": ",", "×": r"\times ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ",
     "∞": r"\infty ", "∪": r"\cup ", "∈": r"\in ", "≈": r"\approx ", "√": r"\sqrt ",
     "°": r"^\circ ", "½": r"\frac12 ", "％": "%", "。": ".", "∅": r"\emptyset ", "…": r"\ldots "}
)  # fmt: skip
# Other names of one symbol.
_NAMES = re.compile(
    r"(?:\\(varnothing|dots[cbm]?|cdots|langle|rangle|leqslant|geqslant|lbrace|rbrace)(?![A-Za-z])"
    r"|(?<![A-Za-z\\])(pi|infinity)(?![A-Za-z])|(?<!\.)(\.{3})(?!\.))\s?"
)
_SYMBOLS = {
    "varnothing": r"\emptyset ", "langle": "(", "rangle": ")", "leqslant": r"\le ",
    "geqslant": r"\ge ", "lbrace": r"\{", "rbrace": r"\}", "pi": r"\pi ", "infinity": r"\infty ",
}  # fmt: skip
_ABOUT = re.compile(r"\\(?:approx|thickapprox)\s?")
_BARE_STYLE = re.compile(r"(\\math(?:bb|bf|rm|cal)) ?([A-Za-z])(?![A-Za-z])")


def tidy(text: str) -> str:
    """``text`` without wrappers and odd characters, single spaces, no final period."""
    text = _SUPERSCRIPT.sub(lambda found: f"^{{{found.group().translate(_DIGITS)}}}", text)
    text = "".join(map(_character, text))
    text = _RANGE.sub(r"\\sim ", text).translate(_SAME)
    text = _NAMES.sub(_symbol, _BARE_STYLE.sub(r"\1{\2}", text))
    text = " ".join(_SPACE.sub(" ", text.replace(r"\!", "")).split())
    for _ in range(MOST_NESTED):
        text, before = _unwrapped(text), text
        if text == before:
            break
    return text


def plain(text: str) -> str:
    r"""``text`` as `tidy` has it, and without styles such as ``\text`` and ``\mathbf``."""
    for _ in range(MOST_NESTED):
        text, before = tidy(_STYLE.sub(r" \1 ", text)), text
        if text == before:
            break
    return text


def _symbol(found: re.Match[str]) -> str:
    return _SYMBOLS.get(found[1] or found[2], r"\ldots ")


def _character(character: str) -> str:
    if character.isascii():
        return character
    category = unicodedata.category(character)
    if category == "Zs":
        return " "
    if category == "Cf":  # it has no width
        return ""
    has_ascii = unicodedata.east_asian_width(character) == "F" or category == "Nd"
    return unicodedata.normalize("NFKC", character) if has_ascii else character


def _unwrapped(text: str) -> str:
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1].rstrip()
    text = _ABOUT.sub("", text, count=1) if _ABOUT.match(text) else text
    text = text[:-1].rstrip() if len(text) > 1 and text[-1] in ",;" else text
    text = text.removesuffix("\\\\").rstrip() or text
    for opening, closing in _WRAPPERS:
        inner = text[len(opening) : -len(closing)]
        is_wrapped = text.startswith(opening) and text.endswith(closing) and inner.strip()
        if is_wrapped and opening not in inner and closing not in inner:
            return inner.strip()
    return text
