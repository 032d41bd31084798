r"""Numbers as people and LaTeX write them, read exactly: no floating point, no computer algebra.

number("6.63e-34")               # exact, as are 1,234.5 and 3\cdot 10^{8}
number(r"1\frac{1}{2}")          # 3/2, as 1 1/2
number("50 %").is_percent        # 50, or 1/2
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

_PLAIN = r"[+-]?(?:\d{1,3}(?:(?:,|\{,\}| )\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+"
_DECIMAL = re.compile(rf"({_PLAIN})(?:[eE]([+-]?\d{{1,12}}))?")
_POWER_OF_TEN = re.compile(
    rf"(?:({_PLAIN})\s?(?:\\times|\\cdot|\*|x)\s?)?10\s?(?:\^|\*\*)\s?"
    r"(?:\{\s?([+-]?\d{1,12})\s?\}|\(\s?([+-]?\d{1,12})\s?\)|([+-]?\d{1,12}))"
)
_SIGNED = r"([+-]?)\s?"
_INTEGER = r"(\d{1,400})"
_FRACTION = re.compile(
    rf"{_SIGNED}(?:{_INTEGER}\s?(?=\\)|{_INTEGER} (?=\d))?"
    rf"(?:\(?([+-]?\d{{1,400}})\)?\s?/\s?\(?{_INTEGER}\)?"
    rf"|\\[dtc]?frac\s?(?:\{{\s?([+-]?\d{{1,400}})\s?\}}|(\d))\s?(?:\{{\s?{_INTEGER}\s?\}}|(\d)))"
)
_TOWER = re.compile(r"\d{1,400}(?:\s?(?:\^|\*\*)\s?\{?\s?\d{1,400}){1,8}[\s}]*")
_REPEATING = re.compile(
    r"([+-]?)(\d{0,400})\.(\d{0,400})(?:\\(?:overline|bar|dot)\s?\{?|\()(\d{1,400})[})]?"
)
_FACTORIAL = re.compile(r"(\d{1,400})\s?!")
_CURRENCY = re.compile(r"^([+-]?)\s?\\?[$€£¥]\s?")
_PERCENT = re.compile(r"\s?(?:\\?%|\bper ?cent|\bpercentage points?)$")
# More digits than any answer that means a number.
MOST_DIGITS = 10_000
LARGEST_FACTORIAL = 3000
# Exponents and factorials in a formula that take hours to compute.
_HUGE = re.compile(r"(?:\^|\*\*|[eE])\s*\{?\s*[+-]?\d{5,}|\d{5,}\s*!")
_TOWER_WITHIN = re.compile(r"\d+\s?(?:\^|\*\*)\s?\{?\s?\d+\s?(?:(?:\^|\*\*)\s?\{?\s?\d+[\s}]*)+")


@dataclass(frozen=True)
class Number:
    """A number as somebody wrote it.

    ``value``: exact; None if it has more than `MOST_DIGITS` digits. ``size``: about its number of
    digits, negative for tiny ones. ``digits``: how many significant ones were written, if it was
    written as a decimal fraction, else 0. ``is_percent``: a percent sign follows.
    """

    value: Fraction | None
    size: float
    digits: int = 0
    is_percent: bool = False
    spelling: str = ""

    @property
    def is_enormous(self) -> bool:
        """Whether it is too large even to tell its size."""
        return math.isinf(self.size)

    @property
    def unit(self) -> Fraction:
        """The value of one in the last digit that was written."""
        return Fraction(10) ** (math.floor(self.size) + 1 - self.digits)


def number(text: str) -> Number | None:
    """The number that ``text`` (as `pipeline.answers.plain_text.tidy` has it) is; None: none."""
    text = _CURRENCY.sub(r"\1", text)
    if bare := _PERCENT.sub("", text):
        found = (
            _decimal(bare)
            or _repeating(bare)
            or _fraction(bare)
            or _tower(bare)
            or _factorial(bare)
        )
        if found is not None and bare != text:
            return Number(found.value, found.size, found.digits, True, found.spelling)
        return found
    return None


def is_absurd(formula: str) -> bool:
    """Whether ``formula`` has exponents or factorials that take hours to compute."""
    towers = (_tower(found.group()) for found in _TOWER_WITHIN.finditer(formula))
    return _HUGE.search(formula) is not None or any(each and each.value is None for each in towers)


def _decimal(text: str) -> Number | None:
    if power := _POWER_OF_TEN.fullmatch(text):
        mantissa, *exponents = power.groups()
        exponent = next(filter(None, exponents))
    elif plain := _DECIMAL.fullmatch(text):
        mantissa, exponent = plain.groups()
    else:
        return None
    bare = re.sub(r"[^\d.+-]", "", mantissa or "1")
    exact = Decimal(f"{bare}E{exponent or 0}")
    size = exact.adjusted() if exact else 0
    is_short = abs(size) <= MOST_DIGITS
    digits = len(bare.replace(".", "").lstrip("+-0")) if "." in bare else 0
    # The same spelling for 1E20000 and 10E19999.
    sign, written, _ = exact.as_tuple()
    spelling = f"{sign}{''.join(map(str, written)).strip('0')}E{size}"
    return Number(Fraction(exact) if is_short else None, size, digits, spelling=spelling)


def _repeating(text: str) -> Number | None:
    r"""A decimal that repeats its last digits, such as ``0.1\overline{6}`` or ``0.1(6)``."""
    found = _REPEATING.fullmatch(text)
    if found is None:
        return None
    sign, whole, start, period = found.groups()
    tail = Fraction(int(period), 10 ** len(period) - 1) if period.strip("9") else Fraction(1)
    value = (int(f"{whole}{start}" or 0) + tail) / 10 ** len(start)
    return _exact(-value if sign == "-" else value)


def _fraction(text: str) -> Number | None:
    found = _FRACTION.fullmatch(text)
    if found is None:
        return None
    sign, whole, whole_2, *parts = found.groups()
    top, bottom = (int(part) for part in parts if part is not None)
    if bottom == 0 or (top < 0 and (whole or whole_2)):
        return None
    value = int(whole or whole_2 or 0) + Fraction(top, bottom)
    return _exact(-value if sign == "-" else value)


def _tower(text: str) -> Number | None:
    r"""A power of whole numbers, such as ``2^{10}`` or ``3^{10^{9}}``."""
    if _TOWER.fullmatch(text) is None or text.count("{") != text.count("}"):
        return None
    if text.count("^") + text.count("**") > 1 + text.count("{"):
        return None  # 2^3^4 is no LaTeX, and 2**3**4 has another order than 2^{3}^{4}
    *bases, exponent = map(int, re.findall(r"\d+", text))
    for base in reversed(bases):
        if base > 1 and exponent > MOST_DIGITS / math.log10(base):
            return Number(None, math.inf, spelling=re.sub(r"\s|\*\*|\^|[{}]", " ", text))
        exponent = base**exponent
    return _exact(Fraction(exponent))


def _factorial(text: str) -> Number | None:
    found = _FACTORIAL.fullmatch(text)
    if found is None:
        return None
    if len(found[1]) > 4 or int(found[1]) > LARGEST_FACTORIAL:
        return Number(None, math.inf, spelling=text.replace(" ", ""))
    return _exact(Fraction(math.factorial(int(found[1]))))


def _exact(value: Fraction) -> Number:
    return Number(value, 0.0)
