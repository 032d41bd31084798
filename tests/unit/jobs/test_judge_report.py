"""The report of a judge: shares, position bias, agreement with people."""

import re
from html import escape
from typing import Any

import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from sklearn.metrics import cohen_kappa_score

from jobs.agreement import MOST_SHOWN, agreement_lines
from jobs.judge_report import Counts, report_lines, wilson
from jobs.judge_rows import ballots, judged
from tests.unit.jobs.judge_traces import NAMES, PAIRS, SCORES, VERDICTS, job_of, traces_of


def report(
    judge: dict[str, Any],
    rows: list[list[str | None]],
    swapped: list[list[str | None]] | None = None,
    **columns: list[Any],
) -> list[str]:
    """The lines of the report on rows whose samples say these values."""
    others = None
    if swapped is not None:
        others = list(ballots(traces_of(judge, swapped), NAMES, swapped=True))
    job, counts = job_of(judge), Counts()
    counts.add(judged(job, traces_of(judge, rows, **columns), NAMES, others), job)
    return "\n".join(report_lines(counts, job)).split("\n")


def test_verdicts_are_counted_in_the_order_of_the_config_and_compared_with_people() -> None:
    lines = report(
        {**VERDICTS, "gold_column": "gold"},
        [["wrong"] * 2, ["wrong", "right", "right"], [None], [None], ["right"], ["right"]],
        answer=["a", "a", "a", None, "a", "a"],
        gold=["wrong", "wrong", "right", "right", None, "great"],
    )
    assert lines[0] == "# Judgements of 6 rows"
    assert lines[4:7] == [
        "| right | 3 | 50.0% |",
        "| wrong | 1 | 16.7% |",
        "| (none) | 2 | 33.3% |",
    ]
    assert "not judged: 1 rows without an answer" in lines
    assert "to review: 2 rows (1 low agreement, 1 unparsed)" in lines
    # Compared: right once of three. The row without an answer was not judged, and is left out.
    assert "| all rows | 3 | 33.3% | 0.000 |" in lines
    assert lines[-1] == ("not compared: 1 rows whose gold is none of the judgements, such as great")


def test_scores_are_compared_by_how_far_they_are_apart() -> None:
    gold = ["1", "1", "2", "3", "4", "5", "10"]
    said = ["1", "2", "2", "3", "5", "5", "9"]
    pairs = {(right, score, True): 1 for right, score in zip(gold, said, strict=True)}
    scale = [str(score) for score in range(11)]
    kappa = cohen_kappa_score(
        [*map(int, gold)], [*map(int, said)], labels=range(11), weights="quadratic"
    )
    lines = list(agreement_lines({**pairs, ("3", "(none)", False): 1}, scale))
    assert lines[0].endswith("| Cohen's kappa (quadratic weights) |")
    assert f"| all rows | 8 | 50.0% | {kappa:.3f} |" in lines
    assert lines[lines.index("") + 1] == r"| people \ model | 1 | 2 | 3 | 4 | 5 | 9 | 10 | (none) |"


def test_more_scores_than_can_be_read_have_no_table() -> None:
    pairs = {(str(score), str(score), True): 1 for score in range(MOST_SHOWN + 1)}
    scale = [str(score) for score in range(100)]
    lines = list(agreement_lines(pairs, scale))
    assert lines[-1] == f"(the confusion table has {MOST_SHOWN + 1} labels and is left out)"
    assert any("people" in line for line in agreement_lines(dict([*pairs.items()][1:]), scale))


def test_two_scores_have_a_kappa() -> None:
    lines = list(agreement_lines({("0", "0", True): 2, ("1", "1", True): 2}, ["0", "1"]))
    assert "| all rows | 4 | 100.0% | 1.000 |" in lines


def test_report_of_scores_weighs_how_far_they_are_apart_and_groups_rows_by_agreement() -> None:
    lines = report(
        {**SCORES, "gold_column": "gold"},
        [["1"], ["3"], ["5", "5"], ["2", "1"]],
        gold=[1, 2, 5, 5],
    )
    kappa = cohen_kappa_score([1, 2, 5, 5], [1, 3, 5, 1], labels=range(1, 6), weights="quadratic")
    assert f"| all rows | 4 | 50.0% | {kappa:.3f} |" in lines
    assert any(line.startswith("| all samples agree | 3 | 66.7% |") for line in lines)
    assert any(line.startswith("| some differ | 1 | 0.0% |") for line in lines)


def test_scores_have_a_mean_and_a_spread() -> None:
    lines = report(
        {**SCORES, "gold_column": "gold"}, [["1", "5", "5"], ["2"], [None]], gold=[5.0, 3.5, None]
    )
    assert "mean 3.50, median 2; the samples of a row lie 2.00 apart on average" in lines
    assert "| all rows | 1 | 100.0% | - |" in lines
    assert lines[-1].endswith("rows whose gold is none of the judgements, such as 3.5")


def test_position_bias_is_that_of_the_judge() -> None:
    """Of four rows two prefer the first place in both orders, one is sure, one has a tie."""
    lines = report(
        {**PAIRS, "gold_column": "gold"},
        [["A"], ["A"], ["A"], ["tie"], [None]],
        [["A"], ["A"], ["B"], ["A"], ["B"]],
        gold=["A", "tie", "A", "B", "B"],
    )
    assert lines[4:7] == ["| A | 1 | 20.0% |", "| tie | 3 | 60.0% |", "| (none) | 1 | 20.0% |"]
    assert (
        "both orders agree in 1 of 4 rows (25.0%); the others: 2 prefer the first place, 0 the "
        "second, 1 have a tie in one order"
    ) in lines
    low, high = wilson(6, 7)
    assert (
        "position: 85.7% of 7 judgements that are no tie prefer the first place (95% interval "
        f"{low:.1%} to {high:.1%}; 50 % without bias)"
    ) in lines
    assert any(line.startswith("| all rows | 5 | 40.0% |") for line in lines)


def test_a_judge_without_bias_prefers_both_places_as_often() -> None:
    lines = report(PAIRS, [["A"], ["B"], ["B"]], [["B"], ["A"], ["B"]])
    assert (
        "both orders agree in 2 of 3 rows (66.7%); the others: 0 prefer the first place, 1 the "
        "second, 0 have a tie in one order"
    ) in lines
    assert any(line.startswith("position: 33.3% of 6 judgements") for line in lines)
    lines = report(PAIRS, [["A"]], [["B"]])
    assert any(line.startswith("position: 50.0% of 2 judgements") for line in lines)


def test_wilson_s_interval_is_the_published_one() -> None:
    """For 8 of 10: by the formula of Wilson (1927) with z = 1.96."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10)[0] == 0


def test_a_report_without_a_judgement_says_so() -> None:
    assert report({**VERDICTS, "gold_column": "gold"}, [[None]], gold=[None])[-1] == (
        "no row that was judged has a judgement in gold"
    )
    assert not any("position" in line for line in report(PAIRS, [[None]], [[None]]))


EVIL = "a|b\n<img src=x>`*_[l](u)_\x1b[2J &lt;"


def test_names_of_anybody_stay_text_in_the_report() -> None:
    judge = {**VERDICTS, "verdicts": ["right", EVIL], "gold_column": "gold"}
    text = "\n".join(
        report(judge, [[EVIL], ["right"], ["right"]], gold=[EVIL, f"{EVIL}?", "right"])
    )
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    shown = EVIL.replace("\n", "\\n").replace("\x1b", "\\x1b")
    assert html.count(f"{escape(shown)}</") == 3, "in two tables, the second time as row and column"
    assert f"such as {escape(shown)}?" in html
    assert not re.search(r"<(img|em|strong|a|code|del)\b", html)


def test_counts_of_several_tables_add_up() -> None:
    job, counts = job_of(), Counts()
    for _ in range(2):
        counts.add(judged(job, traces_of(VERDICTS, [["right"], ["wrong"]]), NAMES), job)
    assert counts.rows == 4
    assert counts.values == {"right": 2, "wrong": 2}
    assert isinstance(judged(job, traces_of(VERDICTS, [["right"]]), NAMES), pa.Table)
