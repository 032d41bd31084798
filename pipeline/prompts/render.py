"""Render messages to token ids; no I/O (the caller loads the tokenizer).

The model's own chat template renders the messages. Text from rows never becomes a control token.
Before the template runs, a mark is inserted into every added token of the vocabulary
(``<|im_end|>``, ``</think>``, ``<tool_call>`` …) that a message contains. Afterwards only the
template's own control tokens are whole. The marks are removed, and that text is encoded as plain
text. Text without such strings encodes exactly as the template's whole output would.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.answers.references import as_written
from pipeline.errors import (
    InvalidPromptError,
    PromptTooLongError,
    RowError,
    TemplateError,
    UnreadableRowError,
)
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import Message, after_examples, row_messages, row_tools
from pipeline.reasoning.think_format import THINK_TAGS, ThinkFormat
from pipeline.schema import UNREADABLE_COLUMN

# A private-use character of the last Unicode plane; messages that contain it are refused.
MARK = "\U0010fffd"
SHORT_PIECE = 32  # characters; covers what templates put between control tokens


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: the text for people, and the token ids for the engine."""

    text: str
    token_ids: list[int]


def render_row(
    renderer: "PromptRenderer",
    row: Mapping[str, Any],
    columns: PromptColumns,
    system: str | None,
    suffix: str | None,
) -> Prompt:
    """The prompt of one row; raises a `RowError` for anything wrong with the row.

    ``system``, ``suffix``: as in `row_messages`.
    """
    if reason := row.get(UNREADABLE_COLUMN):
        raise UnreadableRowError(reason)
    try:
        messages = after_examples(columns.examples, row_messages(row, columns, system, suffix))
        # Chat templates expect text beside a tool call.
        messages = [{**message, "content": message["content"] or ""} for message in messages]
        return renderer.render(messages, row_tools(row, columns))
    except RowError:
        raise
    except Exception as error:  # rows contain anything: lone surrogates, endless nesting
        raise InvalidPromptError(f"{type(error).__name__}: {error}") from None


class TableRow(Mapping[str, Any]):
    """One row of an Arrow table, with each cell converted when it is read.

    A cell that can't be converted, such as text that is not UTF-8, fails its own row only.
    """

    def __init__(self, table: pa.Table, index: int) -> None:
        self._table, self._index = table, index

    def __getitem__(self, name: str) -> Any:
        scalar = self._table[name][self._index]
        return as_written(scalar.as_py(), scalar.type)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class PromptRenderer:
    """Renders messages with a tokenizer's chat template.

    ``tokenizer``: a fast Hugging Face tokenizer with a chat template. ``context_tokens``: the
    limit of prompt and output tokens together; None skips the check. ``think_format``: the tags
    of closed thinking, which assistant messages keep.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int | None = None,
        think_format: ThinkFormat = THINK_TAGS,
    ) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        added = {token["content"]: token["id"] for token in settings["added_tokens"]}
        settings.update(added_tokens=[], truncation=None, padding=None)
        self._plain = Tokenizer.from_str(json.dumps(settings))
        self._added_ids = added
        self._short_ids = lru_cache(1024)(self._plain_ids)
        self._added = _any_of(name for name in added if len(name) > 1)
        # Think tags of closed thinking in assistant messages stay whole: templates look for them.
        self._close = think_format.close
        self._added_but_think = _any_of(
            name for name in added if len(name) > 1 and name not in think_format.tags
        )

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Prompt:
        """Render ``messages`` and ``tools`` with the generation prompt.

        Raises `TemplateError` if the template fails, `PromptTooLongError` if no output token fits
        the context, and `InvalidPromptError` if a text contains `MARK`.
        """
        mark = partial(_mark, pattern=self._added)
        marked_tools = None if tools is None else _map_text(tools, mark)
        marked_messages = [self._mark_message(message) for message in messages]
        try:
            marked = self._tokenizer.apply_chat_template(
                marked_messages, tools=marked_tools, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates raise errors of any type
            raise TemplateError(f"{type(error).__name__}: {error}") from None
        prompt = Prompt(marked.replace(MARK, ""), self._encode(marked))
        self._check_length(prompt)
        return prompt

    def _mark_message(self, message: Message) -> Message:
        mark = partial(_mark, pattern=self._added)
        marked = {key: _map_text(value, mark) for key, value in message.items()}
        content = message.get("content")
        if message["role"] == "assistant" and content is not None and self._close is not None:
            # Templates look for the last closing tag, and drop or keep the thinking before it.
            before, close, after = content.rpartition(self._close)
            marked["content"] = f"{_mark(before, self._added_but_think)}{close}{mark(after)}"
        return {**marked, "role": message["role"]}

    def _encode(self, marked: str) -> list[int]:
        """The token ids of ``marked``: added tokens where they are whole, plain text elsewhere."""
        if self._added is None:
            return self._plain_ids(marked)
        ids = list[int]()
        for i, piece in enumerate(self._added.split(marked)):
            if i % 2:
                ids.append(self._added_ids[piece])
            elif piece:
                plain = piece.replace(MARK, "")
                ids += (self._short_ids if len(plain) <= SHORT_PIECE else self._plain_ids)(plain)
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _check_length(self, prompt: Prompt) -> None:
        limit = self._context_tokens
        if limit is not None and len(prompt.token_ids) >= limit:
            raise PromptTooLongError(
                f"the prompt has {len(prompt.token_ids)} tokens, the context {limit} "
                "(see engine.context), and an output needs at least one"
            )


def _any_of(tokens: Any) -> re.Pattern[str] | None:
    """A pattern for any of ``tokens``, longest first; None for no tokens.

    It is one group, so that `re.split` keeps the tokens.
    """
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _mark(text: str, pattern: re.Pattern[str] | None) -> str:
    """``text`` with a mark after the first character of every match of ``pattern``."""
    if MARK in text:
        raise InvalidPromptError("the text holds the private-use character U+10FFFD")
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda match: match[0][0] + MARK + match[0][1:], text)
    return text


def _map_text(value: Any, change: Any) -> Any:
    """``value`` with ``change`` applied to all strings in it, including keys of objects."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {_map_text(key, change): _map_text(item, change) for key, item in value.items()}
    return value
