"""jobs.synthesize without an engine: acceptance, chats, their card and the config."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from markdown_it import MarkdownIt

from jobs.accept import AcceptanceRules, SampleCounts, rejection, selection
from jobs.card import RULES, UNKNOWN, Provenance, card, dataset_info
from jobs.chats import chat_schema, conversation, model_turn
from jobs.contamination import Benchmarks
from jobs.export import Exported
from jobs.near_duplicates import NearDuplicates
from jobs.synthesize import _prompt_shards
from jobs.synthesize_config import Synthesis
from pipeline.answers.boxed import Boxed
from pipeline.config.load import parse_as, parse_config
from pipeline.errors import ConfigError
from pipeline.planning import Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.schema import TRACE_COLUMNS

NAMES = {name: name for name in TRACE_COLUMNS}


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


ENGINE = {"kind": "vllm", "device": "gpu", "versions": {"ray": "2.60"}}


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
    text = card(counts, exported, Provenance(settings, [ENGINE], [retry]), section)
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
        "- engine: vllm, device gpu; ray 2.60\n",
    ):  # fmt: skip
        assert line in body
    assert yaml.safe_load(card(
        counts, Exported(rows), Provenance(settings, []), {**section, "license": "mit: mine"}
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
    text = card(SampleCounts(), Exported(), Provenance(made_by, []), section)
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert "written by a*b*/&lt;b&gt;." in html
    assert "&quot;&lt;img&gt; |{x}| &lt;/think&gt;\\n&quot;" in html
    assert "<em>" not in html
