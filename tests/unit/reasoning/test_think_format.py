"""The splitter: known outputs of each family, and no text lost or invented for any output."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.reasoning.think_format import (
    HEADINGS,
    THINK_TAGS,
    State,
    ThinkFormat,
    count_think_tokens,
    split,
    state_of,
)

SOLUTION = ThinkFormat(
    "<|begin_of_thought|>", "<|end_of_thought|>", None,
    "<|begin_of_solution|>", "<|end_of_solution|>",
)  # fmt: skip
NONE = ThinkFormat()
FORMATS = [THINK_TAGS, HEADINGS, SOLUTION, NONE]
PIECES = ["<think>", "</think>", "\n", "\n\n", " ", "A", "ans", "**Final Answer**", "<", ">"]
PIECES += ["**最终答案**", "**Answer: C**", "<answer>", "</answer>", "?"]
PIECES += ["### Final Answer", "**Answer:**", "Final Answer:", "**", ":", "#", "\r", *SOLUTION.tags]
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
    parts = split(text, THINK_TAGS, ended=finish_reason == "stop", opened=True)
    assert (parts.think, parts.answer) == (think, answer)
    assert state_of(parts, finish_reason) == state


@pytest.mark.parametrize(
    ("text", "finish_reason", "think", "answer", "state"),
    [
        ("A\n\n**Final Answer**\n\n\\boxed{3}", "stop", "A", "\\boxed{3}", State.FINISHED),
        ("A\n**Final Answer**\nB\n**Final Answer**\nC", "stop", "A\n**Final Answer**\nB", "C", State.FINISHED),
        ("A\n**Final Answer**\nB\n### Final Answer", "stop", "A\n**Final Answer**\nB", "", State.EMPTY),
        ("A\n**Final Answer**\nhalf", "length", "A", "half", State.TRUNCATED),
        ("A\n**Final Answer:** \\boxed{3}", "stop", "A", "\\boxed{3}", State.FINISHED),
        ("A A A", "repetition", "A A A", None, State.LOOPED),
        ("just an answer", "stop", None, "just an answer", State.FINISHED),
        ("reasoning cut o", "length", "reasoning cut o", None, State.TRUNCATED),
        ("A\n\n**Final Answer**\n", "stop", "A", "", State.EMPTY),
    ],
)  # fmt: skip
def test_preview_output(
    text: str, finish_reason: str, think: str, answer: str, state: State
) -> None:
    parts = split(text, HEADINGS, ended=finish_reason == "stop")
    assert (parts.think, parts.answer) == (think, answer)
    assert state_of(parts, finish_reason) == state


@pytest.mark.parametrize(
    "heading",
    [
        "**Final Answer**", "**Final Answer:**", "**Final Answer**:", "**Final answer**", "Final Answer",
        "**Final Solution**", "**Answer**", "**Answer:**", "### Final Answer", "# Final Answer:",
        "### **Final Answer**", "Final Answer:", "  Final answer: ", "**Final Answer** ", "## Answer",
        "**Final Answer**\r", "**FINAL ANSWER**", "**Final Answers**", "Final Answers:", "## ANSWER",
        "**最终答案**", "**答案**", "**最终解答**", "**最终答案：**", "### 最终答案", "最终答案：", "**最終答案**",
    ],
)  # fmt: skip
def test_heading_divides(heading: str) -> None:
    parts = split(f"A\n\n{heading}\n\n3", HEADINGS)
    assert (parts.think, parts.answer) == ("A", "3")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("**Final Answer** \\boxed{5}", "\\boxed{5}"), ("**Answer:** 42", "42"), ("**Answer**: F", "F"),
        ("**最终答案** \\boxed{5}", "\\boxed{5}"), ("**答案：** 42", "42"), ("最终答案：42", "42"),
        ("**Answer** 42", "42"), ("**Final Answer:** Why?", "Why?"), ("### Answer: 42", "42"),
        ("**Answer: C**", "**Answer: C**"), ("**Final Answer: 3**", "**Final Answer: 3**"),
    ],
)  # fmt: skip
def test_heading_with_the_answer_behind_it_divides(line: str, answer: str) -> None:
    parts = split(f"A\n\n{line}\n", HEADINGS)
    assert (parts.think, parts.answer) == ("A", answer)


@pytest.mark.parametrize(
    ("text", "think", "answer"),
    [
        ("A, so the answer is <ANSWER>5</ANSWER>.", "A, so the answer is ", "<ANSWER>5</ANSWER>."),
        ("A\n\n<final_answer>\n5\n</final_answer>\n", "A", "<final_answer>\n5\n</final_answer>"),
        ("A <answer>4</answer>? No.\n<answer>5</answer>", "A <answer>4</answer>? No.", "<answer>5</answer>"),
        ("A\n**Final Answer**\nB\n<answer>5</answer>", "A", "B\n<answer>5</answer>"),
        ("A <answer>4</answer>\n**Final Answer**\n5", "A <answer>4</answer>", "5"),
        ("I use <answer> tags, so <answer>5</answer> is right.", None, None),
        ("A\n<p>a page</p>", None, None),
        ("A\n<answer>5", None, None),
    ],
)  # fmt: skip
def test_an_answer_in_tags_of_its_own_divides_at_the_end(
    text: str, think: str | None, answer: str | None
) -> None:
    parts = split(text, HEADINGS)
    assert (parts.think, parts.answer) == (think, text if answer is None else answer)


@pytest.mark.parametrize("unit", ["**Final Answer", "**Answer: ", "**Answer:** x?\n", "* ", "?", " ", "#",
                                  "<answer>", "<answer>x</answer> ", "最终答案：", "</think>", "\n"])  # fmt: skip
@pytest.mark.parametrize("before", ["", "**Answer:", "<answer>"])
def test_a_megabyte_of_marks_is_split_in_linear_time(unit: str, before: str) -> None:
    """A quadratic pattern takes minutes here, which the hang guard ends."""
    text = before + unit * (10**6 // len(unit)) + "x"
    for think_format in (HEADINGS, THINK_TAGS):
        split(text, think_format)


@pytest.mark.parametrize(
    "line",
    [
        "So the **Final Answer** is 3", "**Final Answer** is 3?", "Final answer is 3", "Answer: 3?",
        "I'd write Final Answer: 3", "**Answer:** 3?", "Answer", "The final answer:",
        "#### The Final Answer", "    Final Answer: in code", "**Answer: is it 3?**", "Answer: 3",
        "**最终答案**是 3", "答案：3", "因此答案是 3。",
    ],
)  # fmt: skip
def test_heading_words_inside_a_sentence_do_not_divide(line: str) -> None:
    assert split(f"A\n{line}\nB", HEADINGS).think is None


@pytest.mark.parametrize(
    ("text", "finish_reason", "think", "answer", "state"),
    [
        ("<|begin_of_thought|>\n\nA\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nans\n\n<|end_of_solution|>", "stop", "A", "ans", State.FINISHED),
        ("<|begin_of_thought|>\nA\n<|end_of_thought|>\n<|begin_of_solution|>\nan", "length", "A", "an", State.TRUNCATED),
        ("<|begin_of_thought|>\nA\n<|end_of_thought|>\n<|begin_of_solution|>\n", "stop", "A", "", State.EMPTY),
        ("<|begin_of_thought|>\nA", "stop", "A", None, State.EMPTY),
        ("<|begin_of_thought|>\nA", "length", "A", None, State.TRUNCATED),
        ("just an answer", "stop", None, "just an answer", State.FINISHED),
        ("<|begin_of_solution|>ans<|end_of_solution|>", "stop", None, "ans", State.FINISHED),
        ("cut o", "length", "cut o", None, State.TRUNCATED),
    ],
)  # fmt: skip
def test_output_with_tags_of_another_family(
    text: str, finish_reason: str, think: str | None, answer: str | None, state: State
) -> None:
    parts = split(text, SOLUTION, ended=finish_reason == "stop")
    assert (parts.think, parts.answer) == (think, answer)
    assert state_of(parts, finish_reason) == state


@pytest.mark.parametrize(
    ("finish_reason", "state"), [("stop", State.FINISHED), ("length", State.TRUNCATED)]
)
def test_output_of_a_model_that_does_not_think_is_all_answer(
    finish_reason: str, state: State
) -> None:
    parts = split("A </think> B\n", NONE, ended=finish_reason == "stop")
    assert (parts.think, parts.answer, parts.think_end) == (None, "A </think> B", 0)
    assert state_of(parts, finish_reason) == state


@given(TEXTS, st.sampled_from(FORMATS), st.booleans(), st.booleans())
@example("<think>\n<think>a</think>", THINK_TAGS, True, True)
def test_only_markers_and_line_breaks_are_dropped(
    text: str, think_format: ThinkFormat, ended: bool, opened: bool
) -> None:
    parts = split(text, think_format, ended, opened)
    close = think_format.find_close(text)
    start, end = close or (len(text), len(text))
    before, after = (text[:start], text[end:]) if parts.think is not None else ("", text)
    assert parts.think_end == (end if parts.think is not None else 0)
    assert (parts.answer is None) == (parts.think is not None and close is None)

    def is_whole(part: str, whole: str, opening: str | None, closing: str | None) -> bool:
        tags = [rf"(?:{re.escape(tag)}\n*)?" if tag else "" for tag in (opening, closing)]
        return bool(re.fullmatch(rf"\n*{tags[0]}{re.escape(part)}\n*{tags[1]}\n*", whole))

    assert is_whole(parts.think or "", before, think_format.open, None)
    if parts.answer is not None:
        assert is_whole(parts.answer, after, think_format.answer_open, think_format.answer_close)


@given(TEXTS)
def test_no_heading_is_left_after_the_one_that_divides(text: str) -> None:
    parts = split(text, HEADINGS)
    if parts.think is not None:
        close = HEADINGS.find_close("A" + text[parts.think_end :])
        assert close is None or close == (1, 1)  # the tags of an answer, which belong to it


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
