"""Pairs of samples of a prompt, one better than the other, as DPO learns from; no I/O.

A prompt gives one pair, of the first kind that it has:

* ``wrong``: an accepted sample that passed, and one that is wrong. Of all such pairs, the two that
  are closest in length: otherwise a model learns what is longer in place of what is right.
* ``score``: the accepted sample with the highest score of the first required column of numbers, and
  the one with the lowest, if it is lower.
* ``longer``: the shortest accepted sample, and the longest right one, if it has half as many tokens
  again.

Only samples in an accepted state make pairs, and equal texts never do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple

from jobs.accept import JUDGE, TOO_LONG, VERIFIER, WRONG

Kind = Literal["wrong", "score", "longer"]
LONGER = 1.5


@dataclass(frozen=True)
class Candidate:
    """A sample that can be part of a pair. ``rejected``: its reason, None if it is accepted."""

    row: Any
    think: str | None
    answer: str
    tokens: int
    rejected: str | None
    passed: bool | None
    score: float | None


class Pair(NamedTuple):
    """Two samples of a prompt."""

    kind: Kind
    chosen: Candidate
    rejected: Candidate


def choose_pair(samples: Sequence[Candidate], kinds: Sequence[Kind]) -> Pair | None:
    """The pair of a prompt's ``samples``, of the first of ``kinds`` that it has; None without one.

    Between equals, earlier samples are taken, so the choice depends on nothing but the samples.
    """
    makers = {"wrong": _wrong, "score": _score, "longer": _longer}
    for kind in kinds:
        for chosen, rejected in makers[kind](samples):
            if (chosen.think or "", chosen.answer) != (rejected.think or "", rejected.answer):
                return Pair(kind, chosen, rejected)
    return None


Pairs = Iterator[tuple[Candidate, Candidate]]


def _accepted(samples: Sequence[Candidate]) -> list[Candidate]:
    return [sample for sample in samples if sample.rejected is None]


def _wrong(samples: Sequence[Candidate]) -> Pairs:
    right = [sample for sample in _accepted(samples) if sample.passed]
    wrong = [sample for sample in samples if sample.rejected in (WRONG, VERIFIER)]
    pairs = product(right, wrong)
    yield from sorted(pairs, key=lambda pair: abs(pair[0].tokens - pair[1].tokens))


def _score(samples: Sequence[Candidate]) -> Pairs:
    scored = [(s.score, s) for s in samples if s.score is not None and s.rejected in (None, JUDGE)]
    chosen = [(score, sample) for score, sample in scored if sample.rejected is None]
    if chosen:
        best, sample = max(chosen, key=lambda pair: pair[0])
        yield from (
            (sample, other)
            for score, other in sorted(scored, key=lambda pair: pair[0])
            if score < best
        )


def _longer(samples: Sequence[Candidate]) -> Pairs:
    if right := _accepted(samples):
        shortest = min(right, key=lambda sample: sample.tokens)
        others = [s for s in samples if s.rejected in (None, TOO_LONG) and s is not shortest]
        yield from (
            (shortest, other)
            for other in sorted(others, key=lambda sample: -sample.tokens)
            if other.tokens >= LONGER * shortest.tokens
        )
