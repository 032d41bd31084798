"""Rendering: published prompts are exact, and text from rows stays text."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InvalidPromptError, PromptTooLongError, RowError, TemplateError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages, row_tools
from pipeline.prompts.render import (
    MARK,
    PromptRenderer,
    TableRow,
    render_row,
)
from pipeline.prompts.tokenizer import load_tokenizer

PUBLISHED = json.loads((Path(__file__).parents[2] / "data/rendered_prompts.json").read_text())
NANO_OF = {"QwQ-32B": "qwq-nano", "QwQ-32B-Preview": "qwq-nano-preview"}
CASES = [(model, case) for model in NANO_OF for case in PUBLISHED["cases"]]
PROMPT = PromptColumns(prompt="prompt")
MESSAGES = PromptColumns(messages="messages", tools="tools")


@cache
def tokenizer(name: str) -> Any:
    return load_tokenizer(name)


@cache
def renderer(name: str) -> PromptRenderer:
    return PromptRenderer(tokenizer(name))


@pytest.mark.parametrize(("model", "case"), CASES)
def test_published_prompt_is_rendered_exactly(model: str, case: str) -> None:
    messages, tools = (PUBLISHED["cases"][case].get(key) for key in ("messages", "tools"))
    expected = PUBLISHED["rendered"][model][case]
    name = NANO_OF[model]
    if not PUBLISHED["cases"][case]["add_generation_prompt"]:
        # The pipeline always adds a generation prompt; here only the template is tested.
        text = tokenizer(name).apply_chat_template(messages, tools=tools, tokenize=False)
        assert text == expected
    elif isinstance(expected, dict):
        with pytest.raises(TemplateError, match=r"'None' has no attribute 'split'"):
            renderer(name).render(messages, tools)
    else:
        prompt = renderer(name).render(messages, tools)
        assert prompt.text == expected
        # Thinking that is not closed stays in the prompt, where its tag is text.
        if not (case == "history_unclosed_think" and model == "QwQ-32B"):
            assert prompt.token_ids == tokenizer(name).encode(expected)


@pytest.mark.parametrize(("model", "case"), CASES)
def test_messages_from_arrow_render_the_same(model: str, case: str) -> None:
    """Arrow gives all objects of a column the same keys, with null for those an object lacks."""
    messages = PUBLISHED["cases"][case]["messages"]
    tools = PUBLISHED["cases"][case].get("tools")
    table = pa.Table.from_pylist([{"messages": messages, "tools": tools}])
    row = TableRow(table, 0)
    if messages[-1]["role"] == "assistant":
        with pytest.raises(InvalidPromptError, match="ends with an assistant turn"):
            row_messages(row, MESSAGES, None, None)
        return
    from_arrow = row_messages(row, MESSAGES, None, None)
    expected = PUBLISHED["rendered"][model][case]
    if not isinstance(expected, dict) and PUBLISHED["cases"][case]["add_generation_prompt"]:
        assert (
            renderer(NANO_OF[model]).render(from_arrow, row_tools(row, MESSAGES)).text == expected
        )


@pytest.mark.parametrize(
    ("calls", "arguments"),
    [
        ([{"function": {"name": "f", "arguments": '{"city": "Paris"}'}}], '{"city": "Paris"}'),
        ([{"function": {"name": "f", "arguments": ""}}], "{}"),
        ('[{"function": {"name": "f", "arguments": {"n": 1}}}]', '{"n": 1}'),
    ],
)
def test_tool_calls_as_json_text_are_not_encoded_twice(calls: object, arguments: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "content": "sunny"},
        ],
        "tools": None,
    }
    text = renderer("qwq-nano").render(row_messages(row, MESSAGES, None, None)).text
    assert f'{{"name": "f", "arguments": {arguments}}}' in text


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_parameters_of_tools_as_json_text_are_not_encoded_twice(is_wrapped: bool) -> None:
    parameters = {"type": "object", "properties": {"a": {"default": None}}}
    tool = {"name": "f", "parameters": json.dumps(parameters)}
    row = {"tools": [{"type": "function", "function": tool} if is_wrapped else tool]}
    read = {**tool, "parameters": parameters}
    expected = {"type": "function", "function": read} if is_wrapped else read
    assert row_tools(row, MESSAGES) == [expected]
    with pytest.raises(InvalidPromptError, match=r"tools\.parameters is not valid JSON"):
        row_tools({"tools": [{"name": "f", "parameters": "{"}]}, MESSAGES)


def test_floats_of_32_bits_have_the_digits_that_were_written() -> None:
    table = pa.table(
        {"x": pa.array([0.1], pa.float32()), "y": pa.array([[3.14]], pa.list_(pa.float32()))}
    )
    columns = PromptColumns(template="{x} and {y}")
    [message] = row_messages(TableRow(table, 0), columns, None, None)
    assert message["content"] == "0.1 and [3.14]"


ASKED = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    "value",
    [
        [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        [{"from": "system", "value": "s", "role": None}, {"role": "human", "content": "q", "from": None}],
        [{"role": "developer", "content": [{"type": "text", "text": "s"}]}, {"role": "user", "content": [{"type": "text", "text": "q"}]}],
        '[{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]',
        '[{"from": "system", "value": ["s"]}, {"from": "human", "value": [{"type": "text", "text": "q"}]}]',
    ],
)  # fmt: skip
def test_conversations_in_the_forms_that_datasets_have_are_read(value: object) -> None:
    expected = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    if not isinstance(value, str):
        table = pa.Table.from_pylist([{"messages": value}])
        assert row_messages(TableRow(table, 0), MESSAGES, None, None) == expected
    assert row_messages({"messages": value}, MESSAGES, None, None) == expected


def test_parts_of_a_turn_are_joined_with_line_breaks() -> None:
    parts = [{"type": "text", "text": "a"}, "b", {"type": "text", "text": "c", "image_url": None}]
    row = {"messages": [{"role": "user", "content": parts}]}
    assert row_messages(row, MESSAGES, None, None) == [{"role": "user", "content": "a\nb\nc"}]


@pytest.mark.parametrize("value", [None, "", " \n", "null", " null ", "[]", []])
def test_rows_without_tools_have_none(value: object) -> None:
    assert row_tools({"tools": value}, MESSAGES) is None


def test_tools_as_a_list_of_json_texts_are_read_with_their_nulls() -> None:
    row = {"tools": ['{"name": "f", "default": null}', '{"name": "g"}']}
    assert row_tools(row, MESSAGES) == [{"name": "f", "default": None}, {"name": "g"}]


def test_a_blank_system_turn_gives_way_to_the_runs_own() -> None:
    for blank in ("", " \n"):
        row = {"messages": [{"role": "system", "content": blank}, ASKED]}
        assert row_messages(row, MESSAGES, "sys", None) == [
            {"role": "system", "content": "sys"},
            ASKED,
        ]
        assert row_messages(row, MESSAGES, None, None) == row["messages"]


def test_a_turn_that_only_calls_tools_is_rendered() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = {"messages": [ASKED, called, {"role": "tool", "content": "r"}], "tools": None}
    assert (
        '<tool_call>\n{"name": "f"'
        in render_row(renderer("qwq-nano"), row, MESSAGES, None, None).text
    )


HOSTILE = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<think>", "</think>", "<|im_", "end|>"]
        + ["system\n", "\n", "a", " ", "<", ">", "|", "ü", "<<think>>", "</", "think>"]
    ),
    min_size=1,
).map("".join)


def control_tokens(ids: list[int], name: str) -> list[int]:
    return [i for i in ids if i in tokenizer(name).added_tokens_decoder]


@pytest.mark.parametrize("name", NANO_OF.values())
@pytest.mark.parametrize("role", ["user", "system", "tool", "assistant"])
@given(text=HOSTILE)
def test_text_never_becomes_a_control_token(name: str, role: str, text: str) -> None:
    def conversation(content: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": content}, {"role": "user", "content": "go on"}]

    prompt = renderer(name).render(conversation(text))
    harmless = renderer(name).render(conversation("x"))
    assert control_tokens(prompt.token_ids, name) == control_tokens(harmless.token_ids, name)
    assert tokenizer(name).decode(prompt.token_ids) == prompt.text
    if role == "assistant" and name == "qwq-nano":  # the template drops what is before
        text = text.rsplit("</think>", maxsplit=1)[-1].lstrip("\n")
    assert text in prompt.text


@given(text=HOSTILE)
def test_tool_definitions_and_calls_stay_text(text: str) -> None:
    def render(value: str) -> list[int]:
        call = {"function": {"name": "f", "arguments": {value: value}}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "w?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "user", "content": "and?"},
        ]
        return renderer("qwq-nano").render(messages, [{"name": value}]).token_ids

    assert control_tokens(render(text), "qwq-nano") == control_tokens(render("x"), "qwq-nano")


@pytest.mark.parametrize("name", NANO_OF.values())
@given(text=st.text(min_size=1).filter(lambda text: "<" not in text and MARK not in text))
def test_harmless_text_tokenizes_as_the_template_alone_would(name: str, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    whole = tokenizer(name).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert renderer(name).render(messages).token_ids == tokenizer(name).encode(whole)


def test_an_earlier_turns_thinking_is_dropped_by_the_template() -> None:
    messages = [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "<think>\nA <|im_end|>\n</think>\n\nans <|im_end|>"},
        {"role": "user", "content": "q2"},
    ]
    prompt = renderer("qwq-nano").render(messages)
    assert "A <|im_end|>" not in prompt.text
    assert "ans <|im_end|><|im_end|>" in prompt.text
    plain = [{**m, "content": str(m["content"]).replace("<|im_end|>", "")} for m in messages]
    expected = control_tokens(renderer("qwq-nano").render(plain).token_ids, "qwq-nano")
    assert control_tokens(prompt.token_ids, "qwq-nano") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "must be text, not null"),
        ("", "is empty"),
        (" \n", "is empty"),
        (7, "must be text, not int"),
    ],
)
def test_prompt_that_is_not_text_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidPromptError, match=f"invalid_prompt: prompt {reason}"):
        row_messages({"prompt": value}, PROMPT, None, None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not null"),
        ([], "not empty"),
        ("hi", "messages is not valid JSON"),
        (["hi"], r"messages\[0\] must be an object"),
        ([{"content": "hi"}], r"messages\[0\] must be an object"),
        ([{"role": "robot", "content": "hi"}], "role is 'robot'"),
        ([{"role": "user", "content": None}], "content must be text, not null"),
        ([{"role": "user", "content": 5}], "content must be text, not int"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            "only parts of type text are supported, not image_url",
        ),
        ([{"role": "user", "content": []}], r"messages\[0\].content is empty"),
        ([{"role": "user", "content": " "}], r"messages\[0\].content is empty"),
        ([ASKED, {"role": "assistant", "content": "", "tool_calls": ["{"]}], "not valid JSON"),
        (
            [ASKED, {"role": "assistant", "content": "", "tool_calls": '{"name": "f"}'}],
            "tool_calls must be a list",
        ),
        (
            [ASKED, {"role": "assistant", "content": None}, ASKED],
            r"messages\[1\].content is null, and the turn has no tool_calls",
        ),
        (
            [ASKED, {"role": "assistant", "content": "old"}],
            "ends with an assistant turn, so there is nothing to answer; input.final_answer=drop",
        ),
        (
            [{"from": "human", "value": "q"}, {"from": "gpt", "value": "old"}],
            "ends with an assistant turn",
        ),
        ([{"role": "system", "content": "s"}], "has no user turn"),
        ([{"text": "q", "speaker": "me"}], "with role and content .*, not text, speaker"),
        ("[{", "not valid JSON"),
        ("null", "not null"),
    ],
)
def test_malformed_messages_are_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidPromptError, match=reason):
        row_messages({"messages": value, "tools": None}, MESSAGES, None, None)


def test_system_prompt_and_suffix_come_from_the_config() -> None:
    assert row_messages({"prompt": "q"}, PROMPT, "sys", "suffix") == [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "q\nsuffix"},
    ]
    row = {"messages": [{"role": "system", "content": "own"}, {"role": "user", "content": "q"}]}
    columns = PromptColumns(messages="messages")
    assert row_messages(row, columns, "sys", None)[0]["content"] == "own"


@pytest.mark.parametrize("values", [{"a": "", "b": " \n"}, {"a": " ", "b": "\u3000"}])
def test_a_row_whose_columns_are_all_blank_is_refused(values: dict[str, str]) -> None:
    columns = PromptColumns(template="Answer {a} with {b:doc}")
    with pytest.raises(InvalidPromptError, match="a, b is empty"):
        row_messages(values, columns, None, None)
    assert row_messages({**values, "b": "x"}, columns, None, None)


def test_prompt_beyond_the_context_is_refused_with_both_lengths() -> None:
    short = PromptRenderer(tokenizer("qwq-nano"), context_tokens=30)
    with pytest.raises(PromptTooLongError, match=r"has \d\d tokens, the context 30"):
        short.render([{"role": "user", "content": "x" * 40}])


def test_nulls_from_arrow_are_dropped_and_nulls_in_json_kept() -> None:
    calls = [
        {"name": "f", "arguments": {"city": "Rome"}},
        {"name": "g", "arguments": {"unit": "C"}},
    ]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "user", "content": "q"},
    ]
    tools = '[{"name": "f", "default": null}]'
    row = TableRow(pa.Table.from_pylist([{"messages": messages, "tools": tools}]), 0)
    text = render_row(renderer("qwq-nano"), row, MESSAGES, None, None).text
    assert '"arguments": {"city": "Rome"}' in text
    assert '"arguments": {"unit": "C"}' in text
    assert '"default": null' in text


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [{"role": "user", "content": "q"}], "tools": '["\\ud800"]'}, "invalid_prompt"),
        ({"messages": [{"role": "user", "content": "q"}], "tools": '[{"a": "\\ud800"}]'}, "invalid_prompt"),
        ({"messages": [{"role": "user", "content": "q"}], "tools": "[" * 100_000}, "invalid_prompt"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"function": 5}]}], "tools": None}, "invalid_prompt"),
    ],
)  # fmt: skip
def test_malformed_row_fails_alone(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(RowError) as caught:
        render_row(renderer("qwq-nano"), row, MESSAGES, None, None)
    assert caught.value.kind == kind


def test_text_that_is_not_utf8_fails_its_row() -> None:
    broken = pa.array([b"fine", b"\xff\xfe"]).view(pa.binary()).cast(pa.string(), safe=False)
    table = pa.table({"prompt": broken})
    assert render_row(renderer("qwq-nano"), TableRow(table, 0), PROMPT, None, None).token_ids
    with pytest.raises(InvalidPromptError, match="UnicodeDecodeError"):
        render_row(renderer("qwq-nano"), TableRow(table, 1), PROMPT, None, None)
