"""Qwen's evaluation: the mean over samples, an interval that holds, guesses only where asked for."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.evaluate import interval, lines, qwen_answer, score
from pipeline.cli import main
from pipeline.errors import OutputError
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.schema import ORIGIN_FIELDS, TRACE_COLUMNS, output_schema
from pipeline.storage import Storage

SCHEMA = output_schema(pa.schema([("right", pa.string())]), {}, raw_text=True)
ANSWERS = [  # two problems of three samples: reference, state, text behind the thinking
    ("1/2", "finished", r"So \boxed{0.5}."),
    ("1/2", "truncated", r"It is \boxed{\frac12}"),
    ("1/2", "finished", r"It is \boxed{2}"),
    ("7", "rescued", r"\boxed{7}"),
    ("7", "unparsed", "The answer is 7."),
    ("7", "truncated", None),
]  # fmt: skip


@pytest.fixture
def output(tmp_path: Path) -> str:
    ledger, ref = Ledger(Storage(str(tmp_path / "out"))), PartRef("a.00000.parquet", 0, 2)
    ledger.open_run({"sampling.n": 3}, {})
    rows: list[dict[str, Any]] = [
        {"right": right, "state": state, "answer": text, "sample": i % 3, "seed": 1, "attempt": 0,
         "raw": f"hm\n</think>\n\n{text}" if text else r"it may be \boxed{7} but",
         "prompt_tokens": 4, "think_tokens": 3, "answer_tokens": 2, "carried_tokens": 0,
         "loop_retries": 0, "wasted_tokens": 0}
        for i, (right, state, text) in enumerate(ANSWERS)
    ]  # fmt: skip
    block = pa.Table.from_pylist(rows, SCHEMA)
    origins = [(str(ref), i // 3, [0, 1, 2], i // 3, i // 3 + 1) for i in range(6)]
    for column, values in zip(ORIGIN_FIELDS, zip(*origins, strict=True), strict=True):
        block = block.append_column(column, pa.array(values, column.type))
    ledger.write_block(block)
    metadata = {"columns": {n: n for n in TRACE_COLUMNS}, "settings": {}, "versions": {}}
    ledger.commit(ref, Pass(0, 0, 3), SCHEMA, metadata)
    return str(tmp_path / "out")


def test_only_boxed_answers_of_ended_traces_are_right(output: str) -> None:
    found = score(output, "right", as_qwen=False)
    assert found.problems == [[True, False, False], [True, False, False]]
    *_, row, states = lines(found)
    assert row.startswith("| 2 | 6 | 33.3% | 33.3% to 33.3% | 2 | 5 |")
    assert "2 finished" in states


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("is it 4\n</think>\n\nIt is \\boxed{3}.", "3"),
        ("maybe \\boxed{4}, or \\boxed{5} and no end", "5"),
        ("x\n</think>\n\nThe answer is 12.", "12"),
        ("x\n</think>\n\nSo 3 and 1,024 it is", "1024"),
        ("x\n</think>\nso \\boxed{7}", "7"),
        ("no idea", ""),
    ],
)
def test_answer_as_qwen_takes_it(raw: str, found: str) -> None:
    assert qwen_answer(raw) == found


def test_samples_that_were_drawn_until_they_agreed_are_not_scored(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path)))
    ledger.open_run({"sampling.n": 8, "sampling.agree": 3}, {})
    with pytest.raises(OutputError, match=r"until some agreed .* evaluate a run without"):
        score(str(tmp_path), "right", as_qwen=False)


def test_as_qwen_the_whole_text_and_guesses_count(output: str) -> None:
    assert score(output, "right", as_qwen=True).problems == [
        [True, True, False],
        [True, True, True],
    ]


def test_interval_holds_the_mean_and_shrinks() -> None:
    few, many = [0.0, 1.0] * 10, [0.0, 1.0] * 200
    for means in (few, many):
        low, high = interval(means)
        assert low < 0.5 < high
    assert interval(many)[1] - interval(many)[0] < interval(few)[1] - interval(few)[0]
    assert interval([1.0, 1.0]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{output}", "--reference", "gold"], "has no column gold"),
        (["{output}/none", "--reference", "right"], "is not the output of a run"),
    ],
)
def test_what_can_not_be_scored_is_one_message(
    output: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *(argument.format(output=output) for argument in arguments)])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
