"""What the process for formulas works out, and that a whole request ends in time."""

import pytest

from pipeline.answers import formula_values
from pipeline.answers.formula_values import are_equal, value, values


def test_equal_formulas_have_the_same_value() -> None:
    assert value(r"\frac{\sqrt2}{2}") == value(r"\frac{1}{\sqrt2}")
    assert value("2x+1") == value("1+2x") != value("2x+2")
    assert value(r"\log_2 8") == value(r"\sqrt{9}") == ["rational", "3/1"]
    assert value(r"(1+\sqrt2)^2-3-2\sqrt2") == ["rational", "0/1"]
    assert value("0.1x") == value(r"\frac{x}{10}")


@pytest.mark.parametrize("text", ["x<3", "[0,1]", r"\infty", r"\text{Yes}", r"\frac{", "12:00"])
def test_what_is_no_number_and_no_expression_has_none(text: str) -> None:
    assert value(text) is None


def test_a_request_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert are_equal([("x<3", "3>x"), ("x<3", "x<4")]) == [True, False]
    monkeypatch.setattr(formula_values, "REQUEST_SECONDS", -1.0)
    assert are_equal([("x<3", "3>x")]) == [None]
    assert values(["1+1"]) == [False]
