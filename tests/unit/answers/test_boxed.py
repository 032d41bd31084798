"""Answers in a box: found whole, compared by value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers.boxed import Boxed, last_box


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"The answer is \boxed{3}.", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"First \boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{ 7 } and then \boxed{8", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{x} \boxed {y}", "y"),
        (r"\boxed{}", None),
        ("the answer is 3", None),
        ("", None),
    ],
)
def test_boxed(text: str, found: str | None) -> None:
    assert Boxed().parse(text) == found


NESTED = st.recursive(
    st.text("ab12 +", min_size=1), lambda inner: st.lists(inner.map("{{{}}}".format)).map("".join)
)


@given(NESTED.filter(str.strip), st.text(max_size=20))
def test_balanced_content_of_a_box_is_found_whole(inner: str, before: str) -> None:
    assert last_box(f"{before}\\boxed{{{inner}}} .") == inner.strip()


@pytest.mark.parametrize(
    ("parsed", "reference", "same"),
    [
        ("3", "3", True), ("3", 3, True), (r"\frac{1}{2}", "0.5", True), ("12", 13, False),
        (r"2\sqrt{3}", r"\sqrt{12}", True), ("1,234", 1234, True), ("x = 5", "5", True),
        ("5", r"so \boxed{5}", True), (r"\frac{", "3", False), (None, "3", False),
        ("3", None, None), ("9" * 500, "1", False),
    ],
)  # fmt: skip
def test_formulas_are_compared_by_their_value(
    parsed: str | None, reference: object, same: bool | None
) -> None:
    assert Boxed().is_correct(parsed, reference) is same


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        (["3", "4", "3", None], "3", 0.5),
        (["0.5", r"\frac{1}{2}", "1/2", "2"], "0.5", 0.75),
        (["1", "2"], "1", 0.5),
        ([None, None], None, 0.0),
        (["7"], "7", 1.0),
    ],
)
def test_vote_is_by_value(answers: list[str | None], winner: str | None, share: float) -> None:
    assert Boxed().vote(answers) == (winner, share)
