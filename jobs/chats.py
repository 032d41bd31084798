r"""Accepted samples as chats to train on: Parquet and JSON lines, with and without thinking.

    thinking/train-00000.parquet         thinking-jsonl/train-00000.jsonl
    answers/train-00000.parquet          answers-jsonl/train-00000.jsonl

A row has ``messages`` (a list of {role, content}, the shape of TRL's and LLaMA-Factory's chats),
``id`` (the ``sample_id``) and, where the prompts have tools, ``tools`` (JSON text). The turns are
what the model was given, system turn and suffix too; the last is its own. With thinking that is
``<think>\nthinking\n</think>\n\nanswer``, whatever tags the model itself writes.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.accept import Samples
from pipeline.execution.prepare import PreparedRun
from pipeline.prompts.render import TableRow, row_messages, row_tools
from pipeline.reasoning.think_format import THINK_TAGS, State
from pipeline.storage import Storage

VARIANTS = ("thinking", "answers")
JSONL = "-jsonl"
ROWS_A_GROUP = 1024
ANSWERED = (State.FINISHED, State.RESCUED, State.UNPARSED)
_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)


@dataclass
class Exported:
    """What was written: conversations, bytes by folder, and the first conversation."""

    rows: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    example: dict[str, Any] | None = None


def spoken(think: str | None, answer: str, thinking: bool) -> str:
    """The model's turn, as its chat template has it."""
    if not thinking or think is None:
        return answer
    return f"{THINK_TAGS.open}\n{think}{THINK_TAGS.closing}{answer}"


def conversation(
    row: Mapping[str, Any], names: Mapping[str, str], run: PreparedRun, thinking: bool
) -> dict[str, Any]:
    """One sample as a row of the export; ``names``: our columns' names there."""
    system, suffix = run.config.prompt.system, run.config.suffix_text
    messages = [_plain(m) for m in row_messages(row, run.columns, system, suffix)]
    said = spoken(row[names["think"]], row[names["answer"]], thinking)
    messages.append({"role": "assistant", "content": said})
    found = {"messages": messages, "id": row["sample_id"]}
    if run.columns.tools is not None:
        tools = row_tools(row, run.columns)
        found["tools"] = None if tools is None else json.dumps(tools, ensure_ascii=False)
    return found


def export_schema(run: PreparedRun) -> pa.Schema:
    """The columns of the export; messages have the keys that those of the prompts have."""
    fields = {"role": pa.string(), "content": pa.string()}
    if run.columns.messages is not None:
        given = getattr(run.prompts.field(run.columns.messages).type, "value_type", None)
        for own in given if isinstance(given, pa.StructType) else ():
            kind = pa.list_(_CALL) if own.name == "tool_calls" else own.type
            fields.setdefault(own.name, kind)
    columns = [("messages", pa.list_(pa.struct(list(fields.items())))), ("id", pa.string())]
    if run.columns.tools is not None:
        columns.append(("tools", pa.string()))
    return pa.schema(columns)


def export(samples: Samples, run: PreparedRun, store: Storage, everything: bool) -> Exported:
    """Write the accepted samples, or ``everything`` that has a whole answer, to ``store``.

    A part of the samples becomes a file of each kind; files of an earlier export go.
    """
    found, written, number = Exported(), set[str](), 0
    for part in samples.parts:
        for name, data in _files(samples, part, run, everything, found):
            path = f"{name}/train-{number:05}.{'jsonl' if name.endswith(JSONL) else 'parquet'}"
            store.put(path, data)
            written.add(path)
            found.sizes[name] = found.sizes.get(name, 0) + len(data)
        number = len(written) // (2 * len(VARIANTS))
    folders = tuple(f"{variant}{kind}/" for variant in VARIANTS for kind in ("", JSONL))
    there = {info.name for info in store.files()}
    store.delete(sorted(n for n in there - written if n.startswith(folders)))
    return found


def _files(
    samples: Samples, part: str, run: PreparedRun, everything: bool, found: Exported
) -> Iterator[tuple[str, bytes]]:
    """Of one part: folder and content of each file; none if no row is to be exported."""
    schema, names, rows = export_schema(run), samples.names, 0
    tabular, lines = {v: BytesIO() for v in VARIANTS}, {v: BytesIO() for v in VARIANTS}
    writers = {v: pq.ParquetWriter(tabular[v], schema, compression="zstd") for v in VARIANTS}
    with samples.store.open(part) as file:
        for batch in pq.ParquetFile(file).iter_batches(ROWS_A_GROUP):
            table = pa.Table.from_batches([batch])
            chosen = [
                row for row in (TableRow(table, i) for i in range(table.num_rows))
                if row["accepted"] or (everything and _is_whole(row, names))
            ]  # fmt: skip
            for variant in VARIANTS if chosen else ():
                chats = [conversation(row, names, run, variant == "thinking") for row in chosen]
                found.example = found.example or chats[0]
                writers[variant].write_table(pa.Table.from_pylist(chats, schema))
                text = "".join(
                    json.dumps(chat, ensure_ascii=False, default=str) + "\n" for chat in chats
                )
                lines[variant].write(text.encode())
            rows += len(chosen)
    found.rows += rows
    for variant in VARIANTS if rows else ():
        writers[variant].close()
        yield variant, tabular[variant].getvalue()
        yield f"{variant}{JSONL}", lines[variant].getvalue()


def _is_whole(row: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return row[names["state"]] in ANSWERED and bool((row[names["answer"]] or "").strip())


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """``message``, its tool calls as OpenAI has them: arguments as JSON text, one type for all."""
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
