"""A trace: one sample of one row, made from the token ids that an engine generated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.reasoning import CLOSE_TAG, count_think_tokens, split, state_of
from pipeline.sampling import ThinkFormat


@dataclass(frozen=True)
class Trace:
    """One sample of one row: our output columns, see `pipeline.schema.TRACE_FIELDS`."""

    state: str
    sample: int
    seed: int
    attempt: int = 0
    think: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    think_tokens: int = 0
    answer_tokens: int = 0
    carried_tokens: int = 0
    error: str | None = None
    raw: str | None = None


class TraceMaker:
    """Makes traces of token ids, with a model's tokenizer and its way to close the thinking."""

    def __init__(self, tokenizer: Any, think_format: ThinkFormat) -> None:
        self._tokenizer, self._think_format = tokenizer, think_format
        found = tokenizer.convert_tokens_to_ids(CLOSE_TAG)
        one = isinstance(found, int) and found != tokenizer.unk_token_id
        self._close_id = found if one else -1

    def trace(
        self,
        token_ids: Sequence[int],
        finish_reason: str,
        *,
        sample: int,
        seed: int,
        attempt: int,
        prompt_tokens: int,
        carried_tokens: int,
    ) -> Trace:
        """The trace of all tokens of one sample; of them the first ``carried_tokens`` are older."""
        token_ids = list(token_ids)
        text = self._text(token_ids)
        parts = split(text, self._think_format, ended=finish_reason == "stop")
        close_at = token_ids.index(self._close_id) if self._close_id in token_ids else None
        think_tokens = count_think_tokens(
            len(token_ids), parts.think_end, len(text), close_at, self._length_of(token_ids)
        )
        return Trace(
            state=state_of(parts, finish_reason),
            sample=sample,
            seed=seed,
            attempt=attempt,
            think=parts.think,
            answer=parts.answer,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            think_tokens=think_tokens,
            answer_tokens=len(token_ids) - think_tokens,
            carried_tokens=carried_tokens,
            raw=text,
        )

    def _text(self, token_ids: list[int]) -> str:
        """The text without control tokens, such as the end of turn."""
        text: str = self._tokenizer.backend_tokenizer.decode(token_ids, skip_special_tokens=True)
        return text

    def _length_of(self, token_ids: list[int]) -> Callable[[int], int]:
        return lambda k: len(self._text(token_ids[:k]))
