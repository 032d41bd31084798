"""Judging: the row that votes make, both orders, and the files of judged rows."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.judge import JudgeJob, write
from jobs.judge_rows import ballots, judged
from jobs.row_job import ROWS
from pipeline.errors import IncompleteRunError
from tests.conftest import write_shards
from tests.outputs import finish
from tests.unit.jobs.judge_traces import NAMES, PAIRS, SCORES, VERDICTS, job_of, said, traces_of


def rows_of(
    judge: dict[str, Any],
    rows: list[list[str | None]],
    swapped: list[list[str | None]] | None = None,
    **columns: list[Any],
) -> list[dict[str, Any]]:
    """The judged rows; ``swapped``: what the samples say with B first."""
    others = None
    if swapped is not None:
        others = list(ballots(traces_of(judge, swapped), NAMES, swapped=True))
    table = judged(job_of(judge), traces_of(judge, rows, **columns), NAMES, others)
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def test_a_row_has_the_vote_and_the_reason_and_thinking_of_the_first_that_says_so() -> None:
    votes: list[list[str | None]] = [
        ["wrong", "right", "right", None], [None, None], ["wrong"], ["right", "right"],
    ]  # fmt: skip
    judge = {**VERDICTS, "gold_column": "gold", "review_below": 0.5}
    gold = ["right", "right", "right", "right "]
    rows = rows_of(judge, votes, gold=gold)
    assert [row["verdict"] for row in rows] == ["right", None, "wrong", "right"]
    assert [row["reason"] for row in rows] == ["reason 1", None, "reason 0", "reason 0"]
    assert [row["judge_think"] for row in rows] == ["thought 1", *["thought 0"] * 3]
    assert [row["judge_agreement"] for row in rows] == [0.5, 0, 1, 1]
    assert [row["judge_samples"] for row in rows] == [4, 2, 1, 2]
    assert [row["judge_state"] for row in rows] == ["finished", "unparsed", *["finished"] * 2]
    assert [row["judge_review"] for row in rows] == [None, "unparsed", "differs from gold", None]
    assert rows[0].keys() >= {"prompt", "answer", "other", "gold"}
    assert not {"judge_parsed", "judge_vote", "judge_answer"} & rows[0].keys()


def test_no_rows_make_an_empty_table_with_all_columns() -> None:
    empty = traces_of(SCORES, [["1"]]).slice(0, 0)
    table = judged(job_of(SCORES), empty, NAMES)
    assert table.num_rows == 0
    assert {"score", "score_spread", "judge_think"} < set(table.column_names)


def test_a_score_has_the_reason_of_its_sample_and_the_spread_of_all() -> None:
    rows = rows_of(SCORES, [["1", "4", None, "5"], ["3", "3"], [None]])
    assert [row["score"] for row in rows] == [4, 3, None]
    assert [row["reason"] for row in rows] == ["reason 1", "reason 0", None]
    assert [row["score_spread"] for row in rows] == [4, 0, None]
    assert [row["judge_review"] for row in rows] == ["low agreement", None, "unparsed"]


@pytest.mark.parametrize("answer", [None, float("nan")])
def test_a_row_without_an_answer_is_not_judged_and_nobody_need_look(answer: object) -> None:
    rows = rows_of({**VERDICTS, "gold_column": "gold"}, [[None]], answer=[answer], gold=["right"])
    [row] = rows
    assert (row["verdict"], row["reason"], row["judge_review"]) == (None, "no answer", None)
    [row] = rows_of(PAIRS, [[None]], [[None]], other=[answer])
    assert (row["better"], row["reason"], row["consistent"]) == (None, "no answer", None)


@pytest.mark.parametrize(
    ("straight", "swapped", "expected"),
    [
        # value, consistent, with A first, with B first, agreement, review
        (["A", "A"], ["B", "B"], ("A", True, "A", "A", 1, None)),
        (["B"], ["A"], ("B", True, "B", "B", 1, None)),
        (["tie"], ["tie"], ("tie", True, "tie", "tie", 1, None)),
        (["A", "A"], ["A", "A"], ("tie", False, "A", "B", 0, "orders differ")),
        (["B"], ["B"], ("tie", False, "B", "A", 0, "orders differ")),
        (["A"], ["tie"], ("tie", False, "A", "tie", 0.5, "orders differ")),
        (["A", "B", "A"], ["B"], ("A", True, "A", "A", 0.75, "low agreement")),
        (["A"], [None], (None, None, "A", None, 0, "unparsed")),
        ([None], ["A"], (None, None, None, "B", 0, "unparsed")),
    ],
)
def test_two_answers_are_better_or_worse_only_if_both_orders_say_so(
    straight: list[str | None], swapped: list[str | None], expected: tuple[Any, ...]
) -> None:
    [row] = rows_of(PAIRS, [straight], [swapped])
    columns = ("better", "consistent", "better_a_first", "better_b_first", "judge_agreement",
               "judge_review")  # fmt: skip
    assert tuple(row[name] for name in columns) == expected
    assert row["judge_samples"] == len(straight) + len(swapped)
    if expected[1] is None:
        assert (row["reason"], row["judge_state"]) == (None, "unparsed")
    else:
        assert row["reason"] == ("reason 0" if expected[1] else "orders differ")


@pytest.mark.parametrize("rows", [ROWS - 1, ROWS, ROWS + 1])
@pytest.mark.parametrize("judge", [VERDICTS, PAIRS], ids=["verdicts", "pairs"])
def test_rows_of_a_part_are_judged_once_at_the_borders_of_slices(
    tmp_path: Path, rows: int, judge: dict[str, Any]
) -> None:
    job = _on_disk(tmp_path, judge, rows)
    section = job.judge
    value, flipped = ("right", "right") if judge is VERDICTS else ("A", "B")
    for run, says in zip(job.runs, (value, flipped), strict=False):

        def trace(row: int, sample: int, says: str = says) -> dict[str, Any]:
            if not sample:
                return {"parsed": None, "state": "unparsed"}
            return {"parsed": says, "answer": said(section, says, f"{row}"), "think": f"{sample}"}

        finish(run, trace)
    counts = write(job)
    assert counts.rows == counts.values[value] == rows
    found = pq.read_table(tmp_path / "out/judged")
    assert found["id"].to_pylist() == list(range(rows))
    assert found["reason"].to_pylist() == [str(row) for row in range(rows)]
    assert set(found["judge_think"].to_pylist()) == {"1"}
    assert set(found["judge_agreement"].to_pylist()) == {0.666667}
    assert pq.read_table(tmp_path / "out/review.parquet").num_rows == rows


def test_an_order_that_lacks_a_file_is_not_taken_for_judged(tmp_path: Path) -> None:
    job = _on_disk(tmp_path, PAIRS, 3)
    for run in job.runs:
        finish(run)
    write_shards(tmp_path / "in", [3, 2])
    finish(job.run)
    with pytest.raises(IncompleteRunError, match=r"shard-00001.*has grown meanwhile; run the same"):
        write(job)
    assert not (tmp_path / "out/judged").exists()


def _on_disk(folder: Path, judge: dict[str, Any], rows: int) -> JudgeJob:
    write_shards(folder / "in", [rows])
    columns = {"question_column": "prompt", "answer_column": "prompt"}
    columns |= {"against_column": "id"} if judge is PAIRS else {}
    return job_of(
        {**judge, **columns}, sampling={"n": 3}, input={"path": str(folder / "in")},
        output={"path": str(folder / "out")},
    )  # fmt: skip
