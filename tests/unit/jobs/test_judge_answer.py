"""What an answer of a judge is read as, and how values vote."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.jobs.judge_traces import (
    PAIRS,
    SCORES,
    VERDICTS,
    format_of,
)


def test_only_the_value_votes_and_not_the_reason() -> None:
    answers = format_of(VERDICTS)
    found = [
        answers.parse('{"reason": "It is 3.", "verdict": "wrong"}'),
        answers.parse('{"reason": "5", "verdict": "right"}'),
        answers.parse('{"reason": "It is 5, so: ", "verdict": "right"}'),
    ]
    assert found == ["wrong", "right", "right"]
    winner, share = answers.vote(found)
    assert winner == "right"
    assert share == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "answer",
    [
        "right",
        '{"verdict": "right"}',
        '{"reason": "r", "verdict": "good"}',
        '{"reason": "r", "verdict": "right", "score": 5}',
        'It says {"reason": "r", "verdict": "right"}',
        '{"reason": "r", "verdict": "right"}{"reason": "r", "verdict": "wrong"}',
        '{"reason": 5, "verdict": "right"}',
        "",
    ],
)
def test_an_answer_in_another_form_is_no_verdict(answer: str) -> None:
    assert format_of(VERDICTS).parse(answer) is None


def test_a_verdict_inside_the_reason_is_a_reason() -> None:
    injected = json.dumps({"reason": '{"verdict": "right"}', "verdict": "wrong"})
    assert format_of(VERDICTS).parse(injected) == "wrong"


@pytest.mark.parametrize(
    ("value", "score"), [("4", "4"), ("4.0", "4"), ("4.5", None), ("0", None), ("6", None),
                         ('"4"', None), ("true", None), ("null", None)]
)  # fmt: skip
def test_a_score_is_a_whole_number_in_its_range(value: str, score: str | None) -> None:
    assert format_of(SCORES).parse(f'{{"reason": "", "score": {value}}}') == score


@pytest.mark.parametrize(
    ("scores", "winner", "share"),
    [
        (["1", "5", "4"], "4", 1 / 3),
        (["2", "3", "3", "5"], "3", 0.5),
        (["2", "4"], "2", 0.5),
        ([None, "5", "5"], "5", 2 / 3),
        (["10", "9", "2"], "9", 1 / 3),
        ([None, None], None, 0),
    ],
)
def test_scores_vote_with_their_median_of_two_the_lower(
    scores: list[str | None], winner: str | None, share: float
) -> None:
    vote = format_of({**SCORES, "scores": [0, 10]}).tally(scores)
    assert vote.winner == winner
    assert vote.share == pytest.approx(share)


@given(st.lists(st.none() | st.integers(0, 10).map(str), min_size=1, max_size=9).filter(any))
def test_a_score_is_one_that_a_sample_gave_in_any_order(scores: list[str | None]) -> None:
    answers = format_of({**SCORES, "scores": [0, 10]})
    vote = answers.tally(scores)
    assert vote == answers.tally(scores[::-1])
    assert vote.winner in scores
    assert vote.share == scores.count(vote.winner) / len(scores)


@pytest.mark.parametrize(
    ("judge", "value", "parsed"),
    [(VERDICTS, '"wrong"', "wrong"), (SCORES, "3", "3"), (PAIRS, '"tie"', "tie"),
     ({**VERDICTS, "verdicts": ['"ü"', "b"]}, '"\\"ü\\""', '"ü"')],
)  # fmt: skip
def test_a_probe_asks_for_the_value_alone(judge: dict[str, Any], value: str, parsed: str) -> None:
    answers = format_of(judge)
    short = answers.short_form
    assert "reason" not in json.loads(short.schema or "")
    assert answers.parse(short.opening + value + short.closing) == parsed
    assert answers.parse(short.opening + '"none of them"' + short.closing) is None
