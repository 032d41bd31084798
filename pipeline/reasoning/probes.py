"""Short answers in a model's tokens: what asks for them, and what is read; no I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.answers.base import AnswerFormat
from pipeline.reasoning.early_answer import EarlyAnswer, ProbePoints
from pipeline.reasoning.sampling import SamplingPolicy

# The likeliest answer is asked for. It is too short to loop.
GREEDY = {
    "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
}  # fmt: skip


@dataclass
class ShortAnswerForm:
    """How the answer alone is asked for after thinking, and read.

    ``text``: decodes token ids. ``closing``: those that close the thinking, if that is to be done.
    ``opening``: those that follow the thinking. ``stop_ids``: the tokens that may end the answer.
    ``schema``: what is generated fits it. ``tokens``: the most that it takes.
    """

    tokenizer: Any
    text: Callable[[Sequence[int]], str]
    closing: Sequence[int]
    answers: AnswerFormat

    def __post_init__(self) -> None:
        self._short = self.answers.short_form
        self.schema, self.tokens = self._short.schema, self._short.tokens
        if self._short.among:
            self.tokens = max(map(self._telling, self._short.among))
        self.opening = (*self.closing, *self._encode(self._short.opening))

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens whose text has the character that ends an answer."""
        ending = self._short.ending
        vocabulary: dict[str, int] = self.tokenizer.get_vocab() if ending else {}
        return tuple(sorted(number for token, number in vocabulary.items() if ending in token))

    def sampling(self, policy: SamplingPolicy, carried: int) -> SamplingPolicy:
        """``policy`` for an answer that continues ``carried`` tokens."""
        return policy.model_copy(update={**GREEDY, "max_tokens": carried + self.tokens})

    def is_whole(self, token_ids: Sequence[int]) -> bool:
        """Whether an answer that has come to a stop is at its end: braces inside it may stop it."""
        if not token_ids or self._short.ending != "}":
            return bool(token_ids)
        text = self._short.opening + self.text(token_ids)
        return "}" not in text[-8:] or text.count("{") <= text.count("}")

    def read(self, token_ids: Sequence[int], reason: str = "stop") -> str | None:
        """The value of an answer that ended with ``token_ids`` for ``reason``; None: none."""
        if reason != "stop" and not self._short.among:
            return None
        whole = self._completed(token_ids)
        return None if whole is None else self.answers.parse(whole)

    def _completed(self, token_ids: Sequence[int]) -> str | None:
        """The whole answer that begins with ``token_ids``, whose last character may be cut."""
        return self._short.completed(self.text(token_ids).rstrip("\ufffd"))

    def _telling(self, text: str) -> int:
        """After how many of its tokens ``text`` can be no other of the few."""
        ids = self._encode(text)
        told = (n for n in range(1, len(ids)) if self._completed(ids[:n]) is not None)
        return next(told, len(ids))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


@dataclass
class ProbeForm(ShortAnswerForm):
    """How the answer of a trace that still thinks is asked for and read, and where."""

    early: EarlyAnswer

    def points(self) -> ProbePoints:
        """What finds the points of one trace."""
        return ProbePoints(self._signs, self.early.every_tokens)

    def same(self, one: str, other: str) -> bool | None:
        """Whether two parsed answers are equal, as in votes; may take seconds for formulas.

        None if it would take too long to tell.
        """
        if one == other:
            return True
        groups, given_up = self.answers.group([one, other])
        return None if given_up and len(groups) > 1 else len(groups) == 1

    @cached_property
    def _signs(self) -> list[list[int]]:
        """The signs in tokens, at the begin of a text and behind a space."""
        return [self._encode(space + sign) for sign in self.early.signs for space in ("", " ")]
