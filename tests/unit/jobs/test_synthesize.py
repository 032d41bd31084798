"""jobs.synthesize without an engine: prompts from seeds, acceptance, chats and their card."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from jobs.accept import AcceptanceRules, SampleCounts, rejection, selection
from jobs.card import RULES, UNKNOWN, Provenance, card, dataset_info
from jobs.chats import chat_schema, conversation, model_turn
from jobs.contamination import Benchmarks
from jobs.export import Exported
from jobs.near_duplicates import NearDuplicates
from jobs.seeds import PromptShards, combinations, expanded
from jobs.synthesize import _prompt_shards
from jobs.synthesize_config import Synthesis
from pipeline.answers.boxed import Boxed
from pipeline.config.input import InputConfig
from pipeline.config.load import parse_as, parse_config
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.execution.run_input import find_input
from pipeline.planning import Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.schema import TRACE_COLUMNS
from tests.hub import Hub
from tests.outputs import write_output

VALUES: dict[str, list[str | int | float]] = {"style": ["brief", "full"], "of": [1, 2, 3]}
NAMES = {name: name for name in TRACE_COLUMNS}


def seeds(folder: Path, sizes: list[int], row_group_size: int = 5) -> str:
    folder.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        rows = [{"seed": f"{shard}-{i}"} for i in range(size)]
        table = pa.Table.from_pylist(rows, pa.schema([("seed", pa.string())]))
        pq.write_table(table, folder / f"s{shard}.parquet", row_group_size=row_group_size)
    return str(folder)


def shards(
    folder: Path, rows: int, values: dict[str, Any] | None = None, **query: Any
) -> PromptShards:
    section = InputConfig(path=str(folder / "in"), **query)
    values = VALUES if values is None else values
    return PromptShards(section, str(folder), values, rows)


# Seeds


def test_each_seed_is_expanded_with_each_combination() -> None:
    table = expanded(pa.table({"seed": ["a", "b"]}), VALUES)
    assert table.to_pylist() == [
        {"seed": seed, "style": style, "of": of}
        for seed in "ab" for style in ("brief", "full") for of in (1, 2, 3)
    ]  # fmt: skip
    assert table.schema.types == [pa.string(), pa.string(), pa.int64()]


@settings(max_examples=30)  # each writes its files
@given(st.lists(st.integers(0, 13), min_size=1, max_size=3), st.integers(1, 30))
def test_shards_hold_all_prompts_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int
) -> None:
    if not sum(sizes):
        return
    folder = tmp_path_factory.mktemp("shards")
    seeds(folder / "in", sizes)
    whole = shards(folder, rows)
    assert whole.rows == 6 * sum(sizes)
    first = whole.write(rows)
    assert first == whole.rows_written
    assert first + whole.write(whole.rows) == whole.rows == whole.rows_written
    prompts = pq.read_table(folder / "prompts", schema=None).to_pylist()
    expected = pa.concat_tables(
        expanded(pq.read_table(folder / f"in/s{i}.parquet"), VALUES) for i in range(len(sizes))
    )
    assert prompts == expected.to_pylist()
    for file in (folder / "prompts").iterdir():
        assert pq.read_metadata(file).num_rows <= max(6, rows)


def test_shards_are_reproducible_and_never_rewritten(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [7, 3])
    shards(tmp_path, 12).write(100)
    files = sorted((tmp_path / "prompts").iterdir())
    assert [file.name for file in files] == [
        *(f"s0.{i:05}.parquet" for i in range(4)), "s1.00000.parquet", "s1.00001.parquet",
    ]  # fmt: skip
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[2].unlink()
    again = shards(tmp_path, 12)
    assert again.rows - again.rows_written == 12
    assert again.write(1) == 12
    after = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert [data for data, _ in before] == [data for data, _ in after]
    assert [time for _, time in before][:2] == [time for _, time in after][:2]


def test_changed_seeds_or_values_are_refused_and_copied_seeds_are_not(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [7])
    shards(tmp_path, 12).write(24)
    seeds(tmp_path / "in", [7])  # written again: another time of change
    assert shards(tmp_path, 12).rows_written == 24
    seeds(tmp_path / "in", [7, 2])
    assert shards(tmp_path, 12).rows == 54
    for values, rows, message in (
        ({"style": ["brief"]}, 12, r"synthesize.expand: was \[\['style', .* now \[\['style'"),
        (None, 6, r"output.rows_per_part: was 12, is now 6"),
    ):
        with pytest.raises(OutputError, match=message):
            shards(tmp_path, rows, values)
    pq.write_table(pa.table({"seed": list("abcdefg")}), tmp_path / "in/s0.parquet")
    with pytest.raises(OutputError, match=r"s0.parquet has other rows"):
        shards(tmp_path, 12)
    (tmp_path / "in/s0.parquet").unlink()
    with pytest.raises(OutputError, match=r"has s0.00000.parquet, which no seeds"):
        shards(tmp_path, 12)


def test_only_the_chosen_seeds_are_expanded_and_others_are_refused_later(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [3, 3])
    chosen = shards(tmp_path, 12, where="seed LIKE '%-1'")
    assert chosen.rows == 2 * len(combinations(VALUES))
    chosen.write(chosen.rows)
    table = pq.read_table(chosen.folder)
    assert set(table["seed"].to_pylist()) == {"0-1", "1-1"}
    assert sorted(table["source_row"].to_pylist()) == [
        f"s{file}.parquet:1:{number}"
        for file in range(2)
        for number in range(len(combinations(VALUES)))
    ]
    shards(tmp_path, 12, where="seed LIKE '%-1'")
    with pytest.raises(OutputError, match=r"input.where: was \"seed LIKE '%-1'\", is now None"):
        shards(tmp_path, 12)


def expanding(folder: Path, path: str, **section: Any) -> tuple[PromptShards, list[dict[str, Any]]]:
    """The prompts of a job, all of them written, and what its run reads."""
    job = config(
        {"expand": {"style": ["brief", "full"]}},
        input={"path": path, **section},
        output={"path": str(folder / "out")},
        prompt={"template": "{prompt}, {style}"},
    )
    prompts = _prompt_shards(job, None, False)
    prompts.write(prompts.rows)
    read = find_input(job.run).shards
    return prompts, [row for shard in read for row in pq.read_table(shard.path).to_pylist()]


def test_seeds_are_read_as_the_input_of_a_run_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("prompt,level\np,1\nq,2\n")
    (tmp_path / "in/b.csv").write_text("prompt,level\nr,3\n")
    (tmp_path / "list.txt").write_text("a.csv\n")
    path = str(tmp_path / "in")
    section = {
        "files": str(tmp_path / "list.txt"),
        "types": {"level": "int64"},
        "where": "level > 1",
    }
    for _ in range(2):  # the second time there are the prompts of the first
        _, rows = expanding(tmp_path, path, **section)
        assert [(row["prompt"], row["level"], row["style"]) for row in rows] == [
            ("q", 2, "brief"), ("q", 2, "full"),
        ]  # fmt: skip
    with pytest.raises(OutputError, match=r"input.types: was {'level': 'int64'}, is now None"):
        expanding(tmp_path, path, **{**section, "types": {}, "where": "level > '1'"})
    assert expanding(tmp_path, path, **section)[1] == rows


def test_only_the_split_that_is_asked_for_becomes_prompts(tmp_path: Path, hub: Hub) -> None:
    line = '{{"prompt": "{}"}}\n'
    first = hub.add("org/sums", {
        "train.jsonl": line.format("train").encode(), "test.jsonl": line.format("test").encode(),
    })  # fmt: skip
    path = "hf://datasets/org/sums"
    with pytest.raises(InputError, match=r"has the splits test, train; choose"):
        expanding(tmp_path, path)
    _, rows = expanding(tmp_path, path, split="train")
    assert [row["prompt"] for row in rows] == ["train", "train"]
    second = hub.add("org/sums", {"train.jsonl": line.format("other").encode()})
    assert expanding(tmp_path, path, split="train")[1] == rows
    with pytest.raises(OutputError, match=rf"commit {second}, and the run began with {first}"):
        expanding(tmp_path, f"{path}@{second}", split="train")


def test_traces_of_a_run_are_not_copied_as_seeds(tmp_path: Path) -> None:
    output = write_output(tmp_path, [{"answer": "1"}])
    (tmp_path / "in").symlink_to(output)
    with pytest.raises(
        InputError, match=r"is the output of a run; synthesize.expand, accepted and"
    ):
        shards(tmp_path, 12)


def test_seeds_that_cannot_be_expanded_are_refused(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [3])
    with pytest.raises(InputError, match=r"expand has seed, and the input has a column"):
        shards(tmp_path, 12, {"seed": ["x"]})
    seeds(tmp_path / "in", [0])
    with pytest.raises(InputError, match=r"have no rows"):
        shards(tmp_path, 12)


# Acceptance

GOOD: dict[str, Any] = {
    "state": "finished", "correct": None, "agreement": 0.5, "parsed": "1/2", "vote": "0.5",
    "prompt_tokens": 10, "think_tokens": 20, "answer_tokens": 30,
}  # fmt: skip


@pytest.mark.parametrize(
    ("trace", "rules", "reason"),
    [
        ({}, AcceptanceRules(), None),
        ({"state": "rescued"}, AcceptanceRules(), "state"),
        ({"state": "rescued"}, AcceptanceRules(rescued=True), None),
        ({"state": "unparsed", "correct": False}, AcceptanceRules(rescued=True), "state"),
        ({"correct": True}, AcceptanceRules(), None),
        ({"correct": False}, AcceptanceRules(), "wrong"),
        ({}, AcceptanceRules(min_agreement=0.5), None),  # 1/2 is 0.5
        ({}, AcceptanceRules(min_agreement=0.6), "disagrees"),
        (
            {"agreement": 0.6000000238418579},
            AcceptanceRules(min_agreement=0.6),
            None,
        ),  # as float32 has it
        ({"vote": "3"}, AcceptanceRules(min_agreement=0.5), "disagrees"),
        (
            {"correct": True, "vote": "3"},
            AcceptanceRules(min_agreement=1),
            None,
        ),  # the reference decides
        ({}, AcceptanceRules(max_tokens=60, min_tokens=60), None),
        ({}, AcceptanceRules(max_tokens=59), "too_long"),
        ({}, AcceptanceRules(min_tokens=61), "too_short"),
    ],
)
def test_sample_is_rejected_for_the_first_reason_that_applies(
    trace: dict[str, Any], rules: AcceptanceRules, reason: str | None
) -> None:
    sample = {**GOOD, **trace}
    assert (rejection(sample, rules, Boxed()) or selection(sample, rules, None)) == reason


def test_near_duplicates_have_the_same_prompt_and_similar_text() -> None:
    text = " ".join(f"step {i} gives {i * i};" for i in range(60))
    index = NearDuplicates(0.8)
    assert index.find_or_add("a:0:0", "What  is it?", text) is None
    assert index.find_or_add("a:0:1", "What is it?", text.replace("step 7 ", "then 7 ")) == "a:0:0"
    assert index.find_or_add("a:0:2", "What is it?", text[: len(text) // 2]) is None
    assert index.find_or_add("a:1:0", "What is that?", text) is None
    assert index.find_or_add("a:1:1", "What is that?", text) == "a:1:0"
    assert index.find_or_add("a:2:0", "p", "") is None
    assert index.find_or_add("a:2:1", "p", "") == "a:2:0"
    assert index.find_or_add("a:3:0", "p", "我们来一步一步地算这个题目") is None
    assert index.find_or_add("a:3:1", "p", "我们来一步一步地算这个题目") == "a:3:0"
    assert index.find_or_add("a:3:2", "p", "完全不同的另外一句话在这里") is None


# Chats


def prepared(columns: PromptColumns, rows: list[dict[str, Any]], **prompt: Any) -> Any:
    config = parse_config(
        {"input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "-"}, "prompt": prompt}
    )
    return SimpleNamespace(
        config=config, columns=columns, prompts=pa.Table.from_pylist(rows).schema
    )


TRACE = {"think": "Hm.", "answer": "Yes.", "sample_id": "a:0:0"}


def test_chat_has_the_turns_the_model_was_given_and_its_own() -> None:
    run = prepared(
        PromptColumns(template="Is {x}?"), [{"x": 1}], system="Be good.", suffix="Think."
    )
    chat = conversation({"x": 1, **TRACE}, NAMES, run, with_thinking=True)
    assert chat == {
        "messages": [
            {"role": "system", "content": "Be good."},
            {"role": "user", "content": "Is 1?\nThink."},
            {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."},
        ],
        "id": "a:0:0",
    }
    bare = conversation({"x": 1, **TRACE}, NAMES, run, with_thinking=False)
    assert bare["messages"][-1] == {"role": "assistant", "content": "Yes."}
    assert model_turn(None, "Yes.", with_thinking=True) == "Yes."
    assert pa.Table.from_pylist([chat], chat_schema(run)).to_pylist() == [chat]


def test_earlier_turns_tool_calls_and_tools_are_kept() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": [1]}}}]
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": "q", "tool_calls": None},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "r", "tool_calls": None},
            ],
            "tools": '[{"type": "function", "function": {"name": "f"}}]',
        }
    ]
    run = prepared(PromptColumns(messages="messages", tools="tools"), rows)
    row = pa.Table.from_pylist(rows).to_pylist()[0]
    chat = conversation({**row, **TRACE}, NAMES, run, with_thinking=False)
    [table] = pa.Table.from_pylist([chat], chat_schema(run)).to_pylist()
    user, called, result, last = table["messages"]
    assert (user["content"], result["content"], last["content"]) == ("q", "r", "Yes.")
    assert called["content"] is None
    assert called["tool_calls"] == [
        {"id": None, "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    ]
    assert json.loads(table["tools"])[0]["function"]["name"] == "f"
    texts = [{"messages": json.dumps(rows[0]["messages"]), "tools": rows[0]["tools"]}]
    run = prepared(PromptColumns(messages="messages", tools="tools"), texts)
    chat = conversation({**texts[0], **TRACE}, NAMES, run, with_thinking=False)
    [from_text] = pa.Table.from_pylist([chat], chat_schema(run)).to_pylist()
    kept = [
        {key: value for key, value in m.items() if value is not None} for m in from_text["messages"]
    ]
    assert kept == [
        {key: value for key, value in m.items() if value is not None} for m in table["messages"]
    ]


def test_a_sharegpt_conversation_is_exported_as_role_and_content() -> None:
    rows = [{"messages": [{"from": "human", "value": "q"}]}]
    run = prepared(PromptColumns(messages="messages"), rows)
    chat = conversation({**rows[0], **TRACE}, NAMES, run, with_thinking=False)
    [table] = pa.Table.from_pylist([chat], chat_schema(run)).to_pylist()
    assert table["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Yes."},
    ]


# The card


def test_card_describes_the_data_and_how_it_was_made() -> None:
    counts = SampleCounts(
        10, 20, 5, Counter(wrong=9, duplicate=6), Counter(finished=20), 100, 50, 7
    )
    settings = {
        "model.path": "Qwen/QwQ-32B", "model.revision": "abc", "model.chat_template": "12ab",
        "sampling.n": 2, "sampling.agree": None,
    }  # fmt: skip
    section: dict[str, Any] = {
        **dict.fromkeys(RULES), "license": None, "source": None, "export": "accepted",
        "rescued": False, "max_tokens": 4096, "near_duplicate": 0.8, "require": {},
    }  # fmt: skip
    retry = Pass(1, 0, 2, ("truncated",), (("sampling.max_tokens", 99),))
    rows = Counter({(variant, "train"): 5 for variant in ("thinking", "answers")})
    exported = Exported(rows, Counter({"thinking": 1500, "answers-jsonl": 2_500_000}))
    text = card(counts, exported, Provenance(settings, {"ray": "2.60"}, [retry]), section)
    _, front, body = text.split("---\n", 2)
    head = yaml.safe_load(front)
    assert head["license"] == "unknown"
    assert head["size_categories"] == ["n<1K"]
    assert [entry["config_name"] for entry in head["configs"]] == ["thinking", "answers"]
    for line in (
        "5 conversations, written by Qwen/QwQ-32B (revision abc)", f"License: {UNKNOWN}",
        "20 samples of 10 prompts were drawn, and 5 accepted", "| 9 | `wrong`", "1.5 kB", "2.5 MB",
        "100 thinking, 50 answers, 7 in abandoned attempts", "`max_tokens` 4096", '`chat_template` "12ab"',
        "- sampling: `n` 2\n", "retry 1 of traces that ended truncated: `sampling.max_tokens` 99",
        "ray 2.60",
    ):  # fmt: skip
        assert line in body
    assert yaml.safe_load(card(
        counts, Exported(rows), Provenance(settings, {}), {**section, "license": "mit: mine"}
    ).split("---\n")[1])["license"] == "mit: mine"  # fmt: skip
    entry = json.loads(dataset_info(exported))["synthetic_thinking"]
    assert entry["file_name"] == "thinking-jsonl"
    assert entry["columns"] == {"messages": "messages"}


# The config


def config(synthesize: dict[str, Any], **sections: Any) -> Synthesis:
    base = {"input": {"path": "-"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"}}
    return parse_as(Synthesis, {**base, **sections, "synthesize": synthesize}, "config")


@pytest.mark.parametrize(
    ("synthesize", "template", "message"),
    [
        ({"expand": {"x": []}}, "{x}", "x has no values"),
        ({"expand": {"x": ["a", "a"]}}, "{x}", "a value twice"),
        ({"expand": {"x": ["a", 1]}}, "{x}", "all whole numbers"),
        ({"expand": {"x": [True, False]}}, "{x}", "put quotes around yes"),
        ({"expand": {"x": [None]}}, "{x}", "must be all text"),
        ({"expand": {"x": "a"}}, "{x}", "synthesize.expand.x"),
        ({"expand": {"x": ["a"]}}, "{y}", "expand has x, which prompt.template does not use"),
        ({"expand": {"x": ["a"]}}, None, "expand has x, which prompt.template does not use"),
        ({"min_agreement": 0.5}, None, "needs an answer.format"),
        ({"near_duplicates": 0.5}, None, "did you mean near_duplicate?"),
        ({"accepted": 0}, None, "synthesize.accepted"),
    ],
)
def test_config_without_a_sensible_meaning_is_refused(
    synthesize: dict[str, Any], template: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        config(synthesize, prompt={"template": template})


QUESTION = (
    "How many of the 31 sheep that Ada sold in June were black when 7 of the others were white?"
)
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "24"}]


@pytest.mark.parametrize(
    ("row", "section"),
    [
        (
            {"instruction": "Answer.", "input": QUESTION},
            {"prompt_column": "instruction", "context_column": "input"},
        ),
        ({"messages": TURNS}, {"final_answer": "drop"}),
    ],
)
def test_benchmark_questions_are_looked_for_in_what_the_model_is_given(
    tmp_path: Path, row: dict[str, Any], section: dict[str, Any]
) -> None:
    other = json.loads(json.dumps(row).replace(QUESTION, "What is 2 + 2?"))
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist([row, other]), tmp_path / "in/a.parquet")
    job = config(
        {}, input={"path": str(tmp_path / "in"), **section}, output={"path": str(tmp_path / "out")}
    )
    prompts = _prompt_shards(job, Benchmarks([("aime:3", QUESTION)]), False)
    assert prompts.contaminated == ["aime:3"]
    assert pq.read_table(prompts.folder).to_pylist() == [other]


def test_settings_stay_text_in_the_card() -> None:
    made_by = {
        "model.path": "a*b*/<b>",
        "model.revision": None,
        "prompt.template": "<img> |{x}| </think>\n",
    }
    section = {"license": None, "source": None, "export": "all", **dict.fromkeys(RULES)}
    text = card(SampleCounts(), Exported(), Provenance(made_by, {}), section)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "written by a*b*/&lt;b&gt;." in html
    assert "&quot;&lt;img&gt; |{x}| &lt;/think&gt;\\n&quot;" in html
    assert "<em>" not in html
