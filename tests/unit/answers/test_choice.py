"""Multiple choice: the letter is found where models write it, never guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers.choice import Choice


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
    assert Choice().parse(text) == found


def test_choices_are_compared_by_their_letter() -> None:
    assert Choice().is_correct("C", '"answer": "C"') is True
    assert Choice().is_correct("C", "c") is True
    assert Choice().is_correct("C", "B") is False


@given(st.lists(st.none() | st.sampled_from("ABCD"), min_size=1))
def test_vote_of_choices_is_a_most_frequent_one(answers: list[str | None]) -> None:
    winner, share = Choice().vote(answers)
    counts = [answers.count(letter) for letter in "ABCD"]
    assert share * len(answers) == pytest.approx(max(counts))
    assert winner is None if max(counts) == 0 else answers.count(winner) == max(counts)


@pytest.mark.parametrize(
    "text", ["answer:" + " " * 10**6, "answer: is " + "( " * 10**5, 'answer "' * 10**5]
)
def test_a_megabyte_without_a_letter_takes_no_hours(text: str) -> None:
    """As a model that loops may write it; this runs on the engine's event loop."""
    assert Choice().parse(text) is None
