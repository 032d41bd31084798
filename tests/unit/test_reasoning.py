"""The splitter: FACTS' table, and nothing lost or invented whatever the text."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.reasoning import CLOSE_TAG, FINAL_ANSWER, State, count_think_tokens, split, state_of

PIECES = ["<think>", "</think>", "\n", "\n\n", " ", "A", "ans", "**Final Answer**", "<", ">"]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join) | st.text()


@pytest.mark.parametrize(
    ("text", "finish_reason", "think", "answer", "state"),
    [
        ("A\n</think>\n\nans", "stop", "A", "ans", State.FINISHED),
        ("A and then", "length", "A and then", None, State.TRUNCATED),
        ("A\n</think>", "stop", "A", "", State.EMPTY),
        ("A\n</think>\n\nx\n</think>\n\ny", "stop", "A", "x\n</think>\n\ny", State.FINISHED),
        ("A\n</think>\n\nuse the <think> tag", "stop", "A", "use the <think> tag", State.FINISHED),
        ("<think>\nA\n</think>\n\nans", "stop", "A", "ans", State.FINISHED),
        ("A\n</think>\n\nhalf an ans", "length", "A", "half an ans", State.TRUNCATED),
        ("A A A A", "repetition", "A A A A", None, State.LOOPED),
        ("A, and the turn ended", "stop", "A, and the turn ended", None, State.EMPTY),
        ("", "stop", "", None, State.EMPTY),
        ("A\n</think>\n\n \n", "stop", "A", " ", State.EMPTY),
        ("A\n</think>\n\n    indented code", "stop", "A", "    indented code", State.FINISHED),
    ],
)
def test_qwq_output(text: str, finish_reason: str, think: str, answer: str, state: State) -> None:
    parts = split(text, "think_tags", ended=finish_reason == "stop")
    assert (parts.think, parts.answer) == (think, answer)
    assert state_of(parts, finish_reason) == state


@pytest.mark.parametrize(
    ("text", "finish_reason", "think", "answer", "state"),
    [
        ("A\n\n**Final Answer**\n\n\\boxed{3}", "stop", "A", "\\boxed{3}", State.FINISHED),
        ("A\n**Final Answer**B**Final Answer**C", "stop", "A\n**Final Answer**B", "C", State.FINISHED),
        ("just an answer", "stop", None, "just an answer", State.FINISHED),
        ("reasoning cut o", "length", "reasoning cut o", None, State.TRUNCATED),
        ("A\n\n**Final Answer**\n", "stop", "A", "", State.EMPTY),
    ],
)  # fmt: skip
def test_preview_output(
    text: str, finish_reason: str, think: str, answer: str, state: State
) -> None:
    parts = split(text, "final_answer", ended=finish_reason == "stop")
    assert (parts.think, parts.answer) == (think, answer)
    assert state_of(parts, finish_reason) == state


@given(TEXTS)
@example("<think>\n<think>a</think>")
def test_only_markers_and_line_breaks_are_dropped(text: str) -> None:
    parts = split(text, "think_tags")
    assert parts.think is not None
    before, marker, after = text.partition(CLOSE_TAG)
    assert parts.think_end == len(before) + len(marker)
    assert re.fullmatch(rf"\n*(?:<think>\n*)?{re.escape(parts.think)}\n*", before)
    if marker:
        assert parts.answer is not None
        assert after.strip("\n") == parts.answer
    else:
        assert parts.answer is None


@given(TEXTS, st.booleans())
def test_preview_parts_hold_the_whole_text(text: str, ended: bool) -> None:
    parts = split(text, "final_answer", ended)
    pieces = [piece for piece in (parts.think, parts.answer) if piece is not None]
    marker = FINAL_ANSWER if FINAL_ANSWER in text else ""
    assert marker.join(pieces).replace("\n", "") == text.replace("\n", "")


@given(st.lists(st.integers(1, 5), min_size=1), st.data())
def test_think_tokens_are_those_up_to_the_marker(lengths: list[int], data: st.DataObject) -> None:
    total = len(lengths)
    split_at = data.draw(st.integers(0, total))
    characters = sum(lengths)
    hint = data.draw(st.sampled_from([None, max(0, split_at - 1), total - 1]))
    counted = count_think_tokens(
        total, sum(lengths[:split_at]), characters, hint, lambda k: sum(lengths[:k])
    )
    assert counted == split_at
