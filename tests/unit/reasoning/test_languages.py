"""The share of foreign scripts: letters of scripts outside the prompt count, formulas never do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reasoning.languages import foreign_share


@pytest.mark.parametrize(
    ("text", "prompt", "share"),
    [
        ("The sum is 12.", "What is 5 + 7?", 0.0),
        ("The sum 等于 is", "What is 5 + 7?", 2 / 10),
        ("所以答案是 12", "五加七等于多少？", 0.0),
        ("Let x be 所以答案", "五加七等于多少？", 0.0),
        ("Сумма равна", "What is the sum?", 1.0),
        ("Сумма равна α + β", "Чему равна сумма?", 0.0),
        ("안녕 hello", "say hello in Korean: 안", 0.0),
        ("12 + 7 = 19 …", "五加七", None),
        ("ab ይህ", "What?", 2 / 4),  # Ethiopic
        ("ab తట", "What?", 2 / 4),  # Telugu
        ("ab မန", "What?", 2 / 4),  # Burmese
        ("ab ქა", "Telugu: తట", 2 / 4),
        ("ab ᏣᎳ", "What?", 2 / 4),  # Cherokee, of the scripts that are counted as one
        ("ab タナ", "ひらがな", 0.0),
        ("ab ﾊﾝ", "What?", 2 / 4),
        ("𝑥² ∈ ℝ ª ﬁ Å ὰ", "What?", 0.0),
        ("", "x", None),
        (None, "x", None),
    ],
)
def test_share(text: str | None, prompt: str, share: float | None) -> None:
    assert foreign_share(text, lambda: prompt) == share


@given(st.text(), st.text())
def test_share_is_between_0_and_1_and_no_text_is_foreign_to_itself(text: str, prompt: str) -> None:
    share = foreign_share(text, lambda: prompt)
    assert share is None or 0 <= share <= 1
    assert foreign_share(text, lambda: text + prompt) in (None, 0.0)


@given(st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=1))
def test_all_of_a_chinese_text_is_foreign_to_an_english_prompt(text: str) -> None:
    assert foreign_share(text, lambda: "What is 5 + 7?") == 1.0
