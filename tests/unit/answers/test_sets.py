"""JSON whose arrays are sets: one spelling whatever the order, so votes and references follow."""

import pytest

from pipeline.answers.formats import answer_format
from pipeline.answers.json_schema import JsonForm

FORM = JsonForm(
    {
        "type": "object",
        "properties": {"labels": {"type": "array", "items": {"enum": ["a/b", "a/c", "d"]}}},
        "required": ["labels"],
        "additionalProperties": False,
    }
)
SETS = answer_format("sets", FORM)


@pytest.mark.parametrize(
    ("answer", "parsed"),
    [
        ('{"labels": ["d", "a/b"]}', '{"labels": ["a/b", "d"]}'),
        ('{"labels": ["d", "a/b", "d"]}', '{"labels": ["a/b", "d"]}'),
        ('{"labels": []}', '{"labels": []}'),
        ('{"labels": ["a"]}', None),
        ('{"labels": ["a/b/c"]}', None),
        ('{"labels": "d"}', None),
        ("d", None),
    ],
)
def test_order_and_repetition_mean_nothing_and_only_known_paths_are_read(
    answer: str, parsed: str | None
) -> None:
    assert SETS.parse(answer) == parsed


def test_samples_that_differ_in_order_agree() -> None:
    said = ['{"labels": ["d", "a/b"]}', '{"labels": ["d"]}', '{"labels": ["a/b", "d"]}', "?"]
    assert SETS.vote([SETS.parse(text) for text in said]) == ('{"labels": ["a/b", "d"]}', 0.5)


@pytest.mark.parametrize(
    ("reference", "is_correct"),
    [
        ({"labels": ["d", "a/b"]}, True),
        ('{"labels": ["a/b", "d", "d"]}', True),
        ({"labels": ["d"]}, False),
        ({"labels": ["e"]}, None),
        (None, None),
    ],
)
def test_references_are_compared_as_sets(reference: object, is_correct: bool | None) -> None:
    assert SETS.is_correct('{"labels": ["a/b", "d"]}', reference) is is_correct


def test_arrays_in_arrays_and_objects_in_arrays_are_sets_too() -> None:
    form = JsonForm({"type": "array"})
    sets = answer_format("sets", form)
    assert sets.parse('[[2, 1], {"b": [3, 2], "a": 1}, [1, 2.0]]') == sets.parse(
        '[{"a": 1, "b": [2, 3]}, [1, 2]]'
    )
