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
        ("The answer is C.", "C"),
        ("The correct answer is (C).", "C"),
        ("The correct answer is **G**.\n\nThe others are not.", "G"),
        ("the best answer is: (B).", "B"),
        ("**Answer**: F", "F"),
        ("**Final Answer:** **(D)**", "D"),
        ("Answer:\n\nC", "C"),
        ("The correct answer is option D.", "D"),
        (r"The answer is $\textbf{(E)}$", "E"),
        ("**C) the heart**", "C"),
        ("(C) the heart", "C"),
        ("Option C", "C"),
        ("答案：C", "C"),
        ("正确答案是（C）。", "C"),
        ("故选C", "C"),
        (r"\boxed{\mathbf{C}}", "C"),
        (r"\boxed{\text{(C) Plane}}", "C"),
        ("The answer is A or B.", None),
        ("Answer: A, B", None),
        ("答案：A和B", None),
        ("A) x\nB) y\nC) z", None),
        ("If the answer is A, this holds.\nIt does not.", None),
        ("The answer is not C.", None),
        ("My answer is correct.", None),
        ("The answer is I don't know", None),
        ("The answer is A.\nThen again, the answer is B.", None),
        (r"\boxed{12}", None),
        # in lower case, where it is marked as an option
        ("(a)", "A"),
        ("b) the liver", "B"),
        (r"\boxed{\text{(b)}}", "B"),
        (r"\boxed{b}", "B"),
        ("So the answer is (b).", "B"),
        ("The answer is b.", "B"),
        ("a) x\nb) y\nc) z", None),
        ("The answer is a", None),
        ("the answer is a dog", None),
        # in a sentence
        ("Option B is correct.", "B"),
        ("Therefore, **B** is the correct choice.", "B"),
        ("B is the correct answer.\n\nThe others are not.", "B"),
        ("If B is correct, this holds.", None),
        ("A is correct.\nThen again, B is correct.", None),
        ("The answer should be C.", "C"),
        ("I would choose (C).", "C"),
        ("The answer is A because it is so.", "A"),
        # with signs of other keyboards and of other texts
        ("答案：Ｂ", "B"),
        ("（Ｂ）", "B"),
        ("【答案】B", "B"),
        ("正确选项是B", "B"),
        ("所以选B。", "B"),
        ("정답은 B입니다.", "B"),
        ('"answer": "Choice B"', "B"),
        (r"{\"answer\": \"B\"}", "B"),
        (r"Answer: \(B\)", "B"),
        ("So it is.\n<answer>B</answer>", "B"),
        ("<answer>the heart</answer>", None),
        # letters of words and formulas
        ("Answer: T cells", None),
        ("Answer: C++", None),
        ("Answer: F = ma", None),
        ("The answer is X-rays", None),
        ("The answer is E = mc^2", None),
        ("Answer: C4 plants", None),
        ("Answer: A-B", None),
        ("Answer: A - the heart", "A"),
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
    "text",
    [
        "answer:" + " " * 10**6,
        "answer: is " + "( " * 10**5,
        'answer "' * 10**5,
        "the answer is " * 10**5,
        "答案" * 10**5,
        "A) x\n" * 10**5 + "B) y",
        "if " * 10**5 + "answer is",
        "**" * 10**6,
        "option " * 10**5,
        ('"answer": ' + " " * 80) * 10**4,
        'answer: \\"' * 10**5,
        "answer: option " * 10**5,
        "I choose " * 10**5,
        "答案】" * 10**5,
        "<answer>" * 10**5,
    ],
    ids=range(15),
)
def test_a_megabyte_without_a_letter_takes_no_hours(text: str) -> None:
    """As a model that loops may write it; this runs on the engine's event loop."""
    assert Choice().parse(text) is None
