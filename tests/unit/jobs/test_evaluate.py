"""Qwen's evaluation: the mean over samples, an interval that holds, guesses only where asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.evaluate import interval, lines, qwen_answer, score
from pipeline.cli import main
from pipeline.errors import OutputError
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.schema import ASKED_FIELDS, ORIGIN_FIELDS, TRACE_COLUMNS, output_schema
from pipeline.storage import Storage

PROMPTS = pa.schema([("right", pa.string())])
ANSWERS = [  # two problems of three samples: reference, state, text behind the thinking
    ("1/2", "finished", r"So \boxed{0.5}."),
    ("1/2", "truncated", r"It is \boxed{\frac12}"),
    ("1/2", "finished", r"It is \boxed{2}"),
    ("7", "rescued", r"\boxed{7}"),
    ("7", "unparsed", "The answer is 7."),
    ("7", "truncated", None),
]  # fmt: skip


Row = tuple[str | None, str, str | None]


def write_run(
    folder: Path,
    answers: list[Row],
    samples: int,
    asked: Sequence[str | None] = (),
    **settings: str,
) -> str:
    """An output of ``answers``, so many samples to a row; its location.

    ``asked``: what each trace said that was asked once more for its answer.
    """
    optional = ASKED_FIELDS if asked else ()
    schema = output_schema(PROMPTS, {}, raw_text=True, optional=optional)
    rows_in_all = len(answers) // samples
    ledger, ref = Ledger(Storage(str(folder))), PartRef("a.00000.parquet", 0, rows_in_all)
    run = {name.replace("__", "."): value for name, value in settings.items()}
    ledger.open_run({"sampling.n": samples, **run}, {})
    rows: list[dict[str, Any]] = [
        {"right": right, "state": state, "answer": text, "sample": i % samples, "seed": 1,
         "raw": f"hm\n</think>\n\n{text}" if text else r"it may be \boxed{7} but",
         "prompt_tokens": 4, "think_tokens": 3, "answer_tokens": 2, "carried_tokens": 0,
         "loop_retries": 0, "wasted_tokens": 0, "attempt": 0}
        for i, (right, state, text) in enumerate(answers)
    ]  # fmt: skip
    for row, said in zip(rows, asked, strict=False):
        row |= {"parsed": said, "asked_tokens": 0 if said is None else 5}
    block, numbers = pa.Table.from_pylist(rows, schema), list(range(samples))
    origins = [
        (str(ref), i // samples, numbers, i // samples, i // samples + 1)
        for i in range(len(answers))
    ]
    for column, values in zip(ORIGIN_FIELDS, zip(*origins, strict=True), strict=True):
        block = block.append_column(column, pa.array(values, column.type))
    ledger.write_block(block)
    columns = (*TRACE_COLUMNS, *(field.name for field in optional))
    metadata = {"columns": {n: n for n in columns}, "settings": {}, "versions": {}}
    ledger.commit(ref, Pass(0, 0, samples), schema, metadata)
    return str(folder)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write_run(tmp_path / "out", list(ANSWERS), 3)


def test_choices_are_scored_by_their_letter(tmp_path: Path) -> None:
    answers: list[Row] = [
        ("0", "finished", 'So "answer": "A"'),
        ("1", "finished", "The answer is (B)."),
        ("2", "finished", r"\boxed{D}"),
        ("3", "unparsed", "One of them."),
    ]
    output = write_run(tmp_path / "out", answers, 1, answer__format="choice")
    found = score(output, "right", as_qwen=False)
    assert found.problems == [[True], [True], [False], [False]]
    assert next(lines(found)) == "references are read as indices 0..3 (0 = A)"


def test_answers_that_were_asked_for_once_more_count_but_not_as_qwen(tmp_path: Path) -> None:
    answers: list[Row] = [("7", "finished", "It is seven."), ("8", "finished", r"\boxed{8}")]
    output = write_run(tmp_path / "out", answers, 1, ["7", None], answer__format="boxed")
    assert score(output, "right", as_qwen=False).means == [1, 1]
    assert score(output, "right", as_qwen=True).means == [0, 1]


def test_what_can_not_be_compared_is_counted_and_not_wrong(tmp_path: Path) -> None:
    prose = "So it is shown, as was to be. " * 50
    answers: list[Row] = [
        ("7", "finished", r"\boxed{7}"),
        (None, "finished", r"\boxed{7}"),
        ("proof", "finished", r"\boxed{7}"),
        (prose, "finished", r"\boxed{7}"),
        ("2", "finished", r"\boxed{2^{99999}/2^{99998}}"),
        ("2", "finished", r"\boxed{3}"),
    ]
    found = score(write_run(tmp_path / "out", answers, 1), "right", as_qwen=False)
    assert found.problems == [[True], [None], [None], [None], [None], [False]]
    assert found.means == [1.0, 0.0]
    text = "\n".join(lines(found))
    assert "not scored: 2 traces without a reference\n" in text
    assert "not scored: 1 traces with a reference that can't be read\n" in text
    assert "not scored: 1 traces with a comparison that took too long" in text
    assert "| 2 | 6 | 50.0% |" in text


def test_as_qwen_what_takes_too_long_to_compare_is_wrong(tmp_path: Path) -> None:
    """The text behind "the answer is" is read to its end, however long."""
    answers: list[Row] = [
        ("7", "finished", "The answer is " + "one of those that I have named. " * 100),
        ("7", "finished", "The answer is 7"),
        (None, "finished", "The answer is 7"),
    ]
    found = score(write_run(tmp_path / "out", answers, 1), "right", as_qwen=True)
    assert found.problems == [[False], [True], [None]]


@pytest.mark.parametrize(
    ("right", "message"),
    [([None, "proof"], "no row of .* that can be read"), (["so " * 999] * 2, "most of it can't")],
)
def test_column_without_references_is_refused(
    tmp_path: Path, right: list[str | None], message: str
) -> None:
    output = write_run(tmp_path / "out", [(each, "finished", "7") for each in right], 1)
    with pytest.raises(OutputError, match=message):
        score(output, "right", as_qwen=False)


def test_what_the_run_has_written_is_no_reference(output: str) -> None:
    """Each answer would be right."""
    for column in ("answer", "parsed", "vote"):
        with pytest.raises(OutputError, match=f"{column}, which the run itself has written; name"):
            score(output, column, as_qwen=False)


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
        ("x\n</think>\n\nI checked that my answer is correct: 12", "12"),
        ("x\n</think>\n\nThe answer is\n  $12$.", "$12$"),
        ("x\n</think>\n\nFinal answer is: 5/", "5"),
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
