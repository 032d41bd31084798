"""Output text to thinking, answer and state; no I/O.

The rules and the reasons for a splitter of our own: vLLM's offline engine returns raw text, and
its parser for QwQ loses an answer that merely mentions ``<think>``.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from pipeline.sampling import ThinkFormat

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"
FINAL_ANSWER = "**Final Answer**"


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


def split(text: str, think_format: ThinkFormat, ended: bool = True) -> Split:
    """Take ``text`` (an output without its prompt) apart; nothing but markers is dropped.

    ``ended`` says that the model ended its turn itself, rather than being cut off.

    ``think_tags`` (QwQ-32B; its prompt has opened the thinking): the first ``</think>`` divides;
    without one everything is thinking. A ``<think>`` that the model repeats at the start is
    dropped.

    ``final_answer`` (QwQ-32B-Preview, which has no think tags): the last ``**Final Answer**``
    divides; without one, a text that ended by itself is all answer and one cut off all thinking.
    """
    if think_format == "final_answer":
        think, marker, answer = text.rpartition(FINAL_ANSWER)
        if not marker and ended:
            return Split(None, text.strip("\n"), 0)
        if not marker:
            return Split(text.strip("\n"), None, len(text))
        return Split(think.strip("\n"), answer.strip("\n"), len(think) + len(marker))
    think, marker, answer = text.partition(CLOSE_TAG)
    end = len(think) + len(marker)
    think = think.strip("\n")
    if think.startswith(OPEN_TAG):
        think = think.removeprefix(OPEN_TAG).strip("\n")
    return Split(think, answer.strip("\n") if marker else None, end)


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
