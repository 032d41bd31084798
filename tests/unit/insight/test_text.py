"""Text and numbers cut to a length that people read."""

import pytest

from pipeline.insight.text import error_kind, in_words, shortened, three_digits


def test_errors_that_differ_in_numbers_are_of_one_kind() -> None:
    assert error_kind("prompt_too_long: 1,234 of 99\nmore") == "prompt_too_long: N of N"
    assert error_kind("  ") == ""


def test_long_text_loses_its_middle_and_says_how_much() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 4) == "ab\n… 3 characters left out …\nfg"


@pytest.mark.parametrize(
    ("count", "words"), [(12_400, "12,400"), (1_500_000, "1.5 million"), (2.34e9, "2.3 billion")]
)
def test_large_counts_are_in_words(count: float, words: str) -> None:
    assert in_words(count) == words


@pytest.mark.parametrize(
    ("value", "text"), [(1234.5, "1,234"), (99.44, "99.4"), (0.12345, "0.123")]
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text
