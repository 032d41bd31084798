"""Split an output text into thinking and answer, and derive its state; no I/O.

We have a splitter of our own because vLLM's offline engine returns raw text, and because its parser
for QwQ loses answers that merely mention ``<think>``.
"""

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pipeline.answers.marked import TAGGED_ANSWER


@dataclass(frozen=True)
class ThinkFormat:
    """The markers that separate a model family's thinking from its answer.

    ``open``: starts the thinking, in the prompt or in the output. ``close``: ends it.
    ``close_pattern``: a regular expression for families that end it in several ways (``^`` and
    ``$`` match at line ends); its last match divides. Without a match, an answer in tags of its own
    at the end of the text does, as in ``<answer>42</answer>``, because prompts ask for that.
    ``answer_open`` and ``answer_close``: around the answer. With all of them None, the model does
    not think.
    """

    open: str | None = None
    close: str | None = None
    close_pattern: str | None = None
    answer_open: str | None = None
    answer_close: str | None = None

    @property
    def tags(self) -> list[str]:
        """The tags that are set."""
        tags = (self.open, self.close, self.answer_open, self.answer_close)
        return [tag for tag in tags if tag is not None]

    @property
    def closing(self) -> str:
        """Text between thinking and answer, with the usual line breaks; empty without thinking."""
        if self.close is None:
            return ""
        before = "\n" if self.close_pattern is None else "\n\n"  # a tag; a heading
        after = f"{self.answer_open}\n\n" if self.answer_open else ""
        return f"{before}{self.close}\n\n{after}"

    def find_close(self, text: str) -> tuple[int, int] | None:
        """Start and end of the marker that divides ``text``; None if there is none."""
        if self.close_pattern is not None:
            matches = deque(re.finditer(self.close_pattern, text, re.MULTILINE), maxlen=1)
            if matches:
                return matches[0].span()
            tagged = TAGGED_ANSWER.search(text)
            return None if tagged is None else (tagged.start(), tagged.start())
        if self.close is None or self.close not in text:
            return None
        start = text.index(self.close)
        return start, start + len(self.close)

    def unwrap(self, answer: str) -> str:
        """``answer`` without its tags and the line breaks around it."""
        answer = answer.strip("\n").removeprefix(self.answer_open or "").strip("\n")
        return answer.removesuffix(self.answer_close or "").strip("\n")


THINK_TAGS = ThinkFormat("<think>", "</think>")
# QwQ-32B-Preview and similar models write a heading above the answer, alone on a line, or with a
# colon or in bold and the answer behind it. Plain text counts as a heading only with "final".
# Nothing counts inside a sentence: "**Final Answer** is", "**Answer:** 3?". A line that is bold
# from heading to answer stays whole, with the answer.
_FINAL = "(?:(?i:final (?:answer|solution)s?)|最[終终后後](?:答案|解答))"
_ANSWER = "(?:(?i:answers?)|答案|解答)"
_MARK = r"(?:#{1,6} ?\*{0,2}|\*\*)"
_COLON = r"(?:[:：]\*{0,2}|\*{0,2}[:：])"
_ALONE = r"\*{0,2}(?=[ \t\r]*$)"
_BOLD = r"\*\*(?![ \t]*[a-z是应應])"
_QUESTION = r".*[?？]\*{0,2}[ \t\r]*$"
_BOLD_LINE = rf"\*\*(?:{_FINAL}|{_ANSWER})[:：][^*\n]+\*\*[ \t\r]*$"
HEADINGS = ThinkFormat(
    close="**Final Answer**",
    close_pattern=(
        rf"^ {{0,3}}(?:(?={_BOLD_LINE})(?!{_QUESTION})|(?!{_BOLD_LINE})(?:"
        rf"{_MARK}?{_FINAL}(?:{_COLON}|{_ALONE})|\*\*{_FINAL}{_BOLD}"
        rf"|{_MARK}{_ANSWER}(?:{_COLON}|{_ALONE}|{_BOLD})(?!{_QUESTION}))[ \t\r]*)"
    ),
)


class State(StrEnum):
    """How a trace ended; each trace of the output has exactly one."""

    FINISHED = "finished"
    TRUNCATED = "truncated"
    LOOPED = "looped"
    RESCUED = "rescued"
    EMPTY = "empty"
    UNPARSED = "unparsed"
    FAILED = "failed"


@dataclass(frozen=True)
class Split:
    """An output text split into thinking and answer.

    ``think`` and ``answer``: without the line breaks around them; None if there is none.
    ``think_end``: number of characters up to the end of the marker that closes the thinking; all
    characters if it never closes, 0 without thinking.
    """

    think: str | None
    answer: str | None
    think_end: int


def split(text: str, think_format: ThinkFormat, ended: bool = True, opened: bool = False) -> Split:
    """Split ``text``, an output without its prompt; only markers and line breaks are dropped.

    ``ended``: the model ended its turn, it was not cut off. ``opened``: the prompt opens the
    thinking.

    The first closing tag divides. With a ``close_pattern`` the last heading divides, even if
    nothing follows it, else the tags of an answer. Without any, the text is all thinking if
    thinking was opened or the text was cut off, and all answer otherwise. An opening tag at the
    start of the output is dropped.
    """
    close = think_format.find_close(text)
    start, end = close or (len(text), len(text))
    think = text[:start].strip("\n")
    if think_format.open is not None and think.startswith(think_format.open):
        think, opened = think.removeprefix(think_format.open).strip("\n"), True
    if close is None and (think_format.close is None or (ended and not opened)):
        return Split(None, think_format.unwrap(text), 0)
    return Split(think, think_format.unwrap(text[end:]) if close else None, end)


def state_of(parts: Split, finish_reason: str) -> State:
    """The state of a trace that ended with vLLM's ``finish_reason``: stop, length or repetition.

    A trace that ended its turn with a blank answer, or none, is ``empty``.
    """
    if finish_reason == "length":
        return State.TRUNCATED
    if finish_reason == "repetition":
        return State.LOOPED
    if parts.answer is None or not parts.answer.strip():
        return State.EMPTY
    return State.FINISHED


def rescued_state(answer: str | None, ended: bool, looped: bool) -> State:
    """The state of a trace whose thinking was closed for it, after it ``looped`` or ran out.

    ``rescued`` if the model then gave an answer and ``ended`` its turn. Without an answer, the
    trace keeps its previous state: looped or truncated.
    """
    if answer is None or not answer.strip():
        return State.LOOPED if looped else State.TRUNCATED
    return State.RESCUED if ended else State.TRUNCATED


def count_think_tokens(
    total: int,
    think_end: int,
    text_length: int,
    close_at: int | None,
    length_of: Callable[[int], int],
) -> int:
    """The number of output tokens that the first ``think_end`` characters of the text take.

    ``total``: number of output tokens. ``text_length``: number of characters. ``close_at``: index
    of the first closing-tag token, if any, tried first because decoding is slow.
    ``length_of(k)``: number of characters that the first k tokens decode to. All other tokens,
    including the end-of-turn token, belong to the answer: both counts add up to ``total``.
    """
    if think_end == 0:
        return 0
    if think_end >= text_length and close_at is None:
        return total
    if close_at is not None and length_of(close_at + 1) == think_end:
        return close_at + 1
    return bisect_left(range(total), think_end, key=length_of)
