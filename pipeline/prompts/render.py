"""Render a row to messages and token ids; no I/O (the caller loads the tokenizer).

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

from pipeline.answers.json_schema import without_nulls
from pipeline.errors import InvalidPromptError, PromptTooLongError, RowError, TemplateError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.template import fill
from pipeline.reasoning.think_format import THINK_TAGS, ThinkFormat

ROLES = ("system", "user", "assistant", "tool")
# A private-use character of the last Unicode plane; messages that contain it are refused.
MARK = "\U0010fffd"
SHORT_PIECE = 32  # characters; covers what templates put between control tokens

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt: the text for people, and the token ids for the engine."""

    text: str
    token_ids: list[int]


def row_messages(
    row: Mapping[str, Any], columns: PromptColumns, system: str | None, suffix: str | None
) -> list[Message]:
    """The chat messages of one row, each with ``role`` and ``content``.

    ``system``: the first message, unless the row has its own system message. ``suffix``: a line to
    append to the last user message. Raises `InvalidPromptError` if the row's value can't be sent.
    """
    if columns.template is not None:
        messages = [{"role": "user", "content": fill(columns.template, row)}]
    elif columns.prompt is not None:
        messages = [{"role": "user", "content": _require_text(row[columns.prompt], columns.prompt)}]
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
    """The tool definitions of one row; None if it has none.

    The column holds a list of objects, or JSON text of one. Raises `InvalidPromptError` for
    anything else.
    """
    if columns.tools is None or not row[columns.tools]:
        return None
    tools = _from_json(row[columns.tools], columns.tools)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidPromptError(f"{columns.tools} must be a list of objects")
    # Arrow gives all objects of a column the same keys, with null for those an object lacks.
    return tools if isinstance(row[columns.tools], str) else without_nulls(tools)


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
    try:
        return renderer.render(row_messages(row, columns, system, suffix), row_tools(row, columns))
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
        return self._table[name][self._index].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class PromptRenderer:
    """Renders messages with a tokenizer's chat template.

    ``tokenizer``: a fast Hugging Face tokenizer with a chat template. ``context_tokens``: the
    limit of prompt and output tokens together; None skips the check. ``think_format``: the tags
    that assistant messages keep.
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
        # Think tags in assistant messages stay whole: the template looks for them.
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
        marked = {}
        for key, value in message.items():
            keeps_think_tags = message["role"] == "assistant" and key == "content"
            pattern = self._added_but_think if keeps_think_tags else self._added
            marked[key] = _map_text(value, partial(_mark, pattern=pattern))
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


def _require_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise InvalidPromptError(f"{column} must be text, not {_type_name(value)}")
    if not value.strip():
        raise InvalidPromptError(f"{column} is empty")
    return value


def _messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        what = "empty" if value == [] else _type_name(value)
        raise InvalidPromptError(f"{column} must be a list of {{role, content}}, not {what}")
    return [_message(item, f"{column}[{i}]") for i, item in enumerate(value)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise InvalidPromptError(f"{where} must be an object with role and content")
    role, content = value["role"], value.get("content")
    if role not in ROLES:
        raise InvalidPromptError(f"{where}.role is {role!r}; it must be one of {', '.join(ROLES)}")
    if not isinstance(content, str) and not (content is None and role == "assistant"):
        raise InvalidPromptError(f"{where}.content must be text, not {_type_name(content)}")
    # Arrow gives all messages of a column the same keys, with null for those a message lacks.
    extra = without_nulls(value)
    if extra.get("tool_calls"):
        extra["tool_calls"] = [_tool_call(call, where) for call in extra["tool_calls"]]
    return {**extra, "role": role, "content": content}


def _tool_call(call: Any, where: str) -> Any:
    """The tool call with its arguments as an object; the template would encode JSON text again."""
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


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
