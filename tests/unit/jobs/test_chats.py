"""Accepted samples as files of chats: which rows, in which files, and what becomes of older ones."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import export as export_module
from jobs.accept import AcceptanceRules
from jobs.chats import VARIANTS, chat_schema, conversation
from jobs.export import Exported, ExportRules, export
from jobs.own_files import OwnFiles
from jobs.samples import Checks, Samples
from pipeline.errors import OutputError
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.execution.row_prompts import RowPrompts
from pipeline.prompts.columns import PromptColumns
from pipeline.storage import Storage
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

# The traces of nine rows, three to a part; nothing of the first part is accepted.
TRACES: list[dict[str, Any]] = [
    {"state": "truncated", "answer": "cut"}, {"state": "failed", "answer": None},
    {"state": "finished", "correct": False, "answer": " "},
    {"answer": "b0 ü", "think": "t0"}, {"state": "rescued", "answer": "b1"}, {"answer": "b2"},
    {"answer": "c0", "think": None}, {"state": "unparsed", "answer": "c1"},
    {"correct": False, "answer": "c2"},
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, make_config: MakeConfig) -> PreparedRun:
    write_shards(tmp_path / "in", [9], prompt="Was ist {} + 1? ü")
    output = {"path": str(tmp_path / "out"), "rows_per_part": 3, "rename": {"state": "ending"}}
    config = make_config(output=output)
    finish(config, lambda row, _: {"think": "Hm.", **TRACES[row]})
    return prepare(config)


def samples_of(run: PreparedRun, tmp_path: Path) -> Samples:
    samples = Samples(run, own(tmp_path), Checks(AcceptanceRules()))
    samples.add_new()
    return samples


def own(tmp_path: Path) -> OwnFiles:
    places = ("samples/", "export/")
    return OwnFiles(str(tmp_path / "job"), str(tmp_path / "out"), places, "")


def chats_of(store: Storage, variant: str) -> list[dict[str, Any]]:
    """All chats of ``variant``; those in Parquet and in JSON lines must be the same."""
    found, lines = list[dict[str, Any]](), list[dict[str, Any]]()
    for info in store.files(variant):
        found += pq.read_table(store.path(info.name)).to_pylist()
    for info in store.files(f"{variant}-jsonl"):
        lines += map(json.loads, store.read(info.name).splitlines())
    assert found == lines
    return found


@pytest.mark.parametrize("batch", [1, 2, 1024])
@pytest.mark.parametrize(
    ("everything", "answers", "files"),
    [
        (False, ["b0 ü", "b2", "c0"], 2),
        (True, ["b0 ü", "b1", "b2", "c0", "c1", "c2"], 2),
    ],
)
def test_chosen_samples_are_exported_once_in_order(
    run: PreparedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    everything: bool,
    answers: list[str],
    files: int,
) -> None:
    monkeypatch.setattr(export_module, "BATCH_ROWS", batch)
    store = Storage(str(tmp_path / "job/export"))
    exported = export(samples_of(run, tmp_path), run, own(tmp_path), ExportRules(everything))
    names = [f"train-{number:05}" for number in range(files)]
    assert [info.name for info in store.files()] == sorted(
        f"{variant}{kind}/{name}.{ending}"
        for variant in VARIANTS
        for kind, ending in (("", "parquet"), ("-jsonl", "jsonl"))
        for name in names
    )
    assert exported.files == {f"export/{info.name}" for info in store.files()}
    assert exported.chats == exported.rows["answers", "train"] == len(answers)
    assert exported.sizes == {
        folder: sum(info.size for info in store.files(folder))
        for folder in ("thinking", "thinking-jsonl", "answers", "answers-jsonl")
    }
    bare, thinking = chats_of(store, "answers"), chats_of(store, "thinking")
    assert [chat["messages"][-1]["content"] for chat in bare] == answers
    assert [chat["messages"][-1]["content"] for chat in thinking] == [
        "c0" if answer == "c0" else f"<think>\n{'t0' if answer == 'b0 ü' else 'Hm.'}\n</think>\n\n{answer}"
        for answer in answers
    ]  # fmt: skip
    assert exported.example == thinking[0]
    assert [chat["id"].split(".")[1] for chat in bare] == [
        f"0000{'abc'.index(answer[0])}:{answer[1]}:0" for answer in answers
    ]
    assert bare[0]["messages"][0] == {"role": "user", "content": "Was ist 3 + 1? ü"}
    assert "ü".encode() in store.read("answers-jsonl/train-00000.jsonl")


def test_files_of_somebody_else_are_refused_and_stay(run: PreparedRun, tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "job/export"))
    store.put("answers-jsonl/train-00002.jsonl", b"of a person")
    with pytest.raises(OutputError, match=r"not written.*export/answers-jsonl/train-00002.jsonl"):
        export(samples_of(run, tmp_path), run, own(tmp_path), ExportRules())
    assert [info.name for info in store.files()] == ["answers-jsonl/train-00002.jsonl"]


def test_nothing_accepted_makes_no_file(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    config = make_config()
    finish(config, lambda *_: {"state": "truncated"})
    run = prepare(config)
    assert (
        export(samples_of(run, tmp_path), run, own(tmp_path), ExportRules(everything=True))
        == Exported()
    )
    assert Storage(str(tmp_path / "job/export")).files() == []


def test_prompt_of_a_row_has_the_suffix_that_the_model_got(make_config: MakeConfig) -> None:
    """Of a row with a schema of its own, that schema."""
    config = make_config(
        input={"sampling_column": "own"},
        answer={"format": "json", "json_schema": {"type": "object"}},
        prompt={"suffix": "json"},
    )
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    row: dict[str, Any] = {"prompt": "q", "think": "t", "answer": "{}", "sample_id": "s:0:0"}
    columns, arrow = PromptColumns("prompt"), pa.schema([("prompt", pa.string())])
    run = cast("PreparedRun", SimpleNamespace(config=config, columns=columns, prompts=arrow))
    for own, asked in [({"json_schema": schema}, '"a":{"type":"integer"}'), (None, "object")]:
        row["own"] = None if own is None else json.dumps(own)
        chat = conversation(row, {"think": "think", "answer": "answer"}, run, with_thinking=False)
        assert chat["messages"][:-1] == RowPrompts(config, columns).messages(row)
        assert asked in chat["messages"][0]["content"]


def test_calls_and_tools_are_written_as_openai_does(make_config: MakeConfig) -> None:
    """Also where the name and arguments of a call stand without ``function`` around them."""
    calls = [{"id": "1", "name": "f", "arguments": {"größe": 1}}]
    row = {
        "messages": [
            {"role": "user", "content": "q", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "r", "tool_calls": None},
        ],
        "tools": [{"type": "function", "function": {"name": "größe"}}],
        "think": "t", "answer": "a", "sample_id": "s",
    }  # fmt: skip
    columns = PromptColumns(messages="messages", tools="tools")
    run = cast(
        "PreparedRun",
        SimpleNamespace(
            config=make_config(), columns=columns, prompts=pa.Table.from_pylist([row]).schema
        ),
    )
    names = {"think": "think", "answer": "answer"}
    chat = conversation(row, names, run, with_thinking=False)
    assert chat["messages"][1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"größe": 1}'}}
    ]
    assert chat["tools"] == '[{"type": "function", "function": {"name": "größe"}}]'
    [back] = pa.Table.from_pylist([chat], chat_schema(run)).to_pylist()
    assert back["messages"][1] == chat["messages"][1]
    assert set(chat_schema(run).names) == {"messages", "id", "tools"}
    assert conversation({**row, "tools": None}, names, run, with_thinking=False)["tools"] is None
