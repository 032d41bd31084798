"""Result lines of batch files: what clients of the API read, and that any line can be written."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from jobs.openai_batch import result_line
from jobs.openai_lines import ResultLines

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
ANSWERS = ResultLines("run", "Qwen/QwQ-32B", 1_700_000_000)
TRACE = {
    "tools": None, "think": "hm", "answer": "4", "state": "finished", "finish_reason": "stop",
    "prompt_tokens": 7, "think_tokens": 3, "answer_tokens": 2, "sample": 0, "error": None,
}  # fmt: skip
FAILED = {
    **TRACE, "think": None, "answer": None, "state": "failed", "finish_reason": None,
    "prompt_tokens": None, "think_tokens": 0, "answer_tokens": 0,
}  # fmt: skip


def completion(*traces: dict[str, Any]) -> ChatCompletion:
    result = ANSWERS.line("a", traces)
    assert json.loads(json.dumps(result)) == result
    assert result["response"]["status_code"] == 200
    return ChatCompletion.model_validate(result["response"]["body"])


def test_an_answer_is_a_chat_completion() -> None:
    cut = {**TRACE, "state": "truncated", "finish_reason": "length", "answer": None, "sample": 1}
    found = completion(TRACE, cut)
    assert found.model == "Qwen/QwQ-32B"
    assert [c.finish_reason for c in found.choices] == ["stop", "length"]
    assert [c.index for c in found.choices] == [0, 1]
    assert [c.message.content for c in found.choices] == ["4", None]
    assert [c.message.model_extra for c in found.choices] == [{"reasoning": "hm"}] * 2
    assert [c.model_extra for c in found.choices] == [{"state": "finished"}, {"state": "truncated"}]
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (7, 10)
    assert found.usage.total_tokens == 17
    assert found.usage.completion_tokens_details is not None
    assert found.usage.completion_tokens_details.reasoning_tokens == 6
    result = ANSWERS.line("a", [TRACE])
    assert set(result) == {"id", "custom_id", "response", "error"}
    assert result["id"].startswith("batch_req_")
    assert result["error"] is None
    assert ANSWERS.line("a", [TRACE]) == result
    assert ANSWERS.line("b", [TRACE])["id"] != result["id"]


def test_the_thinking_is_where_vllms_server_puts_it() -> None:
    found = find_spec("vllm")
    assert found is not None
    assert found.submodule_search_locations is not None
    text = (
        Path(found.submodule_search_locations[0]) / "entrypoints/openai/chat_completion/protocol.py"
    ).read_text()
    message = text.partition("class ChatMessage(")[2].partition("\nclass ")[0]
    assert "\n    reasoning: str | None" in message


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("prompt_too_long: the prompt has 9 tokens", 400, "context_length_exceeded"),
        ("invalid_prompt: messages is empty", 400, "invalid_prompt"),
        ("engine_killed: it died", 500, "engine_killed"),
    ],
)
def test_a_failed_request_is_the_apis_error(error: str, status: int, code: str) -> None:
    result = ANSWERS.line("a", [{**FAILED, "error": error}])
    assert result["response"]["status_code"] == status
    found = result["response"]["body"]["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert (found["code"], found["message"]) == (code, error.partition(": ")[2])


def test_failed_samples_are_not_among_the_choices() -> None:
    found = completion({**FAILED, "error": "engine_killed: x"}, {**TRACE, "sample": 1})
    assert [choice.index for choice in found.choices] == [1]


def test_tool_calls_are_the_apis() -> None:
    one, two = ({"name": name, "arguments": {"x": "ü"}} for name in "fg")
    text = f"So:\n<tool_call>\n{json.dumps(one)}\n</tool_call>\n<tool_call>\n{json.dumps(two)}\n</tool_call>"
    offered = {**TRACE, "tools": json.dumps([TOOL]), "answer": text}
    choice = completion(offered).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So:")
    calls = choice.message.tool_calls or []
    assert [call.type for call in calls] == ["function", "function"]
    assert [call.to_dict()["function"] for call in calls] == [
        {"name": "f", "arguments": '{"x": "ü"}'}, {"name": "g", "arguments": '{"x": "ü"}'}
    ]  # fmt: skip
    assert len({call.id for call in calls}) == 2
    for unread in (text.replace('"f"', "f"), "<tool_call>{}</tool_call>", "no call"):
        choice = completion({**offered, "answer": unread}).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("stop", unread)
    assert completion({**TRACE, "answer": text}).choices[0].message.content == text


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ('{"name": "f", "arguments": {"x": "\\ud83d"}}', '{"x": "\\ud83d"}'),
        ('{"name": "f", "arguments": {"x": "\\ud83d\\ude00"}}', '{"x": "😀"}'),
        ('{"name": "\\ud83d", "arguments": {}}', None),
        ('{"name": "f", "arguments": ' + "[" * 3000 + "]" * 3000 + "}", None),
        ("[" * 100_000, None),
        ('{"name": "f", "arguments": {"x": ' + "1" * 5000 + "}}", None),
        ('{"name": "f", "arguments": {"x": NaN}}', None),
        ('{"name": "f", "arguments": {"x": 1e999}}', None),
        ('{"name": 5, "arguments": {}}', None),
        ("[1]", None),
        ("null", None),
    ],
)
def test_a_line_with_any_tool_call_is_written_and_is_json(call: str, arguments: str | None) -> None:
    answer = f"<tool_call>{call}</tool_call>"
    trace = {**TRACE, "tools": json.dumps([TOOL]), "answer": answer}
    written = result_line(ANSWERS.line("a", [trace])).decode()
    message = json.loads(written)["response"]["body"]["choices"][0]["message"]
    if arguments is None:
        assert (message["content"], "tool_calls" in message) == (answer, False)
    else:
        assert message["tool_calls"][0]["function"]["arguments"] == arguments
        assert json.loads(arguments)
