"""Answers in a box: found whole, compared by value."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers import formulas
from pipeline.answers.boxed import Boxed, last_box
from pipeline.answers.formulas import FormulaProcess
from pipeline.errors import EngineError
from pipeline.reasoning.think_format import HEADINGS, split


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
        (r"\boxed{\\} and }", r"\\"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{a} \boxed{{b}", "a"),
        (r"\boxed{1 + \boxed{2}}", "2"),
        (r"} { \boxed{3}", "3"),
        (r"\boxed 5", "5"),
        (r"\fbox{5}", "5"),
        (r"$\boxed x$", "x"),
        (r"\boxed xy", None),
        (r"\boxed{1} or \boxed 2", "2"),
        ("**Answer:** 42", "42"),
        ("**Answer: 42**\n\nIt follows.", "42"),
        ("So\n#### 1,234", "1,234"),
        ("#### Answer: 42", "42"),
        ("**Final Answer**\n\n$x = 5$", "$x = 5$"),
        ("答案：42。", "42"),
        ("#### Step 4: Conclusion", None),
        ("Answer: see 5 below", None),
        ("**Answer:** 3 or 4", None),
        ("the answer is 3", None),
        ("", None),
        ("**Answer**\n\n42", "42"),
        ("### Answer\n\n$42$", "$42$"),
        ("Answer\n\n42", None),
        ("**Final Answer:**\n\n\\[\n5\n\\]\n\nIt follows.", r"\[5\]"),
        (r"Answer: \pi", r"\pi"),
        ("So.\nFinal Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("The final answer is 4 or 5. I hope it is correct.", None),
    ],
)
def test_boxed(text: str, found: str | None) -> None:
    assert Boxed().parse(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("42", "42"), (" **42**.\n", "42"), ("$42$", "$42$"), ("\\[\n\\frac{1}{2}\n\\]", r"\[\frac{1}{2}\]"),
        ("x = 5", "x = 5"), ("-1 1/2", "-1 1/2"), ("1,234", "1,234"), ("(3, 4)", "(3, 4)"), ("2x + 3", "2x + 3"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), ("５", "５"),
        ("<answer>42</answer>", "42"), ("So it is.\n<ANSWER>\n$5$\n</ANSWER>.", "$5$"),
        ("<answer>the heart</answer>", None), ("<answer>1, 2</answer>", None), ("<answer>5</answer> or so", None),
        ("42 43", None), ("1, 2", None), ("5\n6", None), ("1. 42", None), ("- 42", None), ("It is 42", None),
        ("42?", None), ("Monday", None), ("x", None), ("$1, 2$", None), (r"\boxed{5", None), (r"\boxed(5)", None),
        ("# 5", None), ("5 apples and 6", None), ("1; 2", None), ("3 and 4", None),
    ],
)  # fmt: skip
def test_answer_that_is_only_a_number_or_a_formula_is_read(text: str, found: str | None) -> None:
    """As the splitter leaves it, without its heading; neither prose nor several numbers."""
    assert Boxed().parse(text) == found


@pytest.mark.parametrize(
    "output", ["So.\n\n**Answer:** 42", "So.\n\n**Final Answer**\n\n42\n", "So.\n<ANSWER>42</ANSWER>"]
)  # fmt: skip
def test_what_a_heading_or_tags_divide_is_read(output: str) -> None:
    assert Boxed().parse(split(output, HEADINGS).answer or "") == "42"


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 50_000,
        r"\boxed{" * 50_000 + "}",
        r"\boxed" + " " * 10**6,
        "answer:" + " " * 10**6,
        "Answer:\n" * 10**5,
        "#" * 10**6,
        "**" * 10**6,
        "#### a\n" * 10**5,
        "答案" * 10**5,
        "$$\n" * 10**5,
        "\\[\n" + "\n" * 10**6,
        "<answer>" * 10**5 + "</answer>" + " ." * 10**5,
        "final answer is " * 10**5,
    ],
    ids=range(13),
)
def test_a_megabyte_of_boxes_takes_no_hours(text: str) -> None:
    """Each character is looked at once: this runs on the engine's event loop."""
    assert Boxed().parse(text) is None


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
        # Numbers exactly, whatever their size; floats of a reference column have an exponent.
        ("0.0000001", "0.0000002", False), ("6.63e-34", "1.05e-34", False), ("016", "16", True),
        ("0.00001", 1e-05, True), (r"6.02\times10^{23}", 6.02e23, True), ("7500", "7.5e3", True),
        (r"10^{16}", 1e16, True), (r"-3 \cdot 10^4", "-30000", True), (r"10^{-5}", 1e-05, True),
        ("-1,234.50", "-1234.5", True), ("1/3", "0.3333", False), ("1e", "1", False),
    ],
)  # fmt: skip
def test_formulas_are_compared_by_their_value(
    parsed: str | None, reference: object, same: bool | None
) -> None:
    assert Boxed().is_correct(parsed, reference) is same


@pytest.mark.parametrize(
    "formula", ["5E10000000", r"2^{99999999}", "100000!", "7**123456", r"2003^{2002^{2001}}"]
)
def test_number_that_takes_hours_to_write_out_is_another(formula: str) -> None:
    """One call of C code that no signal interrupts; in an answer or in the reference."""
    assert Boxed().is_correct(formula, "5") is False
    assert Boxed().is_correct("5", formula) is False


def test_comparison_that_does_not_end_is_given_up_and_the_next_ones_work(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    process = FormulaProcess()
    try:
        assert process.are_equal([("1/2", "2/4")]) == [True], "started"
        monkeypatch.setattr(formulas, "WAIT_SECONDS", 1.0)
        assert process.are_equal([("5E10000000", "5")]) == [None]
        assert "gave up comparing ('5E10000000', '5')" in caplog.text
        assert process.values(["5E10000000"]) == [False]
        monkeypatch.undo()
        assert process.are_equal([("1/2", "2/4"), ("1/2", "3")]) == [True, False]
        assert process._process is not None
        process._process.kill()
        process._process.wait()
        assert process.are_equal([("1/2", "2/4")]) == [None], "it has died"
        assert process.are_equal([("1/2", "2/4")]) == [True]
    finally:
        process.close()


def test_process_that_does_not_start_makes_no_answer_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(EngineError, match="compares formulas did not start: try `/bin/true -m"):
        FormulaProcess().are_equal([("1/2", "2/4")])


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
