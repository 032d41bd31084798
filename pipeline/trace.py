"""A trace: one sample of one row, made from the token ids that an engine generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.policy import CLOSING, Progress
from pipeline.reasoning import (
    CLOSE_TAG,
    FINAL_ANSWER,
    State,
    count_think_tokens,
    rescued_state,
    split,
    state_of,
)
from pipeline.sampling import ThinkFormat
from pipeline.scripts import foreign_share
from pipeline.verify import AnswerFormat, parse


@dataclass(frozen=True)
class Trace:
    """One sample of one row: our output columns, see `pipeline.schema.TRACE_FIELDS`."""

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
    yarn_factor: float | None = None
    error: str | None = None
    raw: str | None = None


class TraceMaker:
    """Makes traces of token ids, with a model's tokenizer and its way to close the thinking."""

    def __init__(
        self, tokenizer: Any, think_format: ThinkFormat, answer_format: AnswerFormat = "text"
    ) -> None:
        self._tokenizer, self._think_format = tokenizer, think_format
        self._answer_format = answer_format
        found = tokenizer.convert_tokens_to_ids(CLOSE_TAG)
        one = isinstance(found, int) and found != tokenizer.unk_token_id
        self._close_id = found if one else None
        self.closing: list[int] = tokenizer.encode(CLOSING[think_format], add_special_tokens=False)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text without control tokens, such as the end of turn."""
        text: str = self._tokenizer.backend_tokenizer.decode(
            list(token_ids), skip_special_tokens=True
        )
        return text

    def is_closed(self, token_ids: Sequence[int]) -> bool:
        """Whether the thinking is over."""
        if self._think_format == "final_answer":
            return FINAL_ANSWER in self.text(token_ids)
        if self._close_id is not None:
            return self._close_id in token_ids
        return CLOSE_TAG in self.text(token_ids)

    def trace(
        self, progress: Progress, prompt: Sequence[int], *, sample: int, seed: int, attempt: int
    ) -> Trace:
        """The trace of a sample that has ended. ``prompt``: its token ids."""
        assert progress.finish_reason is not None
        made = self._closed(progress) if progress.closed_by else self._whole(progress)
        prompt_text = self.text(prompt)
        state, parsed = State(made.state), None
        if self._answer_format != "text" and state in (State.FINISHED, State.RESCUED):
            parsed = parse(made.answer, self._answer_format)
            state = State.UNPARSED if parsed is None else state
        return replace(
            made,
            state=state,
            parsed=parsed,
            sample=sample,
            seed=seed,
            attempt=attempt,
            finish_reason=progress.finish_reason,
            prompt_tokens=len(prompt),
            think_foreign=foreign_share(made.think, prompt_text),
            answer_foreign=foreign_share(made.answer, prompt_text),
            closed_by=progress.closed_by,
            loop_retries=progress.tries,
            wasted_tokens=progress.wasted_tokens,
            carried_tokens=progress.carried,
            raw=self.text(progress.token_ids),
        )

    def _whole(self, progress: Progress) -> Trace:
        """A trace that the model brought to its end, or to no end."""
        token_ids, finish_reason = progress.token_ids.tolist(), progress.finish_reason or ""
        text = self.text(token_ids)
        parts = split(text, self._think_format, ended=finish_reason == "stop")
        close_at = token_ids.index(self._close_id) if self._close_id in token_ids else None
        think_tokens = count_think_tokens(
            len(token_ids), parts.think_end, len(text), close_at, self._length_of(token_ids)
        )
        return Trace(
            state_of(parts, finish_reason),
            think=parts.think,
            answer=parts.answer,
            think_tokens=think_tokens,
            answer_tokens=len(token_ids) - think_tokens,
        )

    def _closed(self, progress: Progress) -> Trace:
        """A trace whose thinking was closed for it; the closing phrase is in neither part."""
        token_ids, at = progress.token_ids.tolist(), progress.closed_at or 0
        answer_ids = token_ids[at + progress.closing_tokens :]
        # Cut off, the thinking has no end that a splitter would find.
        think = split(self.text(token_ids[:at]), self._think_format, ended=False).think
        answer = self.text(answer_ids).strip("\n") if answer_ids else None
        return Trace(
            rescued_state(answer, progress.finish_reason == "stop", progress.closed_by == "loop"),
            think=think,
            answer=answer,
            think_tokens=at,
            answer_tokens=len(answer_ids),
        )

    def _length_of(self, token_ids: list[int]) -> Callable[[int], int]:
        return lambda k: len(self.text(token_ids[:k]))
