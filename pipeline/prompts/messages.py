"""From the columns of a row to chat messages and tools; no I/O.

Rows that can't be asked fail here, each with its reason. A conversation is a list of ``{role,
content}``, or of ``{from, value}`` as ShareGPT has it, or JSON text of one.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.answers.json_schema import without_nulls
from pipeline.errors import InvalidPromptError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.template import columns_of, fill

ROLES = ("system", "user", "assistant", "tool")
# The same roles under the names of ShareGPT and of OpenAI's newer models.
OTHER_ROLES = {
    "human": "user", "gpt": "assistant", "observation": "tool", "developer": "system",
}  # fmt: skip
SHAREGPT = {"from": "role", "value": "content"}

Message = dict[str, Any]


def row_messages(
    row: Mapping[str, Any], columns: PromptColumns, system: str | None, suffix: str | None
) -> list[Message]:
    """The chat messages of one row, each with ``role`` and ``content``.

    ``system``: the first message, unless the row has a system message of its own that is not
    blank. ``suffix``: a line to append to the last user message. Raises `InvalidPromptError` if the
    row's value can't be sent.
    """
    if columns.template is not None:
        messages = [{"role": "user", "content": _filled(columns.template, row)}]
    elif columns.prompt is not None:
        text = _require_text(row[columns.prompt], columns.prompt)
        if columns.context is not None:
            text += _context(row[columns.context], columns.context)
        messages = [{"role": "user", "content": text}]
    else:
        assert columns.messages is not None
        messages = _messages(
            row[columns.messages], columns.messages, columns.final_answer == "drop"
        )
    if system is not None:
        if messages[0]["role"] == "system" and not messages[0]["content"].strip():
            del messages[0]
        if messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
    if suffix:
        last = [message for message in messages if message["role"] == "user"][-1]
        last["content"] = f"{last['content']}\n{suffix}"
    return messages


def after_examples(examples: Sequence[Message], messages: list[Message]) -> list[Message]:
    """``messages`` with ``examples`` before them, but for a system turn at their begin."""
    first = 1 if messages[0]["role"] == "system" else 0
    return [*messages[:first], *examples, *messages[first:]]


def row_tools(row: Mapping[str, Any], columns: PromptColumns) -> list[Any] | None:
    """The tool definitions of one row; None if it has none.

    The column holds a list of objects or of their JSON texts, or JSON text of a list. Parameters
    may be JSON text, too. Raises `InvalidPromptError` for anything else.
    """
    value = None if columns.tools is None else row[columns.tools]
    if not value or (isinstance(value, str) and not value.strip()):
        return None
    tools = _from_json(value, columns.tools)
    if tools is None:  # the text null
        return None
    # Arrow gives all objects of a column the same keys, with null for those an object lacks.
    if isinstance(tools, list) and not isinstance(value, str):
        tools = [
            _from_json(tool, columns.tools) if isinstance(tool, str) else without_nulls(tool)
            for tool in tools
        ]
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InvalidPromptError(f"{columns.tools} must be a list of objects")
    return [_tool(tool, columns.tools) for tool in tools] or None


def joined_parts(parts: list[Any]) -> str:
    """Content in several parts as one text, joined with line breaks as vLLM's server does.

    Raises `ValueError` for parts that are not text.
    """
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"only parts of type text are supported, not {kind or 'others'}")
        texts.append(part["text"])
    return "\n".join(texts)


def _filled(template: str, row: Mapping[str, Any]) -> str:
    """The prompt of ``row``, of which at least one column must have some text."""
    text, names = fill(template, row), columns_of(template)
    if all(isinstance(row[name], str) and not row[name].strip() for name in names):
        raise InvalidPromptError(f"{', '.join(names)} is empty")
    return text


def _require_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidPromptError(f"{where} must be text, not {_type_name(value)}")
    if not value.strip():
        raise InvalidPromptError(f"{where} is empty")
    return value


def _context(value: Any, column: str) -> str:
    """What follows a prompt of which ``value`` is the context: nothing if that is null or blank."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return f"\n\n{_require_text(value, column)}"


def _messages(value: Any, column: str, drops_answer: bool) -> list[Message]:
    """The conversation in a cell; it must have a user turn, and end before the assistant's.

    ``drops_answer``: leave out the assistant's turns at the end.
    """
    # Arrow gives all messages of a column the same keys, with null for those a message lacks.
    given = without_nulls(value)
    if isinstance(value, str):
        given = _from_json(value, column)
    if not isinstance(given, list) or not given:
        what = "empty" if given == [] else _type_name(given)
        raise InvalidPromptError(f"{column} must be a list of {{role, content}}, not {what}")
    messages = [_message(item, f"{column}[{i}]") for i, item in enumerate(given)]
    if messages[-1]["role"] == "assistant" and not drops_answer:
        raise InvalidPromptError(
            f"{column}: the conversation ends with an assistant turn, so there is nothing to "
            "answer; input.final_answer=drop generates that turn anew"
        )
    while messages and messages[-1]["role"] == "assistant":
        del messages[-1]
    if all(message["role"] != "user" for message in messages):
        raise InvalidPromptError(f"{column}: the conversation has no user turn; add one")
    return messages


def _message(value: Any, where: str) -> Message:
    if isinstance(value, dict) and "role" not in value and "from" in value:
        value = {SHAREGPT.get(key, key): item for key, item in value.items()}
    if not isinstance(value, dict) or "role" not in value:
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else _type_name(value)
        raise InvalidPromptError(
            f"{where} must be an object with role and content (or from and value), not {keys}"
        )
    role = value["role"]
    role = OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        accepted = ", ".join((*ROLES, *OTHER_ROLES))
        raise InvalidPromptError(f"{where}.role is {role!r}; it must be one of {accepted}")
    message = {**value, "role": role}
    if message.get("tool_calls"):
        message["tool_calls"] = _tool_calls(message["tool_calls"], where)
    message["content"] = _content(message, f"{where}.content")
    return message


def _content(message: Message, where: str) -> str | None:
    """The text of ``message``; None for an assistant's that only calls tools."""
    role, content = message["role"], message.get("content")
    if isinstance(content, list):
        try:
            content = joined_parts(content)
        except ValueError as error:
            raise InvalidPromptError(f"{where}: {error}") from None
    if role == "user":
        return _require_text(content, where)
    if content is None and role == "assistant":
        if not message.get("tool_calls"):
            raise InvalidPromptError(
                f"{where} is null, and the turn has no tool_calls; give it a text, or remove it"
            )
        return None
    if not isinstance(content, str):
        raise InvalidPromptError(f"{where} must be text, not {_type_name(content)}")
    return content


def _tool(tool: dict[str, Any], where: str | None) -> dict[str, Any]:
    """The definition with its parameters as an object; the template would encode text again.

    Columns have them as JSON text, because each tool has other keys in them.
    """
    if isinstance(function := tool.get("function"), dict):
        return {**tool, "function": _tool(function, where)}
    if not isinstance(parameters := tool.get("parameters"), str):
        return tool
    return {**tool, "parameters": _from_json(parameters or "{}", f"{where}.parameters")}


def _tool_calls(calls: Any, where: str) -> list[Any]:
    calls = _from_json(calls, f"{where}.tool_calls")
    if not isinstance(calls, list):
        raise InvalidPromptError(f"{where}.tool_calls must be a list of objects")
    return [_tool_call(call, where) for call in calls]


def _tool_call(call: Any, where: str) -> Any:
    """The tool call with its arguments as an object; the template would encode JSON text again."""
    call = _from_json(call, f"{where}.tool_calls")
    if not isinstance(call, dict):
        raise InvalidPromptError(f"{where}.tool_calls must be a list of objects")
    function = call.get("function") or call
    if not isinstance(function, dict):
        raise InvalidPromptError(f"{where}.tool_calls: function must be an object")
    if "arguments" in function:
        # Calls without arguments have empty text in some APIs.
        arguments = _from_json(function["arguments"] or "{}", f"{where}.tool_calls.arguments")
        function = {**function, "arguments": arguments}
    return {**call, "function": function} if call.get("function") else function


def _from_json(value: Any, where: str | None) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidPromptError(f"{where} is not valid JSON: {error}") from None


def _type_name(value: Any) -> str:
    return "null" if value is None else type(value).__name__
