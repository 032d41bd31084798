"""Text and numbers cut to a length that people read; no I/O."""

import re

_SCALES = ((1e9, "billion"), (1e6, "million"))
_ERROR_CHARACTERS = 200


def shortened(text: str, max_characters: int) -> str:
    """``text`` with its middle left out if it is longer than ``max_characters``."""
    if len(text) <= max_characters:
        return text
    half = max_characters // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def error_kind(error: str) -> str:
    """The first line of ``error`` with numbers replaced by N, to count errors of one kind."""
    first_line = (error.strip().splitlines() or [""])[0]
    return re.sub(r"\d[\d,.]*", "N", first_line)[:_ERROR_CHARACTERS]


def three_digits(value: float) -> str:
    """``value`` to three significant digits; without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"


def in_words(count: float) -> str:
    """A count such as 12,400, 1.5 million or 2.3 billion."""
    for scale, name in _SCALES:
        if count >= scale:
            return f"{count / scale:,.1f} {name}"
    return f"{count:,.0f}"
