"""Which two samples of a prompt make a pair."""

from typing import Any

import pytest

from jobs.preferences import Candidate, choose_pair


def sample(row: int, tokens: int = 100, **other: Any) -> Candidate:
    base = {"think": f"t{row}", "answer": "a", "rejected": None, "passed": True, "score": None}
    return Candidate(row=row, tokens=tokens, **{**base, **other})


def wrong(row: int, tokens: int = 100, **other: Any) -> Candidate:
    return sample(row, tokens, **{"rejected": "wrong", "passed": False, **other})


@pytest.mark.parametrize(
    ("samples", "kinds", "pair"),
    [
        ([sample(0), wrong(1)], ["wrong"], ("wrong", 0, 1)),
        ([wrong(0), sample(1)], ["wrong"], ("wrong", 1, 0)),
        ([sample(0), wrong(1, rejected="verifier")], ["wrong"], ("wrong", 0, 1)),
        # The closest in length, then the first.
        ([sample(0, 10), sample(1, 50), wrong(2, 90), wrong(3, 55)], ["wrong"], ("wrong", 1, 3)),
        ([sample(0), sample(1), wrong(2), wrong(3)], ["wrong"], ("wrong", 0, 2)),
        ([sample(0), sample(1)], ["wrong"], None),
        ([wrong(0), wrong(1)], ["wrong"], None),
        ([sample(0, passed=None), wrong(1)], ["wrong"], None),  # nobody knows that it is right
        ([sample(0, rejected="duplicate"), wrong(1)], ["wrong"], None),
        ([sample(0, rejected="too_easy"), wrong(1)], ["wrong"], None),
        ([sample(0), wrong(1, rejected="state")], ["wrong"], None),
        ([sample(0, think="t"), wrong(1, think="t")], ["wrong"], None),  # the same text
        ([sample(0, think=None), wrong(1, think="")], ["wrong"], None),
        ([sample(0, think="t"), wrong(1, think="t"), wrong(2, 500)], ["wrong"], ("wrong", 0, 2)),
        ([sample(0, score=3), sample(1, score=5)], ["score"], ("score", 1, 0)),
        (
            [sample(0, score=3), sample(1, score=5), sample(2, score=1, rejected="judge")],
            ["score"], ("score", 1, 2),
        ),
        ([sample(0, score=3), sample(1, score=5, rejected="judge")], ["score"], None),
        ([sample(0, score=3), sample(1, score=3)], ["score"], None),
        ([sample(0, score=3), sample(1)], ["score"], None),
        ([sample(0, score=3), wrong(1, score=1)], ["score"], None),
        ([sample(0, 100), sample(1, 150), sample(2, 140)], ["longer"], ("longer", 0, 1)),
        ([sample(0, 100), sample(1, 149)], ["longer"], None),
        ([sample(0, 100), sample(1, 900, rejected="too_long")], ["longer"], ("longer", 0, 1)),
        ([sample(0, 100), wrong(1, 900)], ["longer"], None),
        ([], ["wrong", "score", "longer"], None),
        ([sample(0), wrong(1)], [], None),
        (
            [sample(0, 10, score=1), sample(1, 90, score=2)],
            ["wrong", "score", "longer"], ("score", 1, 0),
        ),
        (
            [sample(0, 10, score=1), sample(1, 90, score=2), wrong(2)],
            ["longer", "wrong"], ("longer", 0, 1),
        ),
    ],
)  # fmt: skip
def test_pair_of_a_prompt(samples: list[Candidate], kinds: Any, pair: Any) -> None:
    chosen = choose_pair(samples, kinds)
    assert (
        None if chosen is None else (chosen.kind, chosen.chosen.row, chosen.rejected.row)
    ) == pair
