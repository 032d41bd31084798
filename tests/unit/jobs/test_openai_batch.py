"""Batch files: what is taken, what is refused and in which words."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.job import Job
from jobs.openai_batch import make_ready
from jobs.openai_lines import ROWS, parse_request
from pipeline.config.load import parse_as
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.execution.run_input import find_input
from pipeline.input.shards import find_shards
from pipeline.output.ledger import Ledger
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages, row_tools
from pipeline.prompts.render import TableRow
from pipeline.storage import Storage

ASK = [{"role": "user", "content": "hi"}]
COLUMNS = PromptColumns(messages="messages", tools="tools")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FORM = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def line(custom_id: str = "a", messages: Any = ASK, url: str = "", **body: Any) -> str:
    body = {"model": "m", "messages": messages, **body}
    url = url or "/v1/chat/completions"
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body})


def json_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def job(folder: Path, *lines: str, **sections: dict[str, Any]) -> Job:
    (folder / "in.jsonl").write_text("".join(f"{text}\n" for text in lines), encoding="utf-8")
    base = {
        "input": {"path": str(folder / "in.jsonl")},
        "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"},
    }
    return parse_as(Job, {**base, **sections}, "test")


def test_a_request_becomes_a_row_that_the_pipeline_renders(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}]},
        {"role": "user", "content": "w?", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning": "hm"},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]  # fmt: skip
    make_ready(
        job(
            tmp_path,
            line("a", messages, tools=[TOOL], tool_choice="auto", user="u", stream=False),
            line("b", tools=[TOOL], tool_choice="none"),
        )
    )
    table = pq.read_table(tmp_path / "out/requests/in.parquet")
    assert table.schema == ROWS
    assert table["custom_id"].to_pylist() == ["a", "b"]
    first, second = TableRow(table, 0), TableRow(table, 1)
    assert row_messages(first, COLUMNS, None, None) == [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": "w?", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [
            {**call, "function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert row_tools(first, COLUMNS) == [TOOL]
    assert row_messages(second, COLUMNS, None, None) == ASK
    assert row_tools(second, COLUMNS) is None


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"custom_id": "a", "custom_id": "b"}', "is not JSON: the key custom_id is there twice"),
        ("[]", "valid dictionary"),
        ("{}", "custom_id is missing; method is missing; url is missing; body is missing"),
        (line(url="/v1/embeddings"), "url: Input should be '/v1/chat/completions'"),
        (line(custom_id=""), "custom_id: "),
        (line(messages=[]), "body.messages: "),
        (line(messages=IMAGE), "body.messages.0.content: only parts of type text"),
        (line(messages=[{"role": "user"}]), "body.messages.0: content is missing"),
        (line(messages=[{"role": "function", "content": "x"}]), "body.messages.0.role: "),
        (line(messages=[{**ASK[0], "audio": {"id": "x"}}]), "messages.0.audio is unknown"),
        (line(messages=[{"role": "user", "content": "\ud800"}]), "has half of a surrogate pair"),
        (line(temperature="hot"), r"body.temperature: Input should be a valid number \(got 'hot'"),
        (line(n=True), "body.n: "),
        (line(max_tokens=1, max_completion_tokens=2), "max_tokens and max_completion_tokens differ"),
        (line(stop=["x"], logit_bias={"1": 2}), "unsupported: stop, logit_bias;"),
        (line(logprobs=True, top_logprobs=3), "unsupported: logprobs, top_logprobs;"),
        (line(frequency_penalty=0.1, stream=True), "unsupported: frequency_penalty, stream;"),
        (line(temprature=1), "unsupported: temprature;"),
        (line(min_tokens=5, skip_special_tokens=False), "unsupported: min_tokens, skip_special_tokens;"),
        (line(chat_template_kwargs={"enable_thinking": False}), "unsupported: chat_template_kwargs;"),
        (line(continue_final_message=True), "unsupported: continue_final_message;"),
        (line(max_tokens=100.5), "body.max_tokens: "),
        (line(messages=[*ASK, {"role": "assistant", "tool_calls": [
            {"function": {"name": "f", "arguments": "[" * 3000}}]}]), "arguments: must be JSON text"),
        (line(tool_choice="required"), "body.tool_choice: Input should be 'auto' or 'none'"),
        (line(tools=[{"type": "custom"}]), "only tools of type function"),
        (line(response_format={"type": "json_schema"}), "go together"),
        ('{"a": NaN}', "NaN is not a JSON number"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_run_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_request(text.encode())


def test_fields_that_change_nothing_are_accepted() -> None:
    parse_request(
        line(
            stop=[], logit_bias={}, logprobs=False, top_logprobs=0, frequency_penalty=0.0,
            stream=False, tool_choice=None, temperature=None, metadata={"a": "b"}, store=True,
            service_tier="auto", stream_options={"include_usage": True}, user="me",
            response_format={"type": "text"}, add_generation_prompt=True, min_tokens=0,
            skip_special_tokens=True, chat_template_kwargs={"enable_thinking": True}, echo=False,
        ).encode()
    )  # fmt: skip
    call = {"id": "c", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [*ASK, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "r"}]
    body = parse_request(
        line(messages=turns, max_tokens=100.0, n=2.0, seed=5.0, top_k=20.0).encode()
    ).body
    assert (body.max_tokens, body.n, body.seed, body.top_k) == (100, 2, 5, 20)
    assert isinstance(body.max_tokens, int)
    assert body.messages[1].tool_calls is not None


def test_all_bad_lines_are_told_together_and_nothing_is_written(tmp_path: Path) -> None:
    lines = [line("a"), "nonsense", "", line("b", stop="x"), line("a")]
    with pytest.raises(InputError) as caught:
        make_ready(job(tmp_path, *lines))
    assert str(caught.value).splitlines() == [
        "3 lines of the batch can't be run, so nothing was started:",
        "  in.jsonl:2: is not JSON: Expecting value: line 1 column 1 (char 0)",
        "  in.jsonl:4: body: unsupported: stop; remove it",
        "  in.jsonl:5: custom_id 'a' is also that of in.jsonl:1",
    ]
    with pytest.raises(InputError, match=r"30 lines (?s:.*)in.jsonl:20: .*\n  and 10 more$"):
        make_ready(job(tmp_path, *["x"] * 30))
    with pytest.raises(InputError, match=r"no requests in in.jsonl"):
        make_ready(job(tmp_path, ""))
    assert not (tmp_path / "out").exists()


def test_what_all_requests_ask_for_is_the_runs_policy(tmp_path: Path) -> None:
    body: dict[str, Any] = {"temperature": 0.7, "max_completion_tokens": 99, "seed": 5, "n": 2}
    form: dict[str, Any] = {"response_format": json_format(FORM)}
    run = make_ready(job(tmp_path, line("a", **body, **form), line("b", **body, **form)))
    policy = run.sampling
    assert (policy.temperature, policy.max_tokens, policy.seed, policy.n) == (0.7, 99, 5, 2)
    assert (policy.top_p, policy.top_k) == (0.95, 40)
    assert (run.answer.format, run.answer.json_schema) == ("json", FORM)


def test_saying_nothing_is_the_same_as_saying_what_the_run_has(tmp_path: Path) -> None:
    lines = [line("a"), line("b", n=1, temperature=0.6), line("c", presence_penalty=0)]
    assert make_ready(job(tmp_path, *lines)).sampling == job(tmp_path).sampling


def test_what_the_config_says_wins(tmp_path: Path) -> None:
    lines = [line("a", temperature=0, n=2, response_format=json_format(FORM)), line("b", n=3)]
    sections: dict[str, dict[str, Any]] = {
        "sampling": {"temperature": 0.8, "n": 4},
        "answer": {"format": "text"},
    }
    run = make_ready(job(tmp_path, *lines, **sections))
    assert (run.sampling.temperature, run.sampling.n, run.answer.format) == (0.8, 4, "text")


def own_of(tmp_path: Path, shard: str = "in.parquet") -> list[Any]:
    cells = pq.read_table(tmp_path / "out/requests" / shard)["settings"].to_pylist()
    return [cell and json.loads(cell) for cell in cells]


def test_requests_that_differ_keep_their_own_settings(tmp_path: Path) -> None:
    lines = [
        line("a", max_tokens=900), line("b", temperature=0.7, max_tokens=900, seed=5),
        line("c", temperature=0, max_completion_tokens=900, response_format=json_format(FORM)),
    ]  # fmt: skip
    run = make_ready(job(tmp_path, *lines))
    assert run.input.sampling_column == "settings"
    assert (run.sampling.max_tokens, run.sampling.temperature) == (900, 0.6)
    assert (run.answer.format, run.answer.json_schema) == ("text", None)
    assert own_of(tmp_path) == [
        None, {"temperature": 0.7, "seed": 5}, {"temperature": 0, "json_schema": FORM}
    ]  # fmt: skip
    assert make_ready(job(tmp_path, *lines)) == run


def test_where_they_do_not_differ_shards_are_as_before(tmp_path: Path) -> None:
    run = make_ready(job(tmp_path, line("a", seed=2), line("b", seed=2)))
    assert run.input.sampling_column is None
    names = pq.read_schema(tmp_path / "out/requests/in.parquet").names
    assert names == ROWS.names


def test_greedy_requests_are_greedy_rows(tmp_path: Path) -> None:
    run = make_ready(job(tmp_path, line("a", temperature=0), line("b", temperature=0)))
    assert run.sampling.temperature == 0.6
    assert own_of(tmp_path) == [{"temperature": 0}] * 2


def test_what_the_config_says_is_nobodys_own(tmp_path: Path) -> None:
    lines = [line("a", temperature=0.1, seed=1), line("b", temperature=0.2)]
    run = make_ready(job(tmp_path, *lines, sampling={"temperature": 0.8}))
    assert run.sampling.temperature == 0.8
    assert own_of(tmp_path) == [{"seed": 1}, None]


def test_what_can_not_differ_is_refused_by_name_and_line(tmp_path: Path) -> None:
    lines = [line("a"), line("b", n=2, temperature=0.7), line("c", model="other")]
    with pytest.raises(ConfigError) as caught:
        make_ready(job(tmp_path, *lines))
    assert str(caught.value).splitlines()[:3] == [
        "the requests differ in settings that a run has one value of:",
        "  n: 1 at in.jsonl:1 (which says none), 2 at in.jsonl:2",
        "  model: m at in.jsonl:1, other at in.jsonl:3",
    ]
    assert "split the file" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_own_settings_that_no_row_can_have_are_refused_by_line(tmp_path: Path) -> None:
    lines = [line("a"), line("b", presence_penalty=-1), line("c", top_p=0.5, temperature=3)]
    with pytest.raises(InputError) as caught:
        make_ready(job(tmp_path, *lines))
    first, *wrong = str(caught.value).splitlines()
    assert first == "2 lines of the batch can't be run, so nothing was started:"
    assert wrong == [
        "  in.jsonl:2: presence_penalty: Input should be greater than or equal to 0, not -1.0",
        "  in.jsonl:3: temperature: Input should be less than or equal to 2, not 3.0",
    ]
    assert not (tmp_path / "out").exists()


def test_a_job_keeps_what_its_requests_differ_in(tmp_path: Path) -> None:
    folder = {"input": {"path": str(tmp_path / "in")}}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text(f"{line('a')}\n{line('b', seed=1)}")
    run = make_ready(job(tmp_path, **folder))
    found, ledger = find_shards(run.input.path), Ledger(Storage(run.output.path))
    ledger.record_shards(found.shards, found.schema, run.input.path)  # as the run does
    (tmp_path / "in/b.jsonl").write_text(line("c", seed=2))
    make_ready(job(tmp_path, **folder))
    assert own_of(tmp_path, "b.parquet") == [{"seed": 2}]
    for changed in ({"sampling": {"seed": 3}}, {}):
        if not changed:
            (tmp_path / "in/c.jsonl").write_text(line("d", top_p=0.5))
        with pytest.raises(OutputError, match=r"own settings sampling\.seed, and now"):
            make_ready(job(tmp_path, **folder, **changed))
        assert not (tmp_path / "out/requests/c.parquet").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"temperature": 3}, r"(?s:.*)--set sampling.temperature=0.6$"),
        ({"presence_penalty": -1}, r"(?s:.*)--set sampling.presence_penalty=0.0$"),
        ({"response_format": json_format({"type": 3})}, r"not a JSON Schema(?s:.*)--set answer.format=text$"),
    ],
)  # fmt: skip
def test_a_policy_that_the_pipeline_refuses_says_how_to_override(
    tmp_path: Path, body: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_ready(job(tmp_path, line(**body)))


def test_shards_are_written_once_files_may_be_added_and_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.openai_batch.ROWS_A_TABLE", 2)
    folder = {"input": {"path": str(tmp_path / "in")}}
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jsonl").write_text("\n\n".join(line(str(i)) for i in range(5)))
    run = make_ready(job(tmp_path, **folder))
    found, ledger = find_shards(run.input.path), Ledger(Storage(run.output.path))
    ledger.record_shards(found.shards, found.schema, run.input.path)  # as the run does
    shard = tmp_path / "out/requests/b.parquet"
    assert pq.read_table(shard)["custom_id"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert pq.ParquetFile(shard).num_row_groups == 3
    content = shard.read_bytes()
    shard.unlink()  # as after a crash
    (tmp_path / "in/c.jsonl.gz").write_bytes(gzip.compress(line("new").encode()))
    make_ready(job(tmp_path, **folder))
    assert shard.read_bytes() == content
    assert pq.read_table(tmp_path / "out/requests/c.parquet")["custom_id"].to_pylist() == ["new"]
    (tmp_path / "in/b.jsonl").write_text(line("0", n=1))
    with pytest.raises(OutputError, match=r"^b.jsonl has changed since the run at "):
        make_ready(job(tmp_path, **folder))


def test_of_a_folder_the_listed_batch_files_are_run(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / f"in/{name}.jsonl").write_text(line(name))
    (tmp_path / "list.txt").write_text("a.jsonl\nc.jsonl\n")
    section = {"path": str(tmp_path / "in"), "files": str(tmp_path / "list.txt")}
    run = make_ready(job(tmp_path, input=section))
    assert [shard.name for shard in find_input(run).shards] == ["a.parquet", "c.parquet"]
    for name, value in (("types", {"custom_id": "string"}), ("subset", "x"), ("split", "x")):
        with pytest.raises(ConfigError, match=rf"input.{name} says nothing about batch files"):
            make_ready(job(tmp_path, input={**section, name: value}))


def test_an_output_among_the_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"lies in input.path"):
        make_ready(job(tmp_path, line(), input={"path": str(tmp_path)}))


def test_lines_of_any_length_are_read_one_by_one(tmp_path: Path) -> None:
    long = line("long", [{"role": "user", "content": "x" * 3_000_000}])
    make_ready(job(tmp_path, line("a"), long, line("b")))
    table = pq.read_table(tmp_path / "out/requests/in.parquet")
    assert table["custom_id"].to_pylist() == ["a", "long", "b"]


def test_byte_order_marks_are_no_error() -> None:
    buffer = io.BytesIO()
    buffer.write(line().encode("utf-8-sig"))
    assert parse_request(buffer.getvalue()).custom_id == "a"
