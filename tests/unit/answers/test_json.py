"""JSON answers: what the schema allows, compared by value, one spelling for each value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from pipeline.answers.json import Json
from pipeline.answers.json_schema import JsonForm, canonical

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
    assert Json(JsonForm(LABEL)).parse(text) == found


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
    assert Json().is_correct(parsed, reference) is same


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
    assert Json().vote(answers) == ('{"label": "good"}', 0.5)
