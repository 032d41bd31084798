r"""Accepted samples as chats to train on: Parquet and JSON lines, with and without thinking.

    thinking/train-00000.parquet         thinking-jsonl/train-00000.jsonl
    answers/train-00000.parquet          answers-jsonl/train-00000.jsonl

A row has ``messages`` (a list of {role, content}, as TRL and LLaMA-Factory read chats), ``id`` (the
``sample_id``) and, if the prompts have tools, ``tools`` (JSON text). The messages are the turns the
model was given, including system turn and suffix, and its own turn at the end. With thinking, its
turn is ``<think>\nthinking\n</think>\n\nanswer``, whatever tags the model itself writes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.accept import Samples
from jobs.own_files import OwnFiles
from pipeline.execution.prepare import PreparedRun
from pipeline.prompts.messages import SHAREGPT, row_messages, row_tools
from pipeline.prompts.render import TableRow
from pipeline.reasoning.think_format import THINK_TAGS, State
from pipeline.storage import Storage

FOLDER = "export"
VARIANTS = ("thinking", "answers")
JSONL = "-jsonl"
# The folders, each with the kind of its files.
FOLDERS = [
    (f"{variant}{of}", kind)
    for variant in VARIANTS
    for of, kind in (("", "parquet"), (JSONL, "jsonl"))
]
BATCH_ROWS = 1024
ANSWERED_STATES = (State.FINISHED, State.RESCUED, State.UNPARSED)
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


@dataclass
class Exported:
    """Number of conversations, bytes by folder, the first conversation, and the files' names."""

    rows: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    example: dict[str, Any] | None = None
    files: set[str] = field(default_factory=set)


def model_turn(think: str | None, answer: str, with_thinking: bool) -> str:
    """The text of the model's own turn."""
    if not with_thinking or think is None:
        return answer
    return f"{THINK_TAGS.open}\n{think}{THINK_TAGS.closing}{answer}"


def conversation(
    row: Mapping[str, Any], names: Mapping[str, str], run: PreparedRun, with_thinking: bool
) -> dict[str, Any]:
    """One sample as a row of the export. ``names``: our column: its name in ``row``."""
    system, suffix = run.config.prompt.system, run.config.suffix_text
    given = row_messages(row, run.columns, system, suffix)
    text = model_turn(row[names["think"]], row[names["answer"]], with_thinking)
    messages = [*map(_with_openai_calls, given), {"role": "assistant", "content": text}]
    chat = {"messages": messages, "id": row["sample_id"]}
    if run.columns.tools is not None:
        tools = row_tools(row, run.columns)
        chat["tools"] = None if tools is None else json.dumps(tools, ensure_ascii=False)
    return chat


def export_schema(run: PreparedRun) -> pa.Schema:
    """The columns of the export; messages keep the keys of the prompts' messages."""
    fields = {"role": pa.string(), "content": pa.string()}
    if run.columns.messages is not None:
        message = getattr(run.prompts.field(run.columns.messages).type, "value_type", None)
        # Without such a type they are JSON text, in which all keys of the API may be.
        for key in message if isinstance(message, pa.StructType) else _API_KEYS:
            if key.name not in SHAREGPT:
                is_calls = key.name == "tool_calls"
                fields.setdefault(key.name, pa.list_(_TOOL_CALL) if is_calls else key.type)
    columns = [("messages", pa.list_(pa.struct(list(fields.items())))), ("id", pa.string())]
    if run.columns.tools is not None:
        columns.append(("tools", pa.string()))
    return pa.schema(columns)


class _ChatFiles:
    """The Parquet file and the JSON lines of one variant and part, in memory."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._parquet, self._lines = schema, BytesIO(), BytesIO()
        self._writer = pq.ParquetWriter(self._parquet, schema, compression="zstd")

    def add(self, chats: Sequence[dict[str, Any]]) -> None:
        """Add rows of the export."""
        self._writer.write_table(pa.Table.from_pylist(chats, self._schema))
        for chat in chats:
            self._lines.write(json.dumps(chat, ensure_ascii=False, default=str).encode() + b"\n")

    def finish(self) -> tuple[bytes, bytes]:
        """The content of both files."""
        self._writer.close()
        return self._parquet.getvalue(), self._lines.getvalue()


def export(samples: Samples, run: PreparedRun, own: OwnFiles, everything: bool) -> Exported:
    """Write the accepted samples, or ``everything`` with a complete answer, to `FOLDER`.

    Each part of the samples becomes a file of each kind. ``own``: the files of the job.
    """
    exported, number, store = Exported(), 0, Storage(own.output)
    own.claim(_file(*of, i) for of in FOLDERS for i in range(len(samples.parts)))
    for part in samples.parts:
        files = {variant: _ChatFiles(export_schema(run)) for variant in VARIANTS}
        rows = 0
        for chosen in _chosen_rows(samples, part, everything):
            rows += len(chosen)
            for variant in VARIANTS:
                with_thinking = variant == "thinking"
                chats = [conversation(row, samples.names, run, with_thinking) for row in chosen]
                exported.example = exported.example or chats[0]
                files[variant].add(chats)
        if not rows:
            continue
        for variant in VARIANTS:
            parquet, lines = files[variant].finish()
            for folder, kind, data in (
                (variant, "parquet", parquet), (f"{variant}{JSONL}", "jsonl", lines),
            ):  # fmt: skip
                path = _file(folder, kind, number)
                store.put(path, data)
                exported.files.add(path)
                exported.sizes[folder] = exported.sizes.get(folder, 0) + len(data)
        exported.rows += rows
        number += 1
    return exported


def _file(folder: str, kind: str, number: int) -> str:
    return f"{FOLDER}/{folder}/train-{number:05}.{kind}"


def _chosen_rows(samples: Samples, part: str, everything: bool) -> Iterator[list[TableRow]]:
    """The rows of ``part`` to export, in batches that are not empty."""
    with samples.store.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS):
            table = pa.Table.from_batches([batch])
            rows = (TableRow(table, i) for i in range(table.num_rows))
            chosen = [
                row
                for row in rows
                if row["accepted"] or (everything and _is_complete(row, samples.names))
            ]
            if chosen:
                yield chosen


def _is_complete(row: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return row[names["state"]] in ANSWERED_STATES and bool((row[names["answer"]] or "").strip())


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
