"""A row to messages to token ids; no I/O (the tokenizer comes from outside).

The model's own chat template renders. Text from rows never becomes a control token: while the
template runs, every token string of the vocabulary's added tokens (``<|im_end|>``, ``</think>``,
``<tool_call>`` …) inside a message is held apart by a mark, so that the template's own tokens can
be told from it; then the marks go and that text is encoded as ordinary text. Text without such
strings encodes exactly as the template's whole output would.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.answers.json_schema import without_nulls
from pipeline.errors import InvalidPromptError, PromptTooLongError, RowError, TemplateError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.template import fill
from pipeline.reasoning.think_format import THINK_TAGS, ThinkFormat

ROLES = ("system", "user", "assistant", "tool")
# A private-use character of Unicode's last plane, which no message may hold.
MARK = "\U0010fffd"
SHORT_PIECE = 32  # characters; as what a template puts between its control tokens

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: its text as a person reads it, and the token ids the engine gets."""

    text: str
    token_ids: list[int]


def row_messages(
    row: Mapping[str, Any], columns: PromptColumns, system: str | None, suffix: str | None
) -> list[Message]:
    """The chat messages of one row; raises `InvalidPromptError` if it has none to send.

    ``system`` opens the conversation unless the row brings a system turn of its own; ``suffix``
    goes on a line of its own after the last user turn.
    """
    if columns.template is not None:
        messages = [{"role": "user", "content": fill(columns.template, row)}]
    elif columns.prompt is not None:
        messages = [{"role": "user", "content": _text(row[columns.prompt], columns.prompt)}]
    else:
        assert columns.messages is not None
        messages = _messages(row[columns.messages], columns.messages)
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if suffix:
        users = [message for message in messages if message["role"] == "user"]
        if users:
            users[-1]["content"] = f"{users[-1]['content']}\n{suffix}"
    return messages


def row_tools(row: Mapping[str, Any], columns: PromptColumns) -> list[Any] | None:
    """The tool definitions of one row: a list of objects, or JSON text of one; None if none."""
    if columns.tools is None or not row[columns.tools]:
        return None
    tools = _from_json(row[columns.tools], columns.tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidPromptError(f"{columns.tools} must be a list of objects")
    # Given as Arrow objects, all tools have the same keys, null where there was none.
    return tools if isinstance(row[columns.tools], str) else without_nulls(tools)


def render_row(
    renderer: "PromptRenderer",
    row: Mapping[str, Any],
    columns: PromptColumns,
    system: str | None,
    suffix: str | None,
) -> Prompt:
    """The prompt of one row; whatever is wrong with the row, a `RowError` says it."""
    try:
        return renderer.render(row_messages(row, columns, system, suffix), row_tools(row, columns))
    except RowError:
        raise
    except Exception as error:  # lone surrogates, bottomless nesting: rows hold anything
        raise InvalidPromptError(f"{type(error).__name__}: {error}") from None


class TableRow(Mapping[str, Any]):
    """One row of an Arrow table, its cells converted when they are read.

    So a cell that can't be (text that is no UTF-8) is the trouble of its row alone.
    """

    def __init__(self, table: pa.Table, index: int) -> None:
        self._table, self._index = table, index

    def __getitem__(self, name: str) -> Any:
        return self._table[name][self._index].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class PromptRenderer:
    """Renders messages with a tokenizer's chat template.

    ``tokenizer``: a fast Hugging Face tokenizer with a chat template. ``context_tokens``: the most
    tokens that prompt and output may have together; None leaves the length unchecked.
    """

    def __init__(
        self,
        tokenizer: Any,
        context_tokens: int | None = None,
        think_format: ThinkFormat = THINK_TAGS,
    ) -> None:
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        core = json.loads(tokenizer.backend_tokenizer.to_str())
        added = {token["content"]: token["id"] for token in core["added_tokens"]}
        core.update(added_tokens=[], truncation=None, padding=None)
        self._plain = Tokenizer.from_str(json.dumps(core))
        self._added_ids = added
        self._short_ids = lru_cache(1024)(self._plain_ids)
        self._added = _any_of(name for name in added if len(name) > 1)
        # What an assistant said keeps its think tags: the template looks for them.
        self._spoken = _any_of(n for n in added if len(n) > 1 and n not in think_format.tags)

    def render(self, messages: list[Message], tools: list[Any] | None = None) -> Prompt:
        """Render with the generation prompt; raises `TemplateError` or `PromptTooLongError`."""
        held = [self._hold_message(message) for message in messages]
        held_tools = (
            None if tools is None else _map_text(tools, partial(_hold, pattern=self._added))
        )
        try:
            marked = self._tokenizer.apply_chat_template(
                held, tools=held_tools, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template can raise anything
            raise TemplateError(f"{type(error).__name__}: {error}") from None
        prompt = Prompt(marked.replace(MARK, ""), self._encode(marked))
        self._check_length(prompt)
        return prompt

    def _hold_message(self, message: Message) -> Message:
        said = message["role"] == "assistant"
        held = {
            key: _map_text(
                value,
                partial(_hold, pattern=self._spoken if said and key == "content" else self._added),
            )
            for key, value in message.items()
        }
        return {**held, "role": message["role"]}

    def _encode(self, marked: str) -> list[int]:
        """Token ids of ``marked``: added tokens where they stand whole, text for the rest."""
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
    """A pattern that finds (and, in split, keeps) any of ``tokens``, the longest first."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def _hold(text: str, pattern: re.Pattern[str] | None) -> str:
    """``text`` with a mark inside everything that ``pattern`` finds."""
    if MARK in text:
        raise InvalidPromptError("the text holds the private-use character U+10FFFD")
    while pattern is not None and pattern.search(text):
        text = pattern.sub(lambda found: found[0][0] + MARK + found[0][1:], text)
    return text


def _map_text(value: Any, change: Any) -> Any:
    """``value`` with ``change`` applied to every string in it, keys of objects too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_text(item, change) for item in value]
    if isinstance(value, dict):
        return {_map_text(key, change): _map_text(item, change) for key, item in value.items()}
    return value


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        found = "null" if value is None else type(value).__name__
        raise InvalidPromptError(f"{column} must be text, not {found}")
    if not value.strip():
        raise InvalidPromptError(f"{column} is empty")
    return value


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        found = "empty" if value == [] else "null" if value is None else type(value).__name__
        raise InvalidPromptError(f"{column} must be a list of {{role, content}}, not {found}")
    return [_message(item, f"{column}[{i}]") for i, item in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise InvalidPromptError(f"{where} must be an object with role and content")
    role, content = value["role"], value.get("content")
    if role not in ROLES:
        raise InvalidPromptError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and role == "assistant"):
        found = "null" if content is None else type(content).__name__
        raise InvalidPromptError(f"{where}.content must be text, not {found}")
    # Arrow gives every message of a column the same keys; those it does not have are null.
    extra = without_nulls(value)
    if extra.get("tool_calls"):
        extra["tool_calls"] = [_tool_call(call, where) for call in extra["tool_calls"]]
    return {**extra, "role": role, "content": content}


def _tool_call(call: Any, where: str) -> Any:
    """A tool call whose arguments are an object: as JSON text they would be encoded twice."""
    call = _from_json(call, f"{where}.tool_calls")
    if not isinstance(call, dict):
        raise InvalidPromptError(f"{where}.tool_calls must be a list of objects")
    function = call.get("function") or call
    if not isinstance(function, dict):
        raise InvalidPromptError(f"{where}.tool_calls: function must be an object")
    if "arguments" in function:
        arguments = _from_json(function["arguments"], f"{where}.tool_calls.arguments")
        function = {**function, "arguments": arguments}
    return {**call, "function": function} if call.get("function") else function


def _from_json(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidPromptError(f"{where} is not valid JSON: {error}") from None
