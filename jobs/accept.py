"""Decides which samples are accepted for training, and why others are rejected; no I/O.

``rejected`` is the first of `REASONS` that applies. Those that look at one sample alone are in
`rejection`; a prompt's pass rate takes all of its samples, and near duplicates all prompts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.answers.base import AnswerFormat
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State

CONTAMINATED, WRONG, VERIFIER, VERIFIER_ERROR = (
    "contaminated",
    "wrong",
    "verifier",
    "verifier_error",
)
UNJUDGED, JUDGE, TOO_LONG, DUPLICATE = "unjudged", "judge", "too_long", "duplicate"
TOO_HARD, TOO_EASY = "too_hard", "too_easy"
REASONS = (
    CONTAMINATED, "state", WRONG, VERIFIER_ERROR, VERIFIER, "disagrees", UNJUDGED, JUDGE, TOO_HARD,
    TOO_EASY, "too_short", TOO_LONG, DUPLICATE,
)  # fmt: skip
TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens")
JUDGED_COLUMNS = (
    "sample",
    "state",
    "closed_by",
    "correct",
    "parsed",
    "vote",
    "agreement",
    "wasted_tokens",
    "asked_tokens",
    "probe_tokens",
    "duplicate_of",
    *TOKEN_COLUMNS,
)
ANSWERED_STATES = (State.FINISHED, State.RESCUED, State.UNPARSED)
NEVER, AT_TIMES, ALWAYS = "never", "at times", "always"


@dataclass(frozen=True)
class AcceptanceRules:
    """What is accepted, as `jobs.synthesize.SynthesizeSection` describes it; None: no such rule."""

    rescued: bool = False
    min_agreement: float | None = None
    max_tokens: int | None = None
    near_duplicate: float | None = None
    min_tokens: int | None = None
    pass_rate: tuple[float, float] | None = None


@dataclass(frozen=True)
class Findings:
    """What is known of a sample beside its trace.

    ``contaminated_by``: the benchmark question in its prompt. ``verified``: what the verifier
    returned, None without one; ``verifier_error``: what it raised. ``judge``: `UNJUDGED` if nobody
    has judged it, `JUDGE` if required values are missing or others.
    """

    contaminated_by: str | None = None
    verified: bool | None = None
    verifier_error: str | None = None
    judge: str | None = None


def rejection(
    trace: Mapping[str, Any],
    rules: AcceptanceRules,
    answer_format: AnswerFormat,
    findings: Findings = Findings(),
) -> str | None:
    """The reason why ``trace`` is rejected, as far as it alone can tell; None if it is accepted.

    ``trace``: the values of `JUDGED_COLUMNS`, as far as the run has them.
    """
    if findings.contaminated_by is not None:
        return CONTAMINATED
    return (
        _rejected_state(trace, rules)
        or _rejected_answer(trace, rules, answer_format, findings)
        or findings.judge
    )


def _rejected_state(trace: Mapping[str, Any], rules: AcceptanceRules) -> str | None:
    accepted_states = (State.FINISHED, State.RESCUED) if rules.rescued else (State.FINISHED,)
    if trace["state"] not in accepted_states:
        return "state"
    # Asked for once more: its own answer is not in the format. Closed early: its thinking ends in
    # the middle.
    closed_early = trace.get("closed_by") == ClosedBy.EARLY_ANSWER
    if not rules.rescued and (trace.get("asked_tokens") or closed_early):
        return "state"
    return None


def _rejected_answer(
    trace: Mapping[str, Any],
    rules: AcceptanceRules,
    answer_format: AnswerFormat,
    findings: Findings,
) -> str | None:
    if trace["correct"] is False:
        return WRONG
    if findings.verifier_error is not None:
        return VERIFIER_ERROR
    if findings.verified is False:
        return VERIFIER
    is_known_right = trace["correct"] or findings.verified
    if rules.min_agreement is not None and not is_known_right:
        # The column holds 32-bit floats: 0.6 is not 0.6 there.
        enough_agree = trace["agreement"] >= np.float32(rules.min_agreement)
        if not enough_agree or not _is_vote(trace["parsed"], trace["vote"], answer_format):
            return "disagrees"
    return None


def selection(
    trace: Mapping[str, Any], rules: AcceptanceRules, pass_rate: float | None
) -> str | None:
    """The reason why a sound sample is not selected, by pass rate and length; None if it is.

    ``pass_rate``: of its prompt, None if it is unknown, which rejects nothing.
    """
    if rules.pass_rate is not None and pass_rate is not None:
        low, high = rules.pass_rate
        if pass_rate < low:
            return TOO_HARD
        if pass_rate > high:
            return TOO_EASY
    tokens = sum(trace[name] or 0 for name in TOKEN_COLUMNS)
    if rules.min_tokens is not None and tokens < rules.min_tokens:
        return "too_short"
    if rules.max_tokens is not None and tokens > rules.max_tokens:
        return TOO_LONG
    return None


def is_complete(state: str, answer: str | None) -> bool:
    """Whether a trace in ``state`` has a whole answer."""
    return state in ANSWERED_STATES and bool((answer or "").strip())


def passed(trace: Mapping[str, Any], findings: Findings, has_verifier: bool) -> bool | None:
    """Whether a sample passed all checks of its answer; None if there is none, or it is undecided.

    A trace without an answer did not pass. One that failed was not drawn, and of a contaminated
    prompt the verifier was not asked, so these are undecided.
    """
    is_unasked = has_verifier and findings.contaminated_by is not None
    if trace["state"] == State.FAILED or findings.verifier_error is not None or is_unasked:
        return None
    if trace["correct"] is False:
        return False
    if has_verifier:
        return bool(findings.verified)
    correct: bool | None = trace["correct"]
    return correct


def pass_rate(verdicts: Sequence[bool | None]) -> float | None:
    """The share of a prompt's decided samples that passed; None if none is decided."""
    decided = [verdict for verdict in verdicts if verdict is not None]
    return sum(decided) / len(decided) if decided else None


def _is_vote(parsed: str | None, vote: str | None, answer_format: AnswerFormat) -> bool:
    """Whether a sample has the value that most samples of its row have."""
    if parsed is None or vote is None:
        return False
    return parsed == vote or len(answer_format.group([vote, parsed])[0]) == 1


@dataclass
class SampleCounts:
    """Counts of samples by outcome. Tokens of copies of duplicates are not counted.

    ``rows``: prompts. ``wasted_tokens``: those of abandoned attempts. ``asked_tokens``: those of
    answers that were asked for once more. ``probe_tokens``: those of probes for early answers.
    ``pass_rates``: prompts whose samples passed `NEVER`, `AT_TIMES` or `ALWAYS`.
    ``verifier_error``: the first that the verifier raised, with the sample. ``left_out``: the
    benchmark questions of prompts that were not generated.
    """

    rows: int = 0
    samples: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    think_tokens: int = 0
    answer_tokens: int = 0
    wasted_tokens: int = 0
    asked_tokens: int = 0
    probe_tokens: int = 0
    pass_rates: Counter[str] = field(default_factory=Counter)
    verifier_error: str | None = None
    left_out: Sequence[str] = ()

    @property
    def tokens(self) -> int:
        """All generated tokens."""
        ended = self.think_tokens + self.answer_tokens
        return ended + self.wasted_tokens + self.asked_tokens + self.probe_tokens

    def add(self, trace: Mapping[str, Any], reason: str | None) -> None:
        """Count one sample. ``trace``: those of `JUDGED_COLUMNS`; ``reason``: of its rejection."""
        self.rows += trace["sample"] == 0
        self.samples += 1
        self.states[trace["state"]] += 1
        if reason is None:
            self.accepted += 1
        else:
            self.rejected[reason] += 1
        if trace["duplicate_of"] is None:  # a copy was generated, and is counted, elsewhere
            self.think_tokens += trace["think_tokens"]
            self.answer_tokens += trace["answer_tokens"]
            self.wasted_tokens += trace["wasted_tokens"]
            self.asked_tokens += trace.get("asked_tokens", 0)
            self.probe_tokens += trace.get("probe_tokens", 0)

    def add_pass_rate(self, rate: float | None) -> None:
        """Count one prompt by its pass rate."""
        if rate is not None:
            self.pass_rates[NEVER if rate == 0 else ALWAYS if rate == 1 else AT_TIMES] += 1

    def lines(self) -> Iterator[tuple[str, int]]:
        """The accepted samples, then those of each reason that occurred."""
        yield "accepted", self.accepted
        yield from ((reason, self.rejected[reason]) for reason in REASONS if self.rejected[reason])
