"""Schemas: one for all shards; a clash is refused with the setting that resolves it."""

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.prompts.columns import PromptColumns, prompt_columns
from pipeline.schema import conform, output_schema, plain_rows

PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])


def test_our_columns_follow_all_input_columns() -> None:
    names = output_schema(PROMPTS, {}, raw_text=False).names
    assert names == [
        "id", "prompt", "think", "answer", "state", "finish_reason", "prompt_tokens",
        "think_tokens", "answer_tokens", "parsed", "correct", "vote", "agreement", "think_foreign", "answer_foreign", "closed_by", "loop_retries", "wasted_tokens",
        "carried_tokens", "sample", "attempt", "seed", "duplicate_of", "yarn_factor", "error",
    ]  # fmt: skip
    assert output_schema(PROMPTS, {}, raw_text=True).names == [*names, "raw"]


def test_clash_with_an_answer_column_names_the_setting_that_renames_ours() -> None:
    schema = pa.schema([*PROMPTS, pa.field("answer", pa.string())])
    with pytest.raises(InputError, match=r"--set output.rename.answer=qwq_answer"):
        output_schema(schema, {}, raw_text=False)
    assert "qwq_answer" in output_schema(schema, {"answer": "qwq_answer"}, raw_text=False).names


def test_usual_column_is_chosen_and_an_unclear_choice_is_refused() -> None:
    chat = pa.schema([("messages", pa.list_(pa.string())), ("tools", pa.string())])
    assert prompt_columns(PROMPTS, PromptColumns()) == PromptColumns(prompt="prompt")
    assert prompt_columns(chat, PromptColumns()) == PromptColumns(None, "messages", "tools")
    both = pa.schema([*PROMPTS, *chat])
    with pytest.raises(InputError, match=r"both a prompt and a messages column"):
        prompt_columns(both, PromptColumns())
    assert prompt_columns(both, PromptColumns(prompt="prompt")).messages is None
    templated = PromptColumns(template="{prompt:document} of {messages}")
    assert prompt_columns(both, templated) == templated
    with pytest.raises(InputError, match=r"prompt.template names text, label, but .* columns id"):
        prompt_columns(both, PromptColumns(template="{text} {prompt} {label}"))
    with pytest.raises(InputError, match=r"no prompt and no messages column .*--set input.prompt_"):
        prompt_columns(pa.schema([("text", pa.string())]), PromptColumns())
    with pytest.raises(InputError, match=r"input.prompt_column is question, but .* id, prompt"):
        prompt_columns(PROMPTS, PromptColumns(prompt="question"))


def test_tools_column_is_found_beside_a_configured_messages_column() -> None:
    chat = pa.schema([("chat", pa.list_(pa.string())), ("tools", pa.string())])
    assert prompt_columns(chat, PromptColumns(messages="chat")).tools == "tools"


def test_column_that_a_shard_lacks_is_null_there() -> None:
    assert conform(pa.table({"prompt": ["q"]}), PROMPTS).to_pylist() == [
        {"id": None, "prompt": "q"}
    ]


def test_names_that_differ_by_case_only_are_refused_with_the_setting() -> None:
    gold = pa.schema([*PROMPTS, pa.field("Answer", pa.string()), pa.field("STATE", pa.string())])
    hint = r"--set output.rename.answer=qwq_answer --set output.rename.state=qwq_state"
    with pytest.raises(InputError, match=f"Answer, STATE, and the output would add .*{hint}"):
        output_schema(gold, {}, raw_text=False)
    renamed = {"answer": "qwq_answer", "state": "qwq_state"}
    assert "qwq_state" in output_schema(gold, renamed, raw_text=False).names
    twins = pa.schema([*PROMPTS, pa.field("ID", pa.int64())])
    with pytest.raises(InputError, match="columns ID and id differ by case only"):
        output_schema(twins, {}, raw_text=False)
    with pytest.raises(InputError, match=r"columns (\w+) and (\w+) differ by case only"):
        output_schema(PROMPTS, {"answer": "Reply", "think": "reply"}, raw_text=False)
    for schema in (gold, twins):  # an output of a version that took them
        assert output_schema(schema, {}, raw_text=False, ignore_case=False).names[:2] == [
            "id",
            "prompt",
        ]


def test_values_that_python_has_no_form_for_are_shown_all_the_same() -> None:
    raw = pa.array([b"ok", b"\xff2", None], pa.binary())
    text = pa.StringArray.from_buffers(3, *raw.buffers()[1:], raw.buffers()[0])
    nested = pa.StructArray.from_arrays(
        [text, pa.ListArray.from_arrays([0, 1, 2, 3], text)], ["a", "b"]
    )
    table = pa.table(
        {
            "text": text,
            "nested": nested,
            "kind": pa.DictionaryArray.from_arrays([0, 1, None], text),
            "far": pa.array([1, 10**15, None], pa.timestamp("s")),
            "long": pa.array([1, 2**62, None], pa.duration("s")),
        }
    )
    first, second, third = plain_rows(table)
    assert first["text"] == first["kind"] == "ok"
    assert second["text"] == second["kind"] == "\ufffd2"
    assert second["nested"] == {"a": "\ufffd2", "b": ["\ufffd2"]}
    assert "1000000000000000" in second["far"]
    assert second["long"] == str(2**62)
    assert third == {
        "text": None, "nested": {"a": None, "b": [None]}, "kind": None, "far": None, "long": None,
    }  # fmt: skip
