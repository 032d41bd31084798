r"""Samples as rows to train on: chats, preference pairs and prompts with references; no I/O.

* A chat has ``messages``, a list of {role, content}, as TRL and LLaMA-Factory read chats: the turns
  the model was given, with system turn and suffix, and its own turn at the end. With thinking, its
  turn is ``<think>\nthinking\n</think>\n\nanswer``, whatever tags the model itself writes.
* A pair has ``prompt``, ``chosen`` and ``rejected``, lists of messages (TRL's DPO), or
  ``conversations``, ``chosen`` and ``rejected`` (LLaMA-Factory's ranking).
* A prompt for reinforcement learning has ``prompt`` and ``solution``, as TRL's GRPO passes it to
  reward functions, and what verl reads.

Each has ``id`` (the ``sample_id``, of a prompt without the sample), ``seed_id`` if the seeds have a
column ``id``, and ``tools`` (JSON text) if the prompts have tools.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jobs.preferences import Candidate, Pair
from pipeline.execution.prepare import PreparedRun
from pipeline.execution.row_prompts import RowPrompts
from pipeline.prompts.messages import SHAREGPT, row_tools
from pipeline.reasoning.think_format import THINK_TAGS

VARIANTS = ("thinking", "answers")
SEED_ID = "id"
DATA_SOURCE, ABILITY = "qwq-batch", "reasoning"
_TOOL_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_API_KEYS = (
    pa.field("name", pa.string()),
    pa.field("tool_calls", pa.list_(_TOOL_CALL)),
    pa.field("tool_call_id", pa.string()),
)


def model_turn(think: str | None, answer: str, with_thinking: bool) -> str:
    """The text of the model's own turn."""
    if not with_thinking or think is None:
        return answer
    return f"{THINK_TAGS.open}\n{think}{THINK_TAGS.closing}{answer}"


def conversation(
    row: Mapping[str, Any], names: Mapping[str, str], run: PreparedRun, with_thinking: bool
) -> dict[str, Any]:
    """One sample as a chat. ``names``: our column: its name in ``row``."""
    text = model_turn(row[names["think"]], row[names["answer"]], with_thinking)
    messages = [*_given(row, run), {"role": "assistant", "content": text}]
    return {"messages": messages, "id": row["sample_id"], **_origin(row, run)}


def preference(pair: Pair, run: PreparedRun) -> dict[str, Any]:
    """A pair in TRL's shape, with the reason why each is what it is."""
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    return {
        "prompt": _given(pair.chosen.row, run),
        **{side: [_turn(sample)] for side, sample in sides.items()},
        "pair": pair.kind,
        "rejected_reason": pair.rejected.rejected,
        **{f"{side}_score": sample.score for side, sample in sides.items()},
        **{f"{side}_tokens": sample.tokens for side, sample in sides.items()},
        "id": pair.chosen.row["sample_id"],
        "rejected_id": pair.rejected.row["sample_id"],
        **_origin(pair.chosen.row, run),
    }


def ranking(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `preference` in LLaMA-Factory's shape."""
    sides = {side: pair[side][0] for side in ("chosen", "rejected")}
    rest = {key: value for key, value in pair.items() if key not in ("prompt", *sides)}
    return {"conversations": pair["prompt"], **sides, **rest}


def rl_prompt(row: Mapping[str, Any], run: PreparedRun, split: str, index: int) -> dict[str, Any]:
    """A prompt with its reference. ``index``: its number in the export."""
    column = run.config.answer.reference_column
    assert column is not None
    reference = row[column]
    solution = reference if isinstance(reference, str) else json.dumps(reference, default=str)
    prompt_id = row["sample_id"].rpartition(":")[0]
    return {
        "prompt": _given(row, run),
        "solution": solution,
        "pass_rate": row["pass_rate"],
        "data_source": DATA_SOURCE,
        "ability": ABILITY,
        "reward_model": {"style": "rule", "ground_truth": solution},
        "extra_info": {"split": split, "index": index, "id": prompt_id},
        "id": prompt_id,
        **_origin(row, run),
    }


def _given(row: Mapping[str, Any], run: PreparedRun) -> list[dict[str, Any]]:
    """The turns that the model was given, with the suffix of the row's own schema if it has one."""
    messages = RowPrompts(run.config, run.columns).messages(row)
    return [*map(_with_openai_calls, messages)]


def _turn(sample: Candidate) -> dict[str, str]:
    return {"role": "assistant", "content": model_turn(sample.think, sample.answer, True)}


def _origin(row: Mapping[str, Any], run: PreparedRun) -> dict[str, Any]:
    """The id of the row's seed and its tools, if there are such columns."""
    origin = dict[str, Any]()
    if _has_seed_id(run):
        seed_id = row[SEED_ID]
        origin["seed_id"] = seed_id if seed_id is None else str(seed_id)
    if run.columns.tools is not None:
        tools = row_tools(row, run.columns)
        origin["tools"] = None if tools is None else json.dumps(tools, ensure_ascii=False)
    return origin


def _has_seed_id(run: PreparedRun) -> bool:
    return SEED_ID in run.prompts.names


def chat_schema(run: PreparedRun) -> pa.Schema:
    """The columns of chats; messages keep the keys of the prompts' messages."""
    return pa.schema([("messages", _messages_type(run)), ("id", pa.string()), *_origin_fields(run)])


def preference_schema(run: PreparedRun) -> pa.Schema:
    """The columns of `preference`."""
    turn = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    return pa.schema(
        [
            ("prompt", _messages_type(run)), ("chosen", turn), ("rejected", turn),
            ("pair", pa.string()), ("rejected_reason", pa.string()),
            ("chosen_score", pa.float64()), ("rejected_score", pa.float64()),
            ("chosen_tokens", pa.int64()), ("rejected_tokens", pa.int64()),
            ("id", pa.string()), ("rejected_id", pa.string()), *_origin_fields(run),
        ]
    )  # fmt: skip


def rl_schema(run: PreparedRun) -> pa.Schema:
    """The columns of `rl_prompt`."""
    reward = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
    extra = pa.struct([("split", pa.string()), ("index", pa.int64()), ("id", pa.string())])
    return pa.schema(
        [
            ("prompt", _messages_type(run)), ("solution", pa.string()), ("pass_rate", pa.float64()),
            ("data_source", pa.string()), ("ability", pa.string()), ("reward_model", reward),
            ("extra_info", extra), ("id", pa.string()), *_origin_fields(run),
        ]
    )  # fmt: skip


def _messages_type(run: PreparedRun) -> pa.DataType:
    fields = {"role": pa.string(), "content": pa.string()}
    if run.columns.messages is not None:
        message = getattr(run.prompts.field(run.columns.messages).type, "value_type", None)
        # Without such a type they are JSON text, in which all keys of the API may be.
        for key in message if isinstance(message, pa.StructType) else _API_KEYS:
            if key.name not in SHAREGPT:
                is_calls = key.name == "tool_calls"
                fields.setdefault(key.name, pa.list_(_TOOL_CALL) if is_calls else key.type)
    return pa.list_(pa.struct(list(fields.items())))


def _origin_fields(run: PreparedRun) -> list[pa.Field]:
    names = ["seed_id"] if _has_seed_id(run) else []
    names += ["tools"] if run.columns.tools is not None else []
    return [pa.field(name, pa.string()) for name in names]


def _with_openai_calls(message: dict[str, Any]) -> dict[str, Any]:
    """``message`` with tool calls in OpenAI's shape, whose JSON arguments fit one Arrow type."""
    if not message.get("tool_calls"):
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call.get("function") or call
        arguments = json.dumps(function.get("arguments"), ensure_ascii=False)
        calls.append(
            {
                "id": call.get("id"),
                "type": "function",
                "function": {"name": function.get("name"), "arguments": arguments},
            }
        )
    return {**message, "tool_calls": calls}
