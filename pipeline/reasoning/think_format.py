"""Output text to thinking, answer and state; no I/O.

The rules and the reasons for a splitter of our own: vLLM's offline engine returns raw text, and
its parser for QwQ loses an answer that merely mentions ``<think>``.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class ThinkFormat:
    """How a family's thinking and answer lie in one text; all None: it does not think.

    ``open``: begins the thinking, in the prompt or in the output. ``close``: ends it.
    ``close_pattern``: for a family that ends it in several ways, a regular expression for them
    (``^`` and ``$`` match at lines), of which the last divides. ``answer_open`` and
    ``answer_close``: around the answer.
    """

    open: str | None = None
    close: str | None = None
    close_pattern: str | None = None
    answer_open: str | None = None
    answer_close: str | None = None

    @property
    def tags(self) -> list[str]:
        """The tags it has."""
        tags = (self.open, self.close, self.answer_open, self.answer_close)
        return [tag for tag in tags if tag is not None]

    @property
    def closing(self) -> str:
        """What stands between thinking and answer, with the line breaks that are usual there."""
        if self.close is None:
            return ""
        before = "\n" if self.close_pattern is None else "\n\n"  # a tag; a heading
        after = f"{self.answer_open}\n\n" if self.answer_open else ""
        return f"{before}{self.close}\n\n{after}"

    def find_close(self, text: str) -> tuple[int, int] | None:
        """Where in ``text`` the marker begins and ends that divides it."""
        if self.close_pattern is not None:
            found = list(re.finditer(self.close_pattern, text, re.MULTILINE))
            return found[-1].span() if found else None
        if self.close is None or self.close not in text:
            return None
        start = text.index(self.close)
        return start, start + len(self.close)

    def unwrap(self, answer: str) -> str:
        """``answer`` without its tags and the line breaks around it."""
        answer = answer.strip("\n").removeprefix(self.answer_open or "").strip("\n")
        return answer.removesuffix(self.answer_close or "").strip("\n")


THINK_TAGS = ThinkFormat("<think>", "</think>")
# What QwQ-32B-Preview and its like write above an answer: "Final Answer" or "Final Solution" as a
# heading, bold or plain, on a line of its own or with a colon and the answer behind; "Answer" only
# as a heading or bold, and alone on its line. Inside a sentence none of them counts.
HEADINGS = ThinkFormat(
    close="**Final Answer**",
    close_pattern=(
        r"^ {0,3}(?:(?:#{1,6} ?)?\*{0,2}[Ff]inal (?:[Aa]nswer|[Ss]olution)"
        r"(?::\*{0,2}|\*{0,2}:|\*{0,2}(?=[ \t\r]*$))"
        r"|(?:#{1,6} ?\*{0,2}|\*\*)Answer(?::?\*{0,2}|\*{0,2}:)(?=[ \t\r]*$))[ \t\r]*"
    ),
)


class State(StrEnum):
    """How a trace ended; every row of the output has exactly one."""

    FINISHED = "finished"
    TRUNCATED = "truncated"
    LOOPED = "looped"
    RESCUED = "rescued"
    EMPTY = "empty"
    UNPARSED = "unparsed"
    FAILED = "failed"


@dataclass(frozen=True)
class Split:
    """The parts of one output text.

    ``think`` and ``answer`` are None where there is no such part; line breaks around both are
    dropped. ``think_end`` is the number of characters up to and with the marker that closes the
    thinking (all of them if it never closes, 0 if there is no thinking).
    """

    think: str | None
    answer: str | None
    think_end: int


def split(text: str, think_format: ThinkFormat, ended: bool = True, opened: bool = False) -> Split:
    """Take ``text`` (an output without its prompt) apart; nothing but markers is dropped.

    ``ended``: the model ended its turn itself, rather than being cut off. ``opened``: the prompt
    has opened the thinking.

    The first closing tag divides; where a ``close_pattern`` finds headings, the last one, even
    with nothing behind it. Without any, the text is all thinking if that was opened or if it is
    cut off, else all answer. An opening tag that the output begins with is dropped.
    """
    found = think_format.find_close(text)
    start, end = found or (len(text), len(text))
    think = text[:start].strip("\n")
    if think_format.open is not None and think.startswith(think_format.open):
        think, opened = think.removeprefix(think_format.open).strip("\n"), True
    if found is None and (think_format.close is None or (ended and not opened)):
        return Split(None, think_format.unwrap(text), 0)
    return Split(think, think_format.unwrap(text[end:]) if found else None, end)


def state_of(parts: Split, finish_reason: str) -> State:
    """The state of a trace that an engine ended with ``finish_reason`` (vLLM's words).

    ``stop`` with nothing but white space for an answer is ``empty``: the model ended its turn
    without one.
    """
    if finish_reason == "length":
        return State.TRUNCATED
    if finish_reason == "repetition":
        return State.LOOPED
    if parts.answer is None or not parts.answer.strip():
        return State.EMPTY
    return State.FINISHED


def rescued_state(answer: str | None, ended: bool, looped: bool) -> State:
    """The state of a trace whose thinking was closed for it, because it ``looped`` or ran out.

    It is ``rescued`` if the model then answered and ``ended`` its turn; without a word of an answer
    it is what it was before.
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
    """How many of ``total`` output tokens the first ``think_end`` characters of the text take.

    ``close_at``: the index of the first closing-tag token, a likely place; ``length_of(k)``: how
    many characters the first k tokens decode to. The rest of the tokens (the end-of-turn token
    too) belongs to the answer, so that both together are what the engine generated.
    """
    if think_end == 0:
        return 0
    if think_end >= text_length and close_at is None:
        return total
    if close_at is not None and length_of(close_at + 1) == think_end:
        return close_at + 1
    return bisect_left(range(total), think_end, key=length_of)
