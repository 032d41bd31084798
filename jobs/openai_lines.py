"""The lines of the OpenAI Batch API: requests and results; no I/O.

A request is accepted only if this pipeline can do what it asks for. Fields without an effect here
are ignored; all others are refused by name.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, ValidationError

from jobs.openai_body import Body, Strict
from pipeline.reasoning.think_format import State
from pipeline.strict_json import DECODER

# Fields of a body that are settings of a run, in its section `sampling`.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty", "n",
    "max_tokens", "seed",
)  # fmt: skip
# Errors that are the request's fault: our name, and the API's code.
BAD_REQUEST = {
    "invalid_prompt": "invalid_prompt",
    "template_error": "template_error",
    "prompt_too_long": "context_length_exceeded",
    "request_rejected": "request_rejected",
}
TOOL_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MAX_VALUE_CHARACTERS = 60

CALL = pa.struct([
    ("id", pa.string()),
    ("type", pa.string()),
    ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
])  # fmt: skip
MESSAGE = pa.struct([
    ("role", pa.string()),
    ("content", pa.string()),
    ("name", pa.string()),
    ("tool_calls", pa.list_(CALL)),
    ("tool_call_id", pa.string()),
])  # fmt: skip
# Schema of a prompt shard. Tools, and arguments of tool calls, are JSON text: their keys vary.
ROWS = pa.schema(
    [("custom_id", pa.string()), ("messages", pa.list_(MESSAGE)), ("tools", pa.string())]
)
# The column with what requests set themselves, of a batch in which they differ: JSON text.
OWN = "settings"
ROWS_WITH_OWN = ROWS.append(pa.field(OWN, pa.string()))


class Request(Strict):
    """One line of a batch file."""

    custom_id: Annotated[str, Field(min_length=1)]
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: Body

    @property
    def row(self) -> dict[str, Any]:
        """The request as a row of a prompt shard, with the columns of `ROWS`."""
        messages = [message.model_dump() for message in self.body.messages]
        for message in messages:
            if message["content"] is None:  # chat templates expect text beside a tool call
                message["content"] = ""
        tools = None if self.body.tool_choice == "none" else self.body.tools
        return {
            "custom_id": self.custom_id,
            "messages": messages,
            "tools": json.dumps(tools) if tools else None,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Its values for settings of a run, by key; None if it sets none."""
        body = self.body
        settings = {f"sampling.{name}": getattr(body, name) for name in SAMPLING}
        if body.max_completion_tokens is not None:
            settings["sampling.max_tokens"] = body.max_completion_tokens
        schema = None if body.response_format is None else body.response_format.answer_schema
        return {**settings, "answer.json_schema": schema}

    def own_settings(self, names: Iterable[str]) -> str | None:
        """What it says itself of the settings ``names``, as the cell of `OWN`; None: nothing."""
        settings = self.settings
        own = {name.partition(".")[2]: settings[name] for name in names}
        own = {name: value for name, value in own.items() if value is not None}
        return json.dumps(own, ensure_ascii=False) if own else None


def parse_request(line: bytes) -> Request:
    """The request on one line; raises `ValueError` that lists everything wrong with it."""
    try:
        data = DECODER.decode(line.decode("utf-8-sig"))
        json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except UnicodeEncodeError:
        raise ValueError("has half of a surrogate pair (\\ud800 to \\udfff)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    try:
        return Request.model_validate(data)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def _explain(error: Mapping[str, Any]) -> str:
    path = ".".join(str(part) for part in error["loc"]) or "the request"
    if error["type"] == "extra_forbidden":
        return f"{path} is unknown"
    if error["type"] == "missing":
        return f"{path} is missing"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    if isinstance(value, (str, int, float)):
        message += f" (got {repr(value)[:MAX_VALUE_CHARACTERS]})"
    return f"{path}: {message}"


@dataclass(frozen=True)
class ResultLines:
    """Makes result lines; the same traces make the same lines.

    ``run``: the run's fingerprint. ``model``: the model that answered. ``created``: start of the
    run, in Unix seconds.
    """

    run: str
    model: str
    created: int

    def line(self, custom_id: str, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The result of one request.

        ``traces``: its samples, with our columns by their own names, and ``tools``. Failed samples
        are not among the choices; if all failed, the response is the API's error.
        """
        key = _hash(self.run, custom_id)
        good = [trace for trace in traces if trace["state"] != State.FAILED]
        status, body = (200, self._body(key, good)) if good else _error(traces[0]["error"])
        response = {"status_code": status, "request_id": key, "body": body}
        return {
            "id": f"batch_req_{key}",
            "custom_id": custom_id,
            "response": response,
            "error": None,
        }

    def _body(self, key: str, traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        prompt_tokens = traces[0]["prompt_tokens"]
        think_tokens = sum(trace["think_tokens"] for trace in traces)
        output_tokens = think_tokens + sum(trace["answer_tokens"] for trace in traces)
        return {
            "id": f"chatcmpl-{key}",
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [_choice(key, trace) for trace in traces],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": prompt_tokens + output_tokens,
                "completion_tokens_details": {"reasoning_tokens": think_tokens},
            },
        }


def _choice(key: str, trace: Mapping[str, Any]) -> dict[str, Any]:
    content: str | None = trace["answer"]
    calls: list[dict[str, Any]] = []
    if trace["tools"] and content:
        content, calls = tool_calls(content, _hash(key, str(trace["sample"])))
    finish_reason = "stop" if trace["finish_reason"] == "stop" else "length"
    if calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    return {
        "index": trace["sample"],
        "message": {
            "role": "assistant",
            "content": content,
            "refusal": None,
            "reasoning": trace["think"],  # where vLLM's server puts the thinking
            **({"tool_calls": calls} if calls else {}),
        },
        "logprobs": None,
        "finish_reason": finish_reason,
        "state": trace["state"],
    }


def tool_calls(answer: str, key: str) -> tuple[str | None, list[dict[str, Any]]]:
    """The text before the tool calls in ``answer``, and the calls in the API's shape.

    If one of them can't be read, the whole answer is text. ``key``: starts the ids of the calls.
    """
    calls = []
    for i, match in enumerate(TOOL_CALL.finditer(answer)):
        try:
            call = json.loads(match[1])
            name, arguments = call["name"], call["arguments"]
            name.encode()  # a name that is no text, or half of a surrogate pair
            function = {"name": name, "arguments": _json_of(arguments)}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return answer, []
        calls.append({"id": f"call_{key}_{i}", "type": "function", "function": function})
    content = answer.partition("<tool_call>")[0].strip("\n") if calls else answer
    return content or None, calls


def _json_of(arguments: Any) -> str:
    """``arguments`` as strict JSON; halves of surrogate pairs stay escapes."""
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="backslashreplace").decode()


def _error(error: str) -> tuple[int, dict[str, Any]]:
    """HTTP status and body for a row's ``error``."""
    kind, _, message = error.partition(": ")
    code = BAD_REQUEST.get(kind)
    details = {
        "message": message,
        "type": "invalid_request_error" if code else "server_error",
        "param": "messages" if code else None,
        "code": code or kind,
    }
    return 400 if code else 500, {"error": details}


def _hash(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
