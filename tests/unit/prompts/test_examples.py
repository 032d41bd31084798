"""Few-shot examples: turns of a file's rows, in the prompt, in its length, in the fingerprint."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.execution.prepare import prepare
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.examples import digest_of, with_examples
from pipeline.prompts.render import PromptRenderer, render_row
from pipeline.prompts.tokenizer import load_tokenizer
from tests.conftest import MakeConfig, write_shards

PROMPT = PromptColumns("prompt")
ROWS = [{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "2 + 2?", "answer": "4", "id": 7}]


def written(tmp_path: Path, rows: list[Any], name: str = "few.jsonl") -> str:
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n\n".join(map(json.dumps, rows)))
    return str(path)


def test_columns_that_a_later_stage_carries_have_the_names_of_the_files(tmp_path: Path) -> None:
    carried = PromptColumns(template="Check {stage1_answer}.")
    path = written(tmp_path, [{"answer": "2", "verdict": "right"}])
    columns = with_examples(carried, path, "verdict", None, {"answer": "stage1_answer"})
    assert [turn["content"] for turn in columns.examples] == ["Check 2.", "right"]


@pytest.mark.parametrize("name", ["few.jsonl", "few.parquet"])
def test_rows_become_turns_before_the_prompt(tmp_path: Path, name: str) -> None:
    columns = with_examples(PROMPT, written(tmp_path, ROWS, name), "answer", "Be short.")
    assert columns.examples == (
        {"role": "user", "content": "1 + 1?\nBe short."}, {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2?\nBe short."}, {"role": "assistant", "content": "4"},
    )  # fmt: skip
    renderer = PromptRenderer(load_tokenizer("qwq-nano"))
    text = render_row(renderer, {"prompt": "3 + 3?"}, columns, "You add.", "Be short.").text
    places = [text.index(part) for part in ("You add.", "1 + 1?", "4", "3 + 3?")]
    assert places == sorted(places)
    assert text.count("Be short.") == 3
    without = render_row(renderer, {"prompt": "3 + 3?"}, PROMPT, "You add.", "Be short.")
    assert len(without.text) < len(text)


def test_examples_of_a_template_fill_it(tmp_path: Path) -> None:
    path = written(tmp_path, [{"a": 1, "said": "one"}])
    columns = with_examples(PromptColumns(template="Spell {a}."), path, "said", None)
    assert [turn["content"] for turn in columns.examples] == ["Spell 1.", "one"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no rows"),
        ([ROWS[0], {"prompt": "x"}], r"row 1 \(from 0\): there is no column answer, only prompt"),
        ([{"answer": "x"}], r"row 0 \(from 0\): there is no column prompt, only answer"),
        (
            [{"prompt": "x", "answer": " "}],
            "column answer must hold the text of the answer, not ' '",
        ),
        ([{"prompt": "x", "answer": 4}], "column answer must hold the text of the answer, not 4"),
        ([{"prompt": None, "answer": "4"}], "prompt must be text, not null"),
        ([7], r"few.jsonl:1 is not a JSON object"),
    ],
)
def test_rows_that_are_no_examples_are_refused_by_number(
    tmp_path: Path, rows: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        with_examples(PROMPT, written(tmp_path, rows), "answer", None)


def test_files_that_hold_no_examples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        with_examples(PROMPT, str(tmp_path / "none.jsonl"), "answer", None)
    (tmp_path / "a.csv").write_text("prompt,answer")
    with pytest.raises(InputError, match=r"a.csv is no Parquet file, nor a .jsonl"):
        with_examples(PROMPT, str(tmp_path / "a.csv"), "answer", None)
    (tmp_path / "b.jsonl").write_text("{}\n{")
    with pytest.raises(InputError, match=r"b.jsonl:2 is not JSON"):
        with_examples(PROMPT, str(tmp_path / "b.jsonl"), "answer", None)
    own = [
        {
            "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
            "answer": "a",
        }
    ]
    with pytest.raises(InputError, match="an example can't have a system turn"):
        with_examples(PromptColumns(messages="messages"), written(tmp_path, own), "answer", None)


def test_examples_identify_the_run(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    plain = prepare(make_config())
    assert "prompt.examples" not in plain.settings
    prompt = {"examples": {"path": written(tmp_path, ROWS)}}
    first = prepare(make_config(prompt=prompt))
    assert first.settings["prompt.examples"] == digest_of(first.columns.examples)
    written(tmp_path, ROWS[:1])
    second = prepare(make_config(prompt=prompt))
    assert second.settings["prompt.examples"] != first.settings["prompt.examples"]
    assert second.settings.keys() == first.settings.keys() == {*plain.settings, "prompt.examples"}
