r"""Which short answers are equal. Symmetric: neither of two answers is the reference.

equal("0.5", r"\frac{1}{2}")                      # True
equal("-2,-2", "a=-2, b=-2")                      # True
group(["x<3", "2", r"(-\infty,3)"])                # [[0, 2], [1]], and none given up

Numbers are compared exactly; formulas by their values, and the rest by `math_verify`, both in a
process that can be killed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

from pipeline.answers.formulas import FORMULAS
from pipeline.answers.groups import Groups
from pipeline.answers.numbers import Number, is_absurd, number
from pipeline.answers.values import LONGEST_FORMULA, Value

# A decimal fraction with so many digits may stand for a value that has no end, such as 1/3.
CLOSE_DIGITS = 6
# What `math_verify` passes over in a list.
ELLIPSIS = r"\ldots"


@dataclass(frozen=True)
class Formula:
    """A formula that is no plain number; ``key`` is the same for all that are equal.

    ``value``: of a real number without variables, to 30 digits.
    """

    key: str
    value: Fraction | None


class Unknown:
    """A formula that takes too long to read."""


UNKNOWN = Unknown()
# None: text, a relation or a set.
Meaning = Number | Formula | Unknown | None


def equal(one: str, other: str) -> bool | None:
    """Whether the two have the same value; None: telling that takes too long."""
    groups, given_up = group([one, other])
    return len(groups) == 1 or (None if given_up else False)


def group(texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """Divide ``texts`` into groups of equal values; also how many of them were given up.

    A group has the positions of its texts. All that a chain of equal pairs links are together, so
    the groups do not depend on the order. A text that was given up may belong to another group.
    """
    values = [Value.read(text) for text in texts]
    groups = Groups(len(values))
    first = dict[str, int]()
    for i, value in enumerate(values):
        groups.join(first.setdefault(value.words, i), i)
    pairs = list(combinations(first.values(), 2))
    meanings = _meanings(values[i] for i in first.values()) if pairs else {}
    verdicts = {(i, k): _same(values[i], values[k], meanings) for i, k in pairs}
    for (i, k), verdict in verdicts.items():
        if verdict:
            groups.join(i, k)
    given_up = set[int]()
    to_ask = list[tuple[int, int]]()
    for i, k in (pair for pair, verdict in verdicts.items() if verdict is None):
        unknown = [n for n in (i, k) if any(map(_is_unknown, _within(values[n], meanings)))]
        if groups.root(i) != groups.root(k):
            given_up.update(unknown)
            to_ask += [] if unknown else [(i, k)]
    answers = FORMULAS.are_equal([(values[i].text, values[k].text) for i, k in to_ask])
    for (i, k), answer in zip(to_ask, answers, strict=True):
        if answer:
            groups.join(i, k)
        elif answer is None:
            given_up.add(k)
    return groups.lists(), len(given_up)


def _meanings(values: Iterable[Value]) -> dict[str, Meaning]:
    """What the elements within ``values`` mean, by text."""
    meanings = dict[str, Meaning]()
    formulas = list[str]()
    for value in values:
        for part in {value, value.without_letter}:
            for text in part.leaves():
                meanings[text] = number(text) if len(text) <= LONGEST_FORMULA else None
                if meanings[text] is None and not Value.read(text).is_text:
                    formulas.append(text)
    for text in formulas:
        if len(text) > LONGEST_FORMULA or is_absurd(text):
            meanings[text] = UNKNOWN
    formulas = [text for text in dict.fromkeys(formulas) if meanings[text] is None]
    for text, found in zip(formulas, FORMULAS.values(formulas), strict=True):
        meanings[text] = _formula(found)
    return meanings


def _formula(found: Sequence[str] | bool | None) -> Meaning:
    """What the process said about a formula."""
    if not found:
        return UNKNOWN if found is False else None
    assert not isinstance(found, bool)
    kind, text = found
    if kind == "rational":
        return Number(Fraction(text), 0.0)
    return Formula(text, Fraction(text) if kind == "real" else None)


def _within(value: Value, meanings: Mapping[str, Meaning]) -> list[Meaning]:
    return [meanings[text] for text in value.without_letter.leaves()]


def _is_unknown(meaning: Meaning) -> bool:
    return isinstance(meaning, Unknown) or (isinstance(meaning, Number) and meaning.is_enormous)


def _same(one: Value, other: Value, meanings: Mapping[str, Meaning]) -> bool | None:
    """Whether the two are equal; None: their elements do not tell."""
    if one.words == other.words:
        return True
    if one.letter and other.letter:
        return one.letter == other.letter
    one, other = one.without_letter, other.without_letter
    if one.words == other.words:
        return True
    if one.name and other.name and one.name != other.name:
        return False
    if one.items and len(one.items) == len(other.items):
        return _same_lists(one, other, meanings)
    if one.items or other.items:
        return _may_be_equal(one, other, meanings)
    if one.unit and other.unit and one.unit != other.unit:
        return False
    if one.is_text or other.is_text:
        return one.label is not None and one.label == other.label
    return _same_meaning(meanings[one.body], meanings[other.body])


def _same_lists(one: Value, other: Value, meanings: Mapping[str, Meaning]) -> bool | None:
    """Whether two lists of as many items are equal."""
    if not _brackets_fit(one, other):
        return False
    names = [set(each.names) for each in (one, other)]
    is_ordered = bool({one.brackets, other.brackets} - {"", r"\{\}", "{}"})
    if all(len(each) > 1 for each in names) and names[0] != names[1]:
        return False
    if is_ordered or sum(len(each) > 1 for each in names) == 1:
        pairs = zip(one.items, other.items, strict=True)
        return _all(_same(*pair, meanings) for pair in pairs)
    return _same_items(one.items, other.items, meanings)


def _same_items(
    one: Sequence[Value], other: Sequence[Value], meanings: Mapping[str, Meaning]
) -> bool | None:
    """Whether two lists of as many items are equal in some order.

    They are, if of the items that equal pairs link, as many are in either list. Names, if there are
    any, keep unlike items apart.
    """
    surplus = Counter(item.words for item in one)
    surplus.subtract(item.words for item in other)
    items = {item.words: item for item in (*one, *other)}
    left = list(surplus) if any(surplus.values()) else []
    verdicts = {
        (i, k): _same(items[left[i]], items[left[k]], meanings)
        for i, k in combinations(range(len(left)), 2)
    }
    for accepted, result in (((True,), True), ((True, None), None)):
        groups = Groups(len(left))
        for (i, k), verdict in verdicts.items():
            if verdict in accepted:
                groups.join(i, k)
        if not any(sum(surplus[left[i]] for i in group) for group in groups.lists()):
            return result
    return False


def _may_be_equal(one: Value, other: Value, meanings: Mapping[str, Meaning]) -> bool | None:
    """None if one of two values with unlike numbers of items has any that is no number."""
    if ELLIPSIS in (*one.leaves(), *other.leaves()):
        return False
    found = _within(one, meanings) + _within(other, meanings)
    return None if None in found or any(map(_is_unknown, found)) else False


def _brackets_fit(one: Value, other: Value) -> bool:
    first, second = sorted((one.brackets, other.brackets), key=len)
    if first == second or {first, second} == {"{}", r"\{\}"}:
        return True
    is_list = second == "[]" and len(one.items) > 2  # two may be an interval
    return not first and (second in ("()", "{}", r"\{\}") or is_list)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    found = list(verdicts)
    if False in found:
        return False
    return None if None in found else True


def _same_meaning(one: Meaning, other: Meaning) -> bool | None:
    match one, other:
        case Number(), Number():
            return _same_numbers(one, other)
        case Formula(), Formula():
            return one.key == other.key
        case (Number() as exact, Formula() as formula) | (Formula() as formula, Number() as exact):
            return formula.value is not None and any(
                _is_close(exact, value, formula.value) for value in _readings(exact)
            )
    return None


def _same_numbers(one: Number, other: Number) -> bool | None:
    if one.value is None and other.value is None:
        if one.spelling == other.spelling:
            return True
        return None if one.is_enormous or other.is_enormous else False
    return any(
        a == b
        or (not other.digits and _is_close(one, a, b))
        or (not one.digits and _is_close(other, b, a))
        for a in _readings(one)
        for b in _readings(other)
        if one.is_percent != other.is_percent or (a == one.value) == (b == other.value)
    )


def _readings(exact: Number) -> list[Fraction]:
    """The values that a number may stand for: 50 % is 50 or 1/2."""
    if exact.value is None:
        return []
    return [exact.value, exact.value / 100] if exact.is_percent else [exact.value]


def _is_close(decimal: Number, value: Fraction, other: Fraction) -> bool:
    """Whether ``value``, written as ``decimal``, is ``other`` cut or rounded to its digits."""
    unit = decimal.unit / 100 if value != decimal.value else decimal.unit
    return decimal.digits >= CLOSE_DIGITS and abs(value - other) < unit
