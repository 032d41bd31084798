"""The values of formulas, and whether two are equal, by `math_verify`; only in a process apart.

Formulas without relations and sets are evaluated to 30 digits, those with variables at fixed
points. So equality is an equivalence and tiny values differ, where `math_verify` rounds at six
places. It compares sets and relations.
"""

import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from typing import Any

import math_verify
from math_verify.errors import TimeoutException
from sympy import Expr, Float, Rational, Symbol
from sympy.core.function import AppliedUndef

from pipeline.answers.units import ANGLES

# CPU time for one formula, and for all formulas or pairs of a request.
FORMULA_SECONDS = 2
REQUEST_SECONDS = 4.0
DIGITS = 30
# Numbers with small denominators are exact, however they were written.
LARGEST_DENOMINATOR = 10**9
# Where formulas with variables are evaluated: for the first variable, the second, and so on.
POINTS = ((Rational(13, 7), Rational(29, 11)), (Rational(-17, 5), Rational(31, 19)))
_DEGREES = re.compile(r"(?<![\d.])(\d{1,20}(?:\.\d{1,20})?)\s?\^\s?\{?\s?\\circ(?:\s?\})?")


def values(formulas: Sequence[str]) -> list[Any]:
    """The `value` of each formula; False if it took too long."""
    end = time.process_time() + REQUEST_SECONDS
    return [_within(end, value, formula, otherwise=False) for formula in formulas]


def are_equal(pairs: Sequence[Sequence[str]]) -> list[bool | None]:
    """Whether `math_verify` takes the two of each pair for equal; None if it took too long."""
    end = time.process_time() + REQUEST_SECONDS
    return [_within(end, _is_same, *pair, otherwise=None) for pair in pairs]


def value(formula: str) -> list[str] | None:
    """What a formula comes to; None if that is no number and no expression.

    ``["rational", "1/3"]``, ``["real", its digits]`` or ``["key", text]``: equal expressions have
    the same text.
    """
    parsed = _parsed(formula)
    if parsed is None or not isinstance(parsed, Expr) or isinstance(parsed, Symbol):
        return None
    exact = parsed.doit()
    if exact.atoms(AppliedUndef) or not isinstance(exact, Expr):
        return None
    exact = exact.xreplace({each: Rational(str(each)) for each in exact.atoms(Float)})
    if isinstance(exact, Rational):
        return ["rational", f"{exact.p}/{exact.q}"]
    symbols = sorted(exact.free_symbols, key=str)
    if symbols:
        numbers = [
            _complex(exact.xreplace({s: point[i % 2] + i for i, s in enumerate(symbols)}))
            for point in POINTS
        ]
        if None in numbers:
            return None
        return ["key", " ".join([*map(str, symbols), *map(str, numbers)])]
    found = _complex(exact)
    if found is None or found[1] != "0/1":
        return None if found is None else ["key", " ".join(found)]
    return ["rational" if "/" in found[0] else "real", found[0]]


def _complex(expression: Any) -> tuple[str, str] | None:
    """The real and the imaginary part of a constant, as text; None if it has no finite value."""
    number = expression.evalf(DIGITS + 10)
    if not isinstance(number, Expr):
        return None
    real, imaginary = number.as_real_imag()
    if not all(part.is_Number and part.is_finite for part in (real, imaginary)):
        return None
    return _text(real), _text(imaginary)


def _text(number: Any) -> str:
    if number == 0 or getattr(number, "_prec", 2) == 1:  # SymPy's sign that no digit is certain
        return "0/1"
    exact = Fraction(str(number))
    near = exact.limit_denominator(LARGEST_DENOMINATOR)
    if abs(near - exact) < abs(exact) / 10**DIGITS:
        return f"{near.numerator}/{near.denominator}"
    return str(Float(number, DIGITS))


@lru_cache(maxsize=256)
def _parsed(formula: str) -> Any:
    """The expression that `math_verify` reads; None if it reads none."""
    config = [math_verify.LatexExtractionConfig()]
    found = math_verify.parse(
        f"${_in_radians(formula).replace('**', '^')}$", config, parsing_timeout=0
    )
    return next((each for each in found if not isinstance(each, str)), None)


def _in_radians(formula: str) -> str:
    r"""``formula`` with the degrees in ``\sin 30^\circ`` in radians; they are dropped otherwise."""
    return _DEGREES.sub(r"(\\frac{\1\\pi}{180})", formula) if ANGLES.search(formula) else formula


def _is_same(one: str, other: str) -> bool:
    parsed = _parsed(one), _parsed(other)
    if None in parsed:
        return False
    return any(
        math_verify.verify(*pair, timeout_seconds=0, allow_set_relation_comp=True)
        for pair in (parsed, parsed[::-1])
    )


@contextmanager
def _cpu_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeoutException` in the body after so much CPU time: a busy machine is no reason."""

    def give_up(*_: Any) -> None:
        raise TimeoutException

    before = signal.signal(signal.SIGPROF, give_up)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _within(end: float, function: Any, *arguments: str, otherwise: bool | None) -> Any:
    """What ``function`` returns; ``otherwise`` if it takes long, or ``end`` has come."""
    if time.process_time() > end:
        return otherwise
    try:
        with _cpu_limit(FORMULA_SECONDS):
            return function(*arguments)
    except TimeoutException:
        return otherwise
    except Exception:  # what models write can raise anything in a computer algebra system
        return None if function is value else False
