"""A format from outside the package: configured by its path, used wherever a built-in one is."""

from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.answers.formats import answer_format
from pipeline.config.load import parse_config
from pipeline.errors import ConfigError
from pipeline.execution.sink import compared
from pipeline.output.manifest import run_settings
from pipeline.output.parts import write_part
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.think_format import THINK_TAGS
from pipeline.reasoning.trace import Trace, TraceMaker
from pipeline.schema import ROW_COLUMN, TRACE_COLUMNS, TRACE_FIELDS, output_schema

NAME = "tests.toy_format:LastNumber"
TOKENIZER = load_tokenizer("qwq-nano")
PROMPTS = pa.schema([("right", pa.int64())])
CONFIG: dict[str, Any] = {
    "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
    "answer": {"format": NAME, "reference_column": "right"}, "prompt": {"suffix": "number"},
}  # fmt: skip


def trace_of(answer: str, sample: int) -> Trace:
    progress = TraceProgress(finish_reason="stop")
    progress.report(TOKENIZER.encode(f"Hm 7\n</think>\n\n{answer}"))
    maker = TraceMaker(TOKENIZER, THINK_TAGS, answer_format(NAME), raw_text=False)
    return maker.trace(progress, [1], sample=sample, seed=0, attempt=0)


def test_config_names_it_and_its_suffix() -> None:
    config = parse_config(CONFIG)
    assert config.suffix_text == "End with a whole number."
    assert list(config.warnings) == []
    assert run_settings(config, PromptColumns("prompt"), "")["answer.format"] == NAME
    [warning] = parse_config({**CONFIG, "prompt": {}}).warnings
    assert warning.endswith("set prompt.suffix=number")


def test_it_has_no_schema_to_set() -> None:
    answer = {**CONFIG["answer"], "json_schema": {"type": "object"}}
    with pytest.raises(
        ConfigError, match=r"answer: json_schema needs format: json or sets, not tests\."
    ):
        parse_config({**CONFIG, "answer": answer})


def test_a_finished_part_has_what_it_parsed_compared_and_voted() -> None:
    config, names = parse_config(CONFIG), {name: name for name in TRACE_COLUMNS}
    answers = [["It is 042.", "So 42", "Or 3", "No idea"], ["8", "It is 9", "10"]]
    rows = [
        {**vars(trace_of(text, sample)), "right": 42, ROW_COLUMN: row}
        for row, texts in enumerate(answers)
        for sample, text in enumerate(texts)
    ]
    fields = pa.schema([*PROMPTS, *TRACE_FIELDS, pa.field(ROW_COLUMN, pa.int64())])
    block = compared(pa.Table.from_pylist(rows, fields), config.answer, names)
    metadata = {"columns": names, "settings": run_settings(config, PromptColumns("prompt"), "")}
    data = BytesIO()
    summary = write_part(data, [block], output_schema(PROMPTS, {}, raw_text=False), metadata)
    part = pq.read_table(data)
    assert part["parsed"].to_pylist() == ["042", "42", "3", None, "8", "9", "10"]
    assert part["correct"].to_pylist() == [True, True, False, False, False, False, False]
    assert part["vote"].to_pylist() == ["042"] * 4 + ["8"] * 3
    assert part["agreement"].to_pylist() == pytest.approx([1 / 2] * 4 + [1 / 3] * 3)
    assert summary["states"] == {"finished": 6, "unparsed": 1}
    assert summary["answers"] == {"right": 2, "wrong": 5}
