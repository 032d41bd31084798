"""Early answers: where thinking is probed for the answer that it would give now; no I/O.

A probe is a copy of a trace: its thinking so far, the closing phrase, and the beginning of the
answer. The trace itself goes on. When the last few probes say the same, the thinking can be closed
there. (Dynasor-CoT, https://arxiv.org/abs/2412.20993, closes at equal answers of probes at fixed
distances; DEER, https://arxiv.org/abs/2504.15895, looks at the model's confidence where it begins
to doubt.)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.reasoning.sampling import hash48

# Words with which QwQ begins to check or to doubt what it has, in its two languages.
SIGNS = (
    "Wait", "But wait", "Hmm", "Alternatively", "Hold on", "Let me check", "Let me double",
    "Let me verify", "等等", "等一下", "不过", "让我再", "再检查",
)  # fmt: skip
# Without any sign, a probe is made after this many times the least distance.
LONGEST_GAP = 4
# What the first probe of a trace is expected to cost at most, in tokens: three digits and a brace.
# Later ones are expected to cost what the one before did.
USUAL_TOKENS = 4
# The floor is looked at from so many rows with compared traces on: samples of a row are not
# independent.
ENOUGH_COMPARED = 20
STILL_CLOSED = "other rows are still closed early (thinking.early_answer.below: warn)"


class EarlyAnswer(BaseModel, frozen=True, extra="forbid"):
    """When thinking is closed because its answer has settled, and how that is checked."""

    agree: int = Field(
        3, ge=1, le=16,
        description="Closes the thinking when this many probes in a row give the same answer.",
    )  # fmt: skip
    every_tokens: int = Field(256, ge=8, description="Least tokens of thinking between two probes.")
    signs: tuple[str, ...] = Field(
        SIGNS,
        description="Words before which a probe is made; without one for four times "
        "`every_tokens`, a probe is made anyway. `[]`: always at `every_tokens`.",
    )
    probe_share: float = Field(
        0.08, gt=0, le=1, description="Most tokens of probes, as a share of the thinking so far."
    )
    control_share: float = Field(
        0.05, gt=0, le=1,
        description="Share of the rows that are probed, but think to their end: the control group.",
    )  # fmt: skip
    min_agreement: float | None = Field(
        None, gt=0, le=1,
        description="Least share of the control group whose early answer is that of the full "
        "thinking; below it there is a warning.",
    )  # fmt: skip
    below: Literal["warn", "stop"] = Field(
        "warn", description="`stop`: below `min_agreement`, no more thinking is closed early."
    )

    @field_validator("signs")
    @classmethod
    def _are_words(cls, signs: tuple[str, ...]) -> tuple[str, ...]:
        if not all(sign.strip() for sign in signs):
            raise ValueError("a sign without text; `[]` is for none")
        return signs

    @model_validator(mode="after")
    def _has_a_floor_to_stop_at(self) -> Self:
        if self.below == "stop" and self.min_agreement is None:
            raise ValueError("below: stop needs min_agreement")
        return self

    @property
    def least_tokens(self) -> int:
        """The least tokens of thinking after which it can be closed, if a probe takes one."""
        return max(self.agree * self.every_tokens, math.ceil(self.agree / self.probe_share))

    @property
    def floor(self) -> "ControlGroup":
        """The floor of the agreement, without any traces."""
        stops, closes = self.below == "stop", self.control_share < 1
        return ControlGroup(min_agreement=self.min_agreement, stops=stops, closes=closes)


class Probe(NamedTuple):
    """A probe after ``at`` tokens of thinking.

    ``tokens``: that it generated. ``answer``: parsed; None if it has none. ``alike``: how many
    probes in a row, this one included, say the same.
    """

    at: int
    tokens: int
    answer: str | None
    alike: int


def settled(probes: Iterable[Probe], agree: int) -> Probe | None:
    """The first probe with which ``agree`` in a row say the same."""
    return next((probe for probe in probes if probe.alike >= agree), None)


def may_probe(early: EarlyAnswer, probes: Sequence[Probe], at: int, longest: int) -> bool:
    """Whether one more probe after ``at`` tokens stays within the share that probes may have.

    ``longest``: the most tokens that a probe can take.
    """
    spent = sum(probe.tokens for probe in probes)
    cost = probes[-1].tokens if probes else min(USUAL_TOKENS, longest)
    return spent + cost <= early.probe_share * at


def is_below_floor(min_agreement: float | None, rows: int, compared: int, agreeing: int) -> bool:
    """Whether too few of the early answers that were ``compared`` with the full ones agree.

    ``rows``: those with such answers. Never before `ENOUGH_COMPARED` of them, and never without a
    ``min_agreement``.
    """
    if min_agreement is None or rows < ENOUGH_COMPARED:
        return False
    return agreeing / compared < min_agreement


@dataclass(frozen=True)
class ControlGroup:
    """The control group so far, and the floor of its agreement.

    ``compared``: traces whose early answer was compared with the full one, of ``rows`` rows;
    ``agreeing``: those where they are equal. ``stops``: whether no more thinking is closed early
    below ``min_agreement``. ``closes``: whether there are rows outside the group, whose thinking is
    closed.
    """

    rows: int = 0
    compared: int = 0
    agreeing: int = 0
    min_agreement: float | None = None
    stops: bool = False
    closes: bool = True

    def plus(self, rows: int, compared: int, agreeing: int) -> "ControlGroup":
        """With more traces, of more rows."""
        return replace(
            self,
            rows=self.rows + rows,
            compared=self.compared + compared,
            agreeing=self.agreeing + agreeing,
        )

    @property
    def warning(self) -> str | None:
        """What to say if too few early answers agree; None if enough do, or there is no floor."""
        floor = self.min_agreement
        if floor is None or not is_below_floor(floor, self.rows, self.compared, self.agreeing):
            return None
        return (
            f"LOW AGREEMENT: only {self.agreeing:,} of {self.compared:,} early answers of the "
            f"control group equal the full one ({self.agreeing / self.compared:.1%}), below "
            f"thinking.early_answer.min_agreement, {floor:.1%}: " + self._consequence
        )

    @property
    def _consequence(self) -> str:
        if not self.closes:
            return "all rows are in the group, so none was closed early"
        return "thinking is no longer closed early" if self.stops else STILL_CLOSED


def is_control(seed: int, shard: str, row: int, share: float) -> bool:
    """Whether a row is in the control group: the same on every machine and rerun."""
    return hash48(f"{seed}\0{shard}\0{row}\0control") < share * 2**48


class ProbePoints:
    """Finds where a trace's thinking is to be probed, as its tokens come.

    ``signs``: the token ids of words before which a probe is made. The points depend on nothing but
    the tokens, so a trace that another engine continues is probed at the same ones.
    """

    def __init__(self, signs: Iterable[Sequence[int]], every: int) -> None:
        self._by_first: dict[int, list[list[int]]] = {}
        for sign in signs:
            if sign:
                self._by_first.setdefault(sign[0], []).append(list(sign))
        longest = max((len(sign) for each in self._by_first.values() for sign in each), default=1)
        self._ahead, self._every = longest - 1, every
        self._gap = every * LONGEST_GAP if self._by_first else every
        self._at = self._last = 0

    def new(self, token_ids: Sequence[int]) -> Iterator[int]:
        """The points that ``token_ids``, all of the thinking so far, have added."""
        end = len(token_ids) - self._ahead
        while self._at < end:
            at, distance = self._at, self._at - self._last
            if distance >= self._gap or (distance >= self._every and self._is_sign(token_ids, at)):
                self._last = at
                yield at
            self._at += 1

    def _is_sign(self, token_ids: Sequence[int], at: int) -> bool:
        signs = self._by_first.get(token_ids[at], ())
        return any(list(token_ids[at : at + len(sign)]) == sign for sign in signs)
