"""How a column of references is read: decided from a sample, refused where that is not certain."""

import math

import numpy as np
import pyarrow as pa
import pytest

from pipeline.answers.base import AnswerFormat
from pipeline.answers.boxed import Boxed
from pipeline.answers.choice import Choice
from pipeline.answers.json import Json
from pipeline.answers.json_schema import JsonForm
from pipeline.answers.references import cells

NO_REFERENCE = [None, math.nan, "", "  ", "proof", "notfound"]
PROSE = "Let us count the boxes on every shelf once more. " * 30


@pytest.mark.parametrize(
    ("sample", "description", "read"),
    [
        ([0, 1, 2, 3], "indices 0..3 (0 = A)", ["A", "B", "C", "D"]),
        (["0", "3"], "indices 0..3 (0 = A)", ["A", "D"]),
        ([0.0, 2.0, 27.0], "indices 0..2 (0 = A)", ["A", "C", None]),
        ([1, 2, 3, 4] * 10, "indices 1..4 (1 = A)", ["A", "B", "C", "D"] * 10),
        (["C. the heart", "D) it", "(A) no"], "letters A to D", ["C", "D", "A"]),
        (["Option C", "[B]", "C:", "a)", "b"], "letters A to C", ["C", "B", "C", "A", "B"]),
        (['"answer": "D"', "The answer is (A)."], "letters A to D", ["D", "A"]),
        (["A", "B", "1"], "letters A to B", ["A", "B", None]),
        ([None, math.nan, "proof", ""], "letters", [None] * 4),
    ],
)
def test_choices_are_read_as_what_the_sample_shows(
    sample: list[object], description: str, read: list[str | None]
) -> None:
    reading = Choice().reading(sample)
    assert reading.description == description
    assert [Choice().read_reference(cell, reading.kind) for cell in sample] == read


@pytest.mark.parametrize("sample", [[1, 2, 3] * 100, [1, 2, 3, 4], [2, 3], [1, 2] * 50, ["1"]])
def test_numbers_that_may_begin_at_0_or_1_are_refused(sample: list[object]) -> None:
    with pytest.raises(ValueError, match=r"either 0 or 1 may stand for A; write letters into"):
        Choice().reading(sample)


def test_text_of_options_is_refused() -> None:
    with pytest.raises(ValueError, match=r"can't be read as letters \(2 of 2 .*'the heart'"):
        Choice().reading(["the heart", "the liver", None])


@pytest.mark.parametrize(
    ("reference", "read"),
    [
        (f"{PROSE}\n#### 42", "42"),
        ("so 1234\n#### 1,234", "1,234"),
        (f"{PROSE} so \\boxed{{5}}.", "5"),
        ("The answer is 7.", "7"),
        (1e-05, "1e-05"), (42, "42"), (["5"], "5"), (["1", "2"], "1, 2"), ("Monday", "Monday"),
        (PROSE, None), ([], None), ({"a": 1}, None), (b"5", None),
    ],
)  # fmt: skip
def test_reference_of_a_formula_is_its_last_line_its_box_or_itself(
    reference: object, read: str | None
) -> None:
    assert Boxed().read_reference(reference) == read


def test_worked_solutions_of_any_length_are_compared_by_their_answer() -> None:
    for steps in (1, 10, 100):
        assert Boxed().is_correct("42", f"{'a step of it. ' * steps}\n#### 42") is True
        assert Boxed().is_correct("41", f"{'a step of it. ' * steps}\n#### 42") is False


@pytest.mark.parametrize(
    ("sample", "description"),
    [
        (["x\n#### 42", "y\n#### 7"], "worked solutions ending in #### N"),
        ([42, "0.5", 7.5], "numbers"),
        (["1", "2", r"\sqrt{2}"], "numbers, formulas or short texts"),
        ([r"so \boxed{3}"], r"solutions with a \boxed{} answer"),
        ([True, False], "true or false"),
    ],
)
def test_plan_can_say_what_formulas_are(sample: list[object], description: str) -> None:
    assert Boxed().reading(sample).description == description


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        (0.1 + 0.2, "0.3"), (3 * 1.1e-5, "3.3e-05"), (-(0.1 + 0.7), "-0.8"),
        (2 / 3, "0.6666666666666666"), (1e22, "1e+22"), (7.0, "7.0"), (2.0**53, "9007199254740992.0"),
    ],
)  # fmt: skip
def test_floats_are_read_without_the_noise_of_computing(reference: float, text: str) -> None:
    assert Boxed().read_reference(reference) == text
    assert Boxed().is_correct(text, reference) is True


def test_a_column_of_prose_is_refused() -> None:
    with pytest.raises(ValueError, match=r"most of it can't be read .*name another column"):
        Boxed().reading([PROSE, PROSE, "5"])


@pytest.mark.parametrize("answers", [Boxed(), Choice()], ids=["boxed", "choice"])
@pytest.mark.parametrize("reference", NO_REFERENCE)
def test_no_reference_is_no_verdict(answers: AnswerFormat, reference: object) -> None:
    assert answers.is_missing(reference)
    assert answers.is_correct("A", reference) is None
    assert answers.is_correct(None, reference) is None


def test_reference_that_can_not_be_read_is_no_verdict() -> None:
    assert Choice().is_correct("A", "the heart") is None
    assert Choice().is_correct("A", 0) is None, "no kind was decided"
    assert Choice().is_correct("A", 0, "numbers from 0") is True
    assert Choice().is_correct("B", 0, "numbers from 0") is False
    assert Choice().is_correct("A", 0, "numbers from 1") is None
    assert Boxed().is_correct("5", PROSE) is None


def test_json_reference_that_can_not_be_an_answer_is_no_verdict() -> None:
    label = Json(JsonForm({"type": "object", "required": ["label"]}))
    assert label.is_correct('{"label": "spam"}', '{"label": "spam"}') is True
    assert label.is_correct('{"label": "spam"}', {"label": "ham"}) is False
    assert label.is_correct('{"label": "spam"}', "spam") is None
    with pytest.raises(ValueError, match="can't be read as JSON that fits the schema"):
        label.reading(["spam", "ham"])
    assert Json(JsonForm({"type": "string"})).is_correct('""', "") is True


def test_cells_are_what_was_written() -> None:
    """A float of 32 bits is 0.1 for its writer; a byte that is no UTF-8 spoils its cell only."""
    narrow = pa.chunked_array([pa.array([0.1, None, 1e-05], pa.float32())])
    assert cells(narrow) == [0.1, None, 1e-05]
    deep = pa.array(
        [{"a": [0.1], "b": 1}], pa.struct({"a": pa.list_(pa.float32()), "b": pa.int8()})
    )
    assert cells(pa.chunked_array([deep])) == [{"a": [0.1], "b": 1}]
    by_key = pa.map_(pa.string(), pa.float16())
    assert cells(pa.chunked_array([pa.array([[("a", np.float16(0.1))]], by_key)])) == [[("a", 0.1)]]
    broken = pa.chunked_array([pa.array([b"5", b"\xff", None]).cast(pa.binary()).view(pa.string())])
    assert cells(broken) == ["5", None, None]
