"""Answers that machines read: found where they are, never guessed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from pipeline.answers.formats import (
    boxed,
    choice,
    is_correct,
    parse,
    qwen_answer,
    vote,
)
from pipeline.answers.json_schema import JsonForm, canonical


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
    assert boxed(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"answer": "C"', "C"),
        ('{"answer": "b"}', "B"),
        ('```json\n{\n  "answer": "D"\n}\n```', "D"),
        ("**Answer: B**", "B"),
        ("Answer: (A)", "A"),
        ("answer = C.", "C"),
        ("'answer': 'A' and later 'answer': 'B'", "B"),
        (r"So \boxed{C}", "C"),
        (r"So \boxed{\text{D}}", "D"),
        ("It must be the third.\n\nC", "C"),
        ("**B**", "B"),
        ("The answer is: a matter of taste", None),
        ("answer: A matter of taste", None),
        ("answer: C because it is so", "C"),
        ("answer: A, because it is so", "A"),
        ("I can't tell.", None),
        (r"\boxed{12}", None),
        ("", None),
    ],
)
def test_choice(text: str, found: str | None) -> None:
    assert choice(text) == found


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
    assert is_correct(parsed, reference, "boxed") is same


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("is it 4\n</think>\n\nIt is \\boxed{3}.", "3"),
        ("maybe \\boxed{4}, or \\boxed{5} and no end", "5"),
        ("x\n</think>\n\nThe answer is 12.", "12"),
        ("x\n</think>\n\nSo 3 and 1,024 it is", "1024"),
        ("x\n</think>\nso \\boxed{7}", "7"),
        ("no idea", ""),
    ],
)
def test_answer_as_qwen_takes_it(raw: str, found: str) -> None:
    assert qwen_answer(raw) == found


def test_choices_are_compared_by_their_letter() -> None:
    assert is_correct("C", '"answer": "C"', "choice") is True
    assert is_correct("C", "c", "choice") is True
    assert is_correct("C", "B", "choice") is False


@given(st.text(), st.sampled_from(["text", "boxed", "choice"]))
def test_nothing_raises_and_what_is_found_is_in_the_text(text: str, kind: str) -> None:
    found = parse(text, kind)  # type: ignore[arg-type]
    assert found is None or found.lower() in text.lower()


NESTED = st.recursive(
    st.text("ab12 +", min_size=1), lambda inner: st.lists(inner.map("{{{}}}".format)).map("".join)
)


@given(NESTED.filter(str.strip), st.text(max_size=20))
def test_balanced_content_of_a_box_is_found_whole(inner: str, before: str) -> None:
    assert boxed(f"{before}\\boxed{{{inner}}} .") == inner.strip()


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
    assert vote(answers, "boxed") == (winner, share)


@given(st.lists(st.none() | st.sampled_from("ABCD"), min_size=1))
def test_vote_of_choices_is_a_most_frequent_one(answers: list[str | None]) -> None:
    winner, share = vote(answers, "choice")
    counts = [answers.count(letter) for letter in "ABCD"]
    assert share * len(answers) == pytest.approx(max(counts))
    assert winner is None if max(counts) == 0 else answers.count(winner) == max(counts)


LABEL = {
    "type": "object",
    "properties": {
        "label": {"enum": ["good", "bad"]},
        "score": {"type": "number", "multipleOf": 0.5},
    },
    "required": ["label"],
    "additionalProperties": False,
}


class Sum(BaseModel):
    value: int

    @field_validator("value")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("odd")
        return {4: value}[value]  # raises what a validator should not


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"score": 2.0, "label": "good"}', '{"label": "good", "score": 2}'),
        (' {"label":"bad"}\n', '{"label": "bad"}'),
        ('{"label": "fair"}', None),
        ('{"label": "good", "why": "so"}', None),
        ('{"label": "good", "score": NaN}', None),
        ('{"label": "good"', None),
        ('```json\n{"label": "good"}\n```', None),
        ("good", None),
        ("", None),
        ("[" * 100_000, None),
        ('{"label": "good", "score": 1e999}', None),
        ('{"label": "good", "score": ' + "1" * 400 + "}", None),
    ],
)
def test_json_answer_is_what_its_schema_allows(text: str, found: str | None) -> None:
    assert parse(text, "json", JsonForm(LABEL)) == found


def test_json_answer_is_what_a_pydantic_model_allows() -> None:
    form = JsonForm(Sum.model_json_schema(), Sum)
    assert form.parse('{"value": 4}') == '{"value": 4}'
    assert form.parse('{"value": 3}') is None
    assert form.parse('{"value": 6}') is None


def test_text_that_is_no_unicode_is_no_answer() -> None:
    assert JsonForm({}).parse('"\\ud83d"') is None


@pytest.mark.parametrize(
    ("parsed", "reference", "same"),
    [
        ('{"a": 1, "b": [2]}', {"b": [2.0], "a": 1}, True),
        ('{"a": 1}', '{"a": 1.0}', True),
        ('{"a": 1}', {"a": 2}, False),
        ('"cat"', "cat", True),
        ("3", 3, True),
        ("3", "3", True),
        ('{"a": 1}', "{", False),
        ('{"a": 1}', {"a": 1, "b": None}, True),
        (None, {"a": 1}, False),
        ('{"a": 1}', None, None),
    ],
)
def test_json_is_compared_by_its_value(
    parsed: str | None, reference: object, same: bool | None
) -> None:
    assert is_correct(parsed, reference, "json") is same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_canonical_json_says_the_same_and_is_one(value: object) -> None:
    text = canonical(value)
    assert json.loads(text) == value
    assert canonical(json.loads(text)) == text
    assert JsonForm({}).parse(json.dumps(value, indent=1)) == text


def test_json_vote_is_by_value() -> None:
    answers = ['{"label": "bad"}', '{"label": "good"}', '{"label": "good"}', None]
    assert vote(answers, "json") == ('{"label": "good"}', 0.5)
