"""Traces from token ids: what the prompt has opened, tags of every kind, all tokens counted."""

import pytest
from hypothesis import given

from pipeline.answers.boxed import Boxed
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, State, ThinkFormat, split
from pipeline.reasoning.trace import Trace, TraceMaker
from tests.unit.reasoning.test_think_format import FORMATS, NONE, SOLUTION, TEXTS

TOKENIZER = load_tokenizer("qwq-nano")
MAKERS = [TraceMaker(TOKENIZER, think_format) for think_format in FORMATS]
# Of the kind of s1: its tags hold a control token, and are no token of their own.
ROLES = ThinkFormat("<|im_start|>think", "<|im_start|>answer")
ASKED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text)
    return ids


def trace_of(output: str, think_format: ThinkFormat, prompt: str, reason: str = "stop") -> Trace:
    progress = TraceProgress(finish_reason=reason)
    progress.report(encode(output))
    maker = TraceMaker(TOKENIZER, think_format)
    return maker.trace(progress, encode(prompt), sample=0, seed=0, attempt=0)


@pytest.mark.parametrize(
    ("think_format", "output", "closed_at", "expected"),
    [
        (THINK_TAGS, "A\n</think>\n\nB<|im_end|>", None, "A\n</think>\n\n\\boxed{"),
        (THINK_TAGS, "A<|im_end|>", None, "A\n\n\\boxed{"),
        (THINK_TAGS, "A. Stop.\n</think>\n\n", 1, "A. Stop.\n</think>\n\n\\boxed{"),
        (NONE, "A<|im_end|>", None, "A\n\n\\boxed{"),
        (
            HEADINGS, "A\n\n**Final Answer**\n\nB<|im_end|>", None,
            "A\n\n**Final Answer**\n\n\\boxed{",
        ),
        (HEADINGS, "A<|im_end|>", None, "A\n\n**Final Answer**\n\n\\boxed{"),
    ],
)  # fmt: skip
def test_answer_is_asked_for_once_more_after_the_thinking_as_it_is(
    think_format: ThinkFormat, output: str, closed_at: int | None, expected: str
) -> None:
    ids = encode(output)
    progress = TraceProgress(finish_reason="stop", closed_at=closed_at)
    progress.report(ids)
    if closed_at is not None:
        progress.closing_tokens, progress.closed_by = len(ids) - closed_at, "budget"
        progress.report(encode("B<|im_end|>"))
    maker = TraceMaker(TOKENIZER, think_format, Boxed())
    trace = maker.trace(progress, encode(ASKED), sample=0, seed=0, attempt=0)
    assert trace.state == (State.UNPARSED)
    after = [*maker.asked_after(progress, trace), *maker.asking_form.opening]
    assert maker.text(after) == expected
    asked = maker.asked(trace, "7", 3)
    assert asked.state == (State.FINISHED if closed_at is None else State.RESCUED)
    assert (asked.parsed, asked.answer, asked.asked_tokens) == ("7", trace.answer, 3)
    in_vain = maker.asked(trace, None, 3)
    assert (in_vain.state, in_vain.asked_tokens) == (State.UNPARSED, 3)


@pytest.mark.parametrize("maker", MAKERS)
@given(TEXTS)
def test_policy_and_splitter_agree_on_whether_thinking_is_over(
    maker: TraceMaker, text: str
) -> None:
    think_format = FORMATS[MAKERS.index(maker)]
    ids = encode(text)
    parts = split(maker.text(ids), think_format, ended=False)
    assert maker.is_closed(ids) == (parts.answer is not None)


@pytest.mark.parametrize(
    ("think_format", "prompt", "output", "think", "answer", "state"),
    [
        (THINK_TAGS, ASKED + "<think>\n", "A\n</think>\n\nB", "A", "B", State.FINISHED),
        (THINK_TAGS, ASKED, "<think>\nA\n</think>\n\nB", "A", "B", State.FINISHED),
        (THINK_TAGS, ASKED + "<think>\n", "A", "A", None, State.EMPTY),
        (THINK_TAGS, ASKED, "<think>\nA", "A", None, State.EMPTY),
        (THINK_TAGS, ASKED, "B", None, "B", State.FINISHED),
        (THINK_TAGS, "<think><|im_start|>", "B", None, "B", State.FINISHED),
        (SOLUTION, ASKED, "B", None, "B", State.FINISHED),
        (ROLES, ASKED, "<|im_start|>think\nA\n<|im_start|>answer\nB", "A", "B", State.FINISHED),
        (NONE, ASKED, "<think>B", None, "<think>B", State.FINISHED),
    ],
)  # fmt: skip
def test_output_comes_apart_as_prompt_and_format_say(
    think_format: ThinkFormat,
    prompt: str,
    output: str,
    think: str | None,
    answer: str | None,
    state: State,
) -> None:
    trace = trace_of(output + "<|im_end|>", think_format, prompt)
    assert (trace.think, trace.answer, trace.state) == (think, answer, state)
    assert trace.think_tokens + trace.answer_tokens == len(encode(output)) + 1
    if think is None:
        assert trace.think_tokens == 0
