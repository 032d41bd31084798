"""A trace: one sample of one row, made from the token ids that an engine generated."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from pipeline.answers.base import AnswerFormat
from pipeline.answers.text import Text
from pipeline.reasoning.early_answer import EarlyAnswer
from pipeline.reasoning.languages import foreign_share
from pipeline.reasoning.policy import AnswerPass, ClosedBy, TraceProgress, closing_text
from pipeline.reasoning.probes import ProbeForm, ShortAnswerForm
from pipeline.reasoning.think_format import (
    Split,
    State,
    ThinkFormat,
    count_think_tokens,
    rescued_state,
    split,
    state_of,
)

# Of a prompt's end, enough to hold an opening tag.
TAIL_TOKENS = 64


@dataclass(frozen=True)
class Trace:
    """One sample of one row: our output columns, see `TRACE_FIELDS`, `OPTIONAL_FIELDS`."""

    state: str
    sample: int = 0
    seed: int = 0
    attempt: int = 0
    think: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    think_tokens: int = 0
    answer_tokens: int = 0
    parsed: str | None = None
    correct: bool | None = None
    vote: str | None = None
    agreement: float | None = None
    think_foreign: float | None = None
    answer_foreign: float | None = None
    closed_by: str | None = None
    loop_retries: int = 0
    wasted_tokens: int = 0
    carried_tokens: int = 0
    duplicate_of: str | None = None
    yarn_factor: float | None = None
    error: str | None = None
    raw: str | None = None
    control: bool = False
    probes: int = 0
    probe_tokens: int = 0
    early_answer: str | None = None
    early_tokens: int | None = None
    early_agrees: bool | None = None
    early_correct: bool | None = None
    asked_tokens: int = 0
    sampled_with: Mapping[str, Any] | None = None


class Pieces(NamedTuple):
    """What a trace's tokens say, but for its parsed answer."""

    state: str
    think: str | None
    answer: str | None
    think_tokens: int
    answer_tokens: int
    text: str | None = None


class TraceMaker:
    """Makes traces of token ids, with a model's tokenizer and its way to close the thinking."""

    def __init__(
        self,
        tokenizer: Any,
        think_format: ThinkFormat,
        answer_format: AnswerFormat | None = None,
        raw_text: bool = True,
        yarn_factor: float | None = None,
    ) -> None:
        self._yarn_factor = yarn_factor
        self._tokenizer, self._think_format, self._raw_text = tokenizer, think_format, raw_text
        self._answer_format = Text() if answer_format is None else answer_format
        self._close_id = tokenizer.backend_tokenizer.token_to_id(think_format.close or "")
        # Control tokens are no text, except where the format's own tags hold them.
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
        self._unseen = {
            number
            for number, token in added.items()
            if token.special and not any(token.content in tag for tag in think_format.tags)
        }
        self.closing: list[int] = tokenizer.encode(
            closing_text(think_format), add_special_tokens=False
        )

    def answering(self, answer_format: AnswerFormat) -> "TraceMaker":
        """The same for answers of another format."""
        other = copy(self)
        other._answer_format = answer_format
        return other

    @property
    def answer_pass(self) -> AnswerPass | None:
        """How answers of a format with a schema are generated; None for other formats."""
        schema = self._answer_format.schema
        if schema is None:
            return None
        opening = self._think_format.closing
        if self._close_id is not None:  # the model has written the tag itself
            opening = opening.partition(self._think_format.close or "")[2]
        return AnswerPass(
            schema,
            self._close_id,
            self._tokenizer.encode(opening, add_special_tokens=False),
            tuple(self._unseen),
            after_thinking=self._think_format.close is not None,
        )

    def probe_form(self, early: EarlyAnswer) -> ProbeForm:
        """How the answer of a trace that still thinks is asked for."""
        return ProbeForm(self._tokenizer, self.text, self.closing, self._answer_format, early)

    @property
    def asking_form(self) -> ShortAnswerForm:
        """How the answer is asked for once more, if it can't be parsed."""
        return ShortAnswerForm(self._tokenizer, self.text, (), self._answer_format)

    def asked_after(self, progress: TraceProgress, trace: Trace) -> list[int]:
        """The token ids of ``trace`` after which its answer is asked for once more.

        Its thinking and what closes that, as they are. Where text is not divided, it is all of it:
        it holds the thinking.
        """
        token_ids, closing = progress.token_ids.tolist(), self._think_format.closing
        if progress.closed_at is not None:
            return token_ids[: progress.closed_at + progress.closing_tokens]
        if trace.think_tokens:
            token_ids = token_ids[: trace.think_tokens]
            closing = closing.partition(self._think_format.close or "")[2]
        elif self._think_format.close_pattern is None:
            closing = "\n\n"
        while token_ids and token_ids[-1] in self._unseen:
            token_ids.pop()
        between: list[int] = self._tokenizer.encode(closing, add_special_tokens=False)
        return token_ids + between

    def asked(self, trace: Trace, parsed: str | None, tokens: int) -> Trace:
        """``trace``, which can't be parsed, after it was asked once more: ``tokens`` for that."""
        state = trace.state
        if parsed is not None:
            is_rescued = trace.closed_by in (ClosedBy.BUDGET, ClosedBy.LOOP)
            state = State.RESCUED if is_rescued else State.FINISHED
        return replace(trace, state=state, parsed=parsed, asked_tokens=tokens)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text without control tokens, such as the end of turn."""
        if self._unseen.isdisjoint(token_ids):
            return self._decode(list(token_ids))
        return self._decode([number for number in token_ids if number not in self._unseen])

    def is_closed(self, token_ids: Sequence[int]) -> bool:
        """Whether the thinking is over."""
        if self._think_format.close is None:
            return True
        if not token_ids:
            return False
        return self._think_format.find_close(self.text(token_ids)) is not None

    def trace(
        self,
        progress: TraceProgress,
        prompt: Sequence[int],
        *,
        sample: int,
        seed: int,
        attempt: int,
    ) -> Trace:
        """The trace of a sample that has ended. ``prompt``: its token ids."""
        assert progress.finish_reason is not None
        made = (
            self._whole(progress, prompt) if progress.closed_at is None else self._in_two(progress)
        )
        state, parsed = made.state, None
        if self._answer_format.is_parsed and state in (State.FINISHED, State.RESCUED):
            parsed = None if made.answer is None else self._answer_format.parse(made.answer)
            state = State.UNPARSED if parsed is None else state
        raw = None
        if self._raw_text:
            raw = self.text(progress.token_ids) if made.text is None else made.text
        return Trace(
            state,
            sample,
            seed,
            attempt,
            think=made.think,
            answer=made.answer,
            think_tokens=made.think_tokens,
            answer_tokens=made.answer_tokens,
            parsed=parsed,
            finish_reason=progress.finish_reason,
            prompt_tokens=len(prompt),
            think_foreign=foreign_share(made.think, partial(self.text, prompt)),
            answer_foreign=foreign_share(made.answer, partial(self.text, prompt)),
            closed_by=progress.closed_by,
            loop_retries=progress.tries,
            wasted_tokens=progress.wasted_tokens,
            carried_tokens=progress.carried,
            yarn_factor=self._yarn_factor,
            raw=raw,
            probes=len(progress.probes),
            probe_tokens=progress.probe_tokens,
        )

    def _whole(self, progress: TraceProgress, prompt: Sequence[int]) -> Pieces:
        """A trace that the model brought to its end, or to no end."""
        token_ids, finish_reason = progress.token_ids.tolist(), progress.finish_reason or ""
        close_at = token_ids.index(self._close_id) if self._close_id in token_ids else None
        # In two pieces, so that the tokens up to the tag need not be decoded again to be counted.
        head = self.text(token_ids[: 0 if close_at is None else close_at + 1])
        text = head + self.text(token_ids[0 if close_at is None else close_at + 1 :])
        opened = False
        if self._think_format.open is not None and self._think_format.find_close(text) is None:
            opened = self._is_opened(prompt)  # what the splitter wants to know only then
        parts = split(text, self._think_format, finish_reason == "stop", opened)
        if close_at is not None and parts.think_end == len(head):
            think_tokens = close_at + 1
        else:
            length_of = self._length_of(token_ids)
            think_tokens = count_think_tokens(
                len(token_ids), parts.think_end, len(text), close_at, length_of
            )
        return Pieces(
            state_of(parts, finish_reason),
            parts.think,
            parts.answer,
            think_tokens,
            len(token_ids) - think_tokens,
            text,
        )

    def _in_two(self, progress: TraceProgress) -> Pieces:
        """A trace whose answer was a pass of its own; what led over to it is in neither part."""
        token_ids, at = progress.token_ids.tolist(), progress.closed_at or 0
        answer_ids = token_ids[at + progress.closing_tokens :]
        text = self.text(token_ids[:at])
        # Cut off, the thinking has no end that a splitter would find.
        think = split(text, self._think_format, ended=False).think if at else None
        answer = self._think_format.unwrap(self.text(answer_ids)) if answer_ids else None
        reason = progress.finish_reason or ""
        if progress.closed_by in (None, ClosedBy.EARLY_ANSWER):
            state = state_of(Split(think, answer, at), reason)
        else:
            state = rescued_state(answer, reason == "stop", progress.closed_by == "loop")
        return Pieces(state, think, answer, at, len(answer_ids))

    def _is_opened(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt has opened the thinking."""
        tag = self._think_format.open
        return tag is not None and self._decode(list(prompt[-TAIL_TOKENS:])).rstrip().endswith(tag)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=False)
        return text

    def _length_of(self, token_ids: list[int]) -> Callable[[int], int]:
        return lambda k: len(self.text(token_ids[:k]))
