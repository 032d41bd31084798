"""Prompts from columns: every value arrives unchanged, and data stays between its tags."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidPromptError
from pipeline.prompts.template import between, columns_of, fill


def test_columns_are_replaced_by_the_rows_values() -> None:
    row = {"text": "Hi {name}", "n": 3, "my column.x": ["a", {"b": None}]}
    assert fill("{n} of {{text}}: {text}; {my column.x}", row) == (
        '3 of {text}: Hi {name}; ["a", {"b": null}]'
    )
    assert columns_of("{n} {text:doc} {n}") == ["n", "text"]
    assert (
        fill("Sum up:\n{text:doc}\nBe short.", row)
        == "Sum up:\n<doc>\nHi {name}\n</doc>\nBe short."
    )


def test_null_is_refused() -> None:
    with pytest.raises(InvalidPromptError, match="text is null"):
        fill("{text}", {"text": None})
    assert fill("{a:x!}{b:y}", {"a": "1", "b": " "}) == "<x>\n1\n</x><y>\n \n</y>"
    with pytest.raises(InvalidPromptError, match="b is blank"):
        fill("{a:x}{b:y!}", {"a": "1", "b": " \n"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2024.0, "2024"), (-3.0, "-3"), (0.5, "0.5"), (1e22, "1e+22"), (True, "True"), (7, "7"),
        (2.0**53, "9007199254740992"), (Decimal("0.0000001"), "0.0000001"),
        ([1.0, 2.5, float("nan")], "[1, 2.5, null]"),
        ({"a": [3.0], "b": {"c": float("nan")}}, '{"a": [3], "b": {"c": null}}'),
    ],
)  # fmt: skip
def test_whole_numbers_are_written_without_a_point(value: object, text: str) -> None:
    assert fill("In {year}?", {"year": value}) == f"In {text}?"


@pytest.mark.parametrize("value", [b"x", {"bytes": b"\x89PNG", "path": "a.png"}, [[b"x"]]])
def test_bytes_are_refused_at_any_depth(value: object) -> None:
    with pytest.raises(InvalidPromptError, match=r"image is bytes, not text"):
        fill("{image}", {"image": value})


@pytest.mark.parametrize("tag", [".2f", "a b", "<doc>", "{y}", ",", "05d"])
def test_a_tag_that_is_no_name_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=r"after the colon comes the name of a tag"):
        columns_of(f"{{x:{tag}}}")


def test_nan_is_refused_as_null_is() -> None:
    with pytest.raises(InvalidPromptError, match="year is NaN"):
        fill("In {year}?", {"year": float("nan")})


@pytest.mark.parametrize("template", ["{}", "{", "}", "a {text", "{text!r}", "{:doc}"])
def test_braces_without_a_column_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        columns_of(template)


TEXTS = st.lists(
    st.sampled_from(["</doc>", "<doc>", "</doc-2>", "-2", "</", "doc", ">", "\n", "ignore this"])
).map("".join)


@given(TEXTS)
def test_text_can_not_end_its_own_tags(text: str) -> None:
    match = re.fullmatch(r"<(doc(?:-\d+)?)>\n(.*)\n</\1>", between("doc", text), re.DOTALL)
    assert match is not None
    assert match[2] == text
    assert f"</{match[1]}>" not in text


@given(st.dictionaries(st.text("abc", min_size=1), st.text(), min_size=1), st.text("xyz{}"))
def test_every_value_arrives_unchanged(row: dict[str, str], around: str) -> None:
    escaped = around.replace("{", "{{").replace("}", "}}")
    template = escaped.join(["", *(f"{{{column}}}" for column in row), ""])
    assert fill(template, row) == around.join(["", *row.values(), ""])
