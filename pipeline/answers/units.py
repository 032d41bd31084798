r"""Units and bases of numbers; dates, times and ranges, which are no numbers; no I/O.

split_unit("5 cm")               # ("5", "cm")
split_unit(r"1.5\text{ million dollars}")         # ("1500000", "$")
split_unit("1010_2")             # ("1010", "base 2")
label("03/04/2024")              # "3/4/2024"
"""

import math
import re
from fractions import Fraction

from pipeline.answers.numbers import number

_SPELLINGS = {
    "km": "kilometer kilometers kilometre kilometres 千米 公里",
    "m": "meter meters metre metres 米",
    "cm": "centimeter centimeters centimetre centimetres 厘米",
    "mm": "millimeter millimeters millimetre millimetres",
    "mi": "mile miles",
    "ft": "foot feet",
    "in": "inch inches",
    "yd": "yard yards",
    "kg": "kilogram kilograms",
    "g": "gram grams",
    "nm": "nanometer nanometers nanometre nanometres",
    "mg": "milligram milligrams",
    "lb": "lbs",
    "oz": "ounce ounces",
    "ms": "millisecond milliseconds",
    "s": "sec secs second seconds",
    "min": "mins minute minutes 分钟",
    "h": "hr hrs hour hours 小时",
    "day": "days 天",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "L": "liter liters litre litres",
    "mL": "ml milliliter milliliters millilitre millilitres",
    "mph": "mi/h",
    "km/h": "kph kmh",
    "m/s": "",
    "$": "dollar dollars usd",
    "cent": "cents ¢",
    "€": "euro euros eur",
    "元": "",
    "岁": "",
    "个": "개",
    "人": "명",
    "cup": "cups",
    "gal": "gallon gallons",
    "deg": "degree degrees °",
    "degC": "℃ °C",
    "degF": "℉ °F",
    "N": "newton newtons",
    "J": "joule joules",
    "kJ": "",
    "W": "watt watts",
    "kW": "",
    "V": "volt volts",
    "A": "amp amps ampere amperes",
    "K": "kelvin",
    "Hz": "hertz",
    "Pa": "pascal pascals",
    "kPa": "",
    "eV": "",
    "mol": "mole moles",
    "Ω": "ohm ohms",
    "₹": "rupee rupees inr",
    "円": "yen jpy",
    "am": "a.m. a.m",
    "pm": "p.m. p.m",
}
_UNITS = {word: unit for unit, words in _SPELLINGS.items() for word in (unit, *words.split())}
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cubed": "3"}
_FACTORS = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "trillion": 10**12,
}  # fmt: skip
# What is looked at of the end of a text.
LONGEST_UNIT = 80
# Larger numbers are not multiplied.
MOST = 10**100
_BASES = {"two": "2", "three": "3", "eight": "8", "ten": "10", "sixteen": "16"}
_MONEY = re.compile(r"([+-]?)\s?(?:\\?(?:US\s?\\?)?([$€£¥₹])|(USD|EUR)(?=[\s\d]))\s?(?=[\d.])")
_TEXT = r"\\(?:text|textrm|mathrm|mbox|rm)\s?\{\s?([^{}]{1,40}?)\s?\}"
_LETTER = r"A-Za-z°€¢₹℃℉Ωµ\u4e00-\u9fff\uac00-\ud7af"
_TAIL = re.compile(
    rf"(?:{_TEXT}|(?<![A-Za-z\\])([{_LETTER}][{_LETTER}./]*(?: [A-Za-z/]+){{0,3}}))"
    r"(?:\s?\^\s?\{?\s?([23])\s?\}?)?$"
)
# Nouns that count things, in the plural.
_THINGS = re.compile(
    r"(?!less|times|plus|minus|others|tens|ones|[a-z]+(?:lions|dreds|sands|zens))[a-z]{2,}s"
    r"|people|men|women|children"
)
_FREE_LETTER = re.compile(r"(?<![\\A-Za-z])[A-Za-z]")
_DEGREES = re.compile(
    r"\s?\^\s?\{?\s?(?:\\circ|o(?![A-Za-z]))\s?\}?\s?(?:\\(?:text|mathrm)\s?\{\s?)?([CF]?)\s?\}?$"
)
# Functions of an angle, whose degrees are no unit of the result.
ANGLES = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])")
_BASE = re.compile(r"(\d+)\s?_\s?\{?\s?(?:\\text\s?\{)?\s?(\d+|[a-z]+)[\s}]*")
# Words behind a number that make it another one, or none.
_OTHER = re.compile(r"\\text\s?\{[^{}]*\b(?:or|to|not|more|less|fewer|than|least|most|between)\b|'")
_RANGE = re.compile(r"\d+(?:\.\d+)?(?:(?:-|\s?\\sim\s?)\d+(?:\.\d+)?)+|\d+([/.])\d+\1\d+")
_TIME = re.compile(r"(\d{1,2}):([0-5]\d)(:[0-5]\d)?")


def split_unit(text: str) -> tuple[str, str]:
    """A number (as `pipeline.answers.plain_text.tidy` has it) without its unit, and the unit.

    The unit has one spelling for all of its names; it is empty if there is none that is known.
    Multiples such as ``million`` are worked out.
    """
    if based := _BASE.fullmatch(text):
        return based[1], f"base {_BASES.get(based[2], based[2])}"
    if (degrees := _DEGREES.search(text)) and degrees.start() and not ANGLES.search(text):
        return text[: degrees.start()], f"deg{degrees[1]}"
    if money := _MONEY.match(text):
        symbol = money[2] or _UNITS[money[3].lower()]
        return split_unit(money[1] + text[money.end() :])[0], symbol
    found = _TAIL.search(text, max(0, len(text) - LONGEST_UNIT))
    head = text[: found.start()].rstrip() if found else ""
    count = number(head)
    if found is None or (count is None and not _is_formula(head)):
        return text, "%" if (count := number(text)) and count.is_percent else ""
    words, factor = (found[1] or found[2]).split(), Fraction(1)
    is_short = len(found[2] or "long") == 1 and found[2].isascii()
    if is_short and (count is None or text[found.start() - 1] != " "):
        return text, ""
    while words and words[0].casefold() in _FACTORS:
        factor *= _FACTORS[words.pop(0).casefold()]
    unit = _unit(words, found[3] or "") if words else ""
    if unit is None or factor == 1:
        return (text, "") if unit is None else (head, unit)
    if count is None or count.value is None:
        return text, ""
    value = count.value * factor
    is_short = abs(value.numerator) < MOST and value.denominator < MOST
    return (str(value), unit) if is_short else (text, "")


def _is_formula(head: str) -> bool:
    if "," in head or _FREE_LETTER.search(head):
        return False
    return head[-1:].isdigit() or head[-1:] in ("}", ")") or head.endswith(r"\pi")


def _unit(words: list[str], power: str) -> str | None:
    """The one spelling of a unit; None if it is not known."""
    powers = [_POWERS[word] for word in words if word in _POWERS]
    bare = [word for word in words if word not in _POWERS]
    per = "/".join(" ".join(bare).replace(" per ", "/").split("/"))
    parts = [
        _UNITS.get(part.strip()) or _UNITS.get(part.strip().casefold()) for part in per.split("/")
    ]
    known = _UNITS.get(per) or (None if None in parts else "/".join(filter(None, parts)))
    known = {"mi/h": "mph"}.get(known or "", known)
    if known is None and not power and len(words) == 1 and _THINGS.fullmatch(words[0]):
        return ""
    return None if known is None else f"{known}{''.join(powers) or power}"


def is_other(text: str) -> bool:
    r"""Whether words or primes in ``text`` make it no number: ``5\text{ or more}``, ``f'``."""
    return _OTHER.search(text) is not None


def label(text: str) -> str | None:
    """The one spelling of a date, a time or a range; None if ``text`` is none of these.

    ``12:30`` is a time and ``1:12`` a ratio: nobody writes ratios that are not in lowest terms.
    """
    if time := _TIME.fullmatch(text):
        hours, minutes = int(time[1]), int(time[2])
        is_ratio = time[3] is None and time[2][0] != "0" and math.gcd(hours, minutes) == 1
        return None if is_ratio or hours > 24 else f"{hours}:{time[2]}{time[3] or ''}"
    if _RANGE.fullmatch(text):
        return re.sub(r"(?<![\d.])0+(?=\d)", "", re.sub(r"\s?\\sim\s?", "-", text))
    return None
