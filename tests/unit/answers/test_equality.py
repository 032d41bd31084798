"""Which answers are equal: as people read them, in either order, and in a bounded time."""

from itertools import permutations

import pytest

from pipeline.answers import equality
from pipeline.answers.boxed import Boxed
from pipeline.answers.equality import equal, group
from pipeline.answers.formulas import FormulaProcess

EQUAL = [
    # numbers
    ("0.5", r"\frac{1}{2}"), ("1 1/2", "3/2"), (r"1\frac{1}{2}", "1.5"), (r"\tfrac97", "9/7"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"), ("1,234", r"1\,234"), ("1\u2009234", "1234"),
    (r"1{,}234", "1 234"), ("５", "5"), (r"\[5\]", "5"), ("$18$", "18"), (r"\$18", "18"),
    ("½", "0.5"), ("−3", "-3"), ("10^{16}", "1e+16"), ("1,000,000", "10^6"), ("2^{10}", "1024"),
    ("3:2", "3/2"), ("5.", "5"), (".5", "0.5"), ("016", "16"), ("3!", "6"),
    # a decimal with six digits may be a value that has no end
    ("1/3", "0.333333"), (r"\sqrt{2}", "1.41421356"), ("e", "2.718281828"),
    # percent
    (r"50\%", "50"), (r"50\%", "0.5"), ("50 %", r"50\%"), (r"33\frac13\%", "1/3"),
    # formulas, with units and degrees
    (r"2\sqrt{3}", r"\sqrt{12}"), ("(x-1)(x+1)", "x²-1"), ("120°", "120"), ("y=2x+1", "2x+1"),
    (r"18\text{ cm}^2", "18"), (r"\frac{3}{4}\text{ cups}", "0.75"), ("x=5", "5"),
    # lists, sets, intervals and inequalities
    ("-2,-2", "a=-2, b=-2"), ("a=1,b=2", "b=2,a=1"), ("1, 2", "2,1"), (r"\{1,2\}", "2, 1"),
    (r"1 \text{ and } 2", "1,2"), (r"x=1\text{ or }x=2", "2,1"), (r"\pm 2", "2,-2"),
    ("[1, 2, 3]", "1,2,3"), (r"\left( \frac{1}{2}, 3 \right)", "(0.5,3)"), ("x<3", r"(-\infty,3)"),
    (r"0 \le x \le 1", "[0,1]"), (r"x \in [0,1]", "[0,1]"), ("(1,2)", "1<x<2"),
    (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty)\cup(-\infty,0)"), ("3>x", "x<3"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
    # words and options
    (r"\text{Yes}", "yes"), ("no solution", r"\text{No solution}"), (r"\mathbf{C}", "C"),
    ("(C)", r"\text{(C) Plane}"), (r"\textbf{(B)}\ 5", "B"), (r"\textbf{(B)}\ 5", "5"),
    (r"3^{10^{9}}", r"3^{10^9}"),
    (r"50\%, 50", "0.5, 50"), (r"50\%, 50", "50, 0.5"), ("50, 0.5", r"50, 50\%"),
    # names and spellings
    (r"\emptyset", r"\varnothing"), ("∅", r"\emptyset"), (r"1,2,\ldots,10", "1, 2, ..., 10"), ("1, 2, …", r"1,2,\dots"),
    (r"\langle 1,2\rangle", "(1,2)"), (r"x\leqslant 3", "x≤3"), ("pi/4", r"\frac{\pi}{4}"), ("infinity", r"\infty"),
    (r"\approx 3.14", "≈3.14"), ("3.14", "≈3.14"), ("5,", "5;"), (r"\mathbb R", r"\mathbb{R}"), ("x**2", "x^2"),
    ("1.5x10^3", "1500"), (r"0.\overline{3}", "1/3"), (r"-0.1\overline{6}", r"-\frac16"), ("0.(142857)", "1/7"),
    (r"0.\overline{9}", "1"),
    # spaces and braces that say nothing
    ("x^{2}y", "x^2y"), ("a_{1}+a_{2}", "a_1 + a_2"), (r"x \equiv 1 \pmod{3}", r"x\equiv1\pmod 3"), ("H_{2}O", "H_2O"),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    ("(100, 200)", "(100,200)"), (r"\frac{x}{y}", r"\frac xy"),
    # units, and numbers without one
    ("18 dollars", "18"), ("USD 18", r"\$18"), ("18€", "€18"), ("5 m/s", "5"), ("12 cm^2", r"12\text{ square centimeters}"),
    ("3/4 cup", "0.75"), ("18 eggs", "18"), ("5米", "5 meters"), ("42个", "42"), ("60 mph", r"60\text{ miles per hour}"),
    ("3 hours", "3 h"), ("45 degrees", r"45^\circ"), (r"12\pi\text{ cm}^2", r"12\pi"), ("$1,234.50", "1234.5 dollars"),
    ("0 million", "0"), ("10 million", r"10\text{ million}"), (r"\$1.5\text{ million}", "1500000"), ("2 dozen", "24"),
    ("4210_{5}", "4210_5"), ("1010_2", "1010"), (r"1010_{\text{two}}", "1010_2"),
    ("0.5 mol", "0.5"), ("25 ℃", r"25^\circ C"), ("70^o", "70"), ("50¢", "50 cents"), ("1,000 people", "1000"),
    (r"\sin 30^\circ", "1/2"), (r"\tan 15^{\circ}", r"2-\sqrt3"), ("—2", "-2"), ("5\\\\", "5"), ("Option B", "(B)"),
    (r"2, 3 \text{, and } 5", "2,3,5"), ("y'=2x", "2x"),
    # dates, times and ranges
    ("3:30 PM", "3:30 p.m."), ("3:30 pm", "3:30"), ("03:30", "3:30"), ("01/02/2024", "1/2/2024"), ("10-20", "10–20"),
    ("1:12", "1/12"),
]  # fmt: skip
DIFFERENT = [
    ("50", "0.5"), (r"50\%", r"0.5\%"), ("1/3", "0.3333"), ("3.14", r"\pi"), ("1.9999999", "2"),
    ("0.333333", "0.3333333"), ("6.63e-34", "1.05e-34"), ("0", "10^{-10}"), ("12:00", "1:00"),
    (r"\pi\times10^{-34}", r"2\pi\times10^{-34}"), ("(1e-34,2)", "(2e-34,2)"), ("e-5", "1e-05"),
    (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"), (r"67\sim75", "67"), ("67~75", "67"), ("67–75", "-8"),
    ("x=5", "y=5"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"), ("a=1,b=2", "2,1"),
    ("(B)", r"\text{(C) Plane}"), ("Monday", "Tuesday"), ("x<3", "x<4"), (r"\pm 2", "2"),
    ("x+1", "x+2"), (r"\frac{", "3"), ("100, 200", "100200"), ("1e", "1"), ("no solution", "0"),
    (r"1,2,\ldots,10", "1,2,10"), (r"0.\overline{3}", "0.3"), (r"1,2,\ldots", r"1,3,\ldots"), (r"0.1\overline{6}", r"0.\overline{16}"),
    ("1e9999 million", "5"),("1, 2, 2", "1, 1, 2"),
    # units, bases, and words that make another number
    ("5 km", "5 m"), (r"5\text{ cm}", "5 meters"), ("3 hours", "3 minutes"), (r"\$5", "5%"), ("€5", "5 dollars"),
    ("20^\\circ C", r"20^\circ\text{F}"), ("12 cm^2", "12 cm^3"), ("5 dollars", "5 cents"), ("10 million", "10"),
    (r"3\text{ dozen}", "3"), (r"5\text{ or more}", "5"), (r"\text{at least }5", "5"), ("1010_2", "1010_3"), ("12_5", "12_6"),
    (r"\sin 30^\circ", r"\sin 30"), ("f'(x)", "f(x)"), ("12 N", "12 J"), ("25 °C", "25 °F"),
    ("5 times", "5"), ("2 n", "2"),
    # dates, times and ranges
    ("2024-01-02", "2021"), ("2024-01-02", "2024-02-01"), ("1/2/2020", "1/4040"), ("10-20", "-10"), ("555-1234", "-679"),
    ("3:30 PM", "3:30 AM"), (r"3:30\text{ PM}", r"3:30\text{ AM}"), ("10:30", "1/3"), ("3:30", "330"),
    # spaces and braces that say something
    (r"\frac{12}{5}", r"\frac{1}{25}"), ("2^{n+1}", "2^n+1"), ("e^{x}y", "e^{xy}"), (r"\sqrt{x+1}", r"\sqrt x+1"),
    (r"\frac{1}{2n}", r"\frac12n"), ("x_{12}", "x_{1}2"), ("1 1/2", "11/2"), ("1 2", "12"), ("1, 234", "1,234"),
    # numbers that no computer writes out
    ("5E10000000", "5"), ("5E10000000", "5E10000001"), (r"2003^{2002^{2001}}", "7"),
    (r"3^{10^{9}}", "3"), ("2^{99999999}", "5"), ("100000!", "5"), ("7**123456", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_what_people_read_as_equal_is_equal_in_either_order(one: str, other: str) -> None:
    assert equal(one, other) is True
    assert equal(other, one) is True


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_differs_is_different_in_either_order(one: str, other: str) -> None:
    assert equal(one, other) is False
    assert equal(other, one) is False


@pytest.mark.parametrize(
    ("one", "other"),
    [("2^{99999999}", "2^{88888888}"), ("2^{99999}/2^{99998}", "2"), ("x+" * 600 + "x", "601x")],
)
def test_what_takes_too_long_is_neither_equal_nor_different(one: str, other: str) -> None:
    assert equal(one, other) is None
    assert equal(other, one) is None
    assert Boxed().is_correct(one, other) is None


@pytest.mark.parametrize(
    "answers",
    [
        ["x<3", r"(-\infty,3)"], [r"50\%", "50", "0.5"], ["5 cm", "5", "5 m"], ["x=5", "5", "y=5"], ["1/3", "0.333333"],
        ["y=2x+1", "2x+1"], [r"0 \le x \le 1", "[0,1]"], ["B", r"\textbf{(B)}\ 5", "5.0"],
    ],
)  # fmt: skip
def test_vote_does_not_depend_on_the_order(answers: list[str]) -> None:
    """Each pair of neighbors is equal, and so all are together, whoever comes first."""
    votes = {Boxed().vote(order) for order in permutations(answers)}
    assert len(votes) == 1
    assert votes.pop()[1] == 1.0


def test_tiny_numbers_are_different_votes() -> None:
    answers = [r"6.63\times10^{-34}", r"1.05\times10^{-34}", r"9.11\times10^{-31}", "0"]
    assert Boxed().vote(answers)[1] == 0.25


@pytest.mark.parametrize(
    "spelling", ["{}", "0.{}", r"\frac{{{}}}{{71}}", "{}.5e-30", "{}, 7"], ids=range(5)
)
def test_sixty_four_different_numbers_take_no_computer_algebra(
    spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(equality, "FORMULAS", _NoFormulas())
    answers = [spelling.format(101 + i) for i in range(64)]
    assert group(answers) == ([[i] for i in range(64)], 0)


class _NoFormulas(FormulaProcess):
    def _ask(self, question: str) -> str | None:
        raise AssertionError(f"asked {question}")


@pytest.mark.parametrize(
    "text", ["1", "x", "(", r"\text{", "a, ", "(C) ", r"\frac{1}{2}", "{", "10^", "2^{", "5!", "**"]
)
def test_a_megabyte_is_not_taken_apart(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loops in its box; minutes of regular expressions otherwise."""
    monkeypatch.setattr(equality, "FORMULAS", _NoFormulas())
    long = text * (10**6 // len(text))
    assert equal(long, "5") is None
    assert equal(long, long) is True
    assert Boxed().read_reference(long) is None


def test_what_is_given_up_in_a_vote_counts_by_itself_and_is_counted() -> None:
    absurd = "2^{99999}/2^{99998}"
    vote = Boxed().tally(["2", "2", absurd, None])
    assert (vote.winner, vote.share, vote.given_up) == ("2", 0.5, 1)
    assert Boxed().tally([absurd, absurd]).given_up == 0, "the same text is the same value"
