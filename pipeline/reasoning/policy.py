"""The reasoning policy: what is done next with a trace, given what it has so far; no I/O.

A first pass thinks and, if all goes well, answers. Where the thinking goes in circles it is begun
again under another seed; where it goes in circles still, or uses up its budget, it is closed with
Qwen's own early-stop phrase, and a second pass answers from there. Circles are cut off before that.
The same is done where probes find that the answer has settled (`early_answer`). The engine's prefix
cache makes the second pass cheap: all its prompt but the phrase has just been computed.
"""

import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, Field

from pipeline.reasoning.early_answer import EarlyAnswer, Probe, settled
from pipeline.reasoning.sampling import SamplingPolicy, derive_again
from pipeline.reasoning.think_format import ThinkFormat

# From Qwen's documentation of QwQ and Qwen3, "thinking budget".
EARLY_STOP = (
    "Considering the limited time by the user, I have to give the solution based on the thinking "
    "directly now."
)


def closing_text(think_format: ThinkFormat) -> str:
    """What closes thinking early in a format: the phrase, then what the model itself writes."""
    return f"\n\n{EARLY_STOP}{think_format.closing}"


class ClosedBy(StrEnum):
    """Why a trace's thinking was closed for it."""

    BUDGET = "budget"
    LOOP = "loop"
    EARLY_ANSWER = "early_answer"


# Of the settings of early answers, those that may change while a run goes on.
EARLY, FLOOR = "early_answer", ("min_agreement", "below")
# Why a request ended, besides what engines say: it loops; its answer has settled.
REPETITION, SETTLED = "repetition", "settled"


class ThinkingPolicy(BaseModel, frozen=True, extra="forbid"):
    """How long a trace may think, and what happens to one that loops: that repeats itself."""

    budget_tokens: int | None = Field(
        None, ge=1,
        description="Closes the thinking after this many tokens. Default: what "
        "`sampling.max_tokens` and the context leave.",
    )  # fmt: skip
    rescue: bool = Field(
        True,
        description="Closes thinking that runs out of tokens or loops; the model then answers.",
    )
    answer_tokens: int = Field(
        2048, ge=1, description="Most tokens of the answer after thinking was closed."
    )
    detect_loops: bool = Field(True, description="Ends thinking that loops.")
    loop_retries: int = Field(
        1, ge=0, le=10,
        description="How often a trace that loops starts again before its thinking is closed.",
    )  # fmt: skip
    loop_presence_penalty: float = Field(
        0.5, ge=0, le=2, description="Least presence penalty of a trace that starts again."
    )
    cut_loops: bool = Field(
        False,
        description="Before thinking that loops is closed, leaves out what comes after its first "
        "round, so that the answer follows from what it says and not from the circles.",
    )
    early_answer: EarlyAnswer | None = Field(
        None,
        description="Closes thinking whose answer has settled; `{}`: with its defaults. Default: "
        "never.",
    )

    def settings(self) -> dict[str, Any]:
        """The settings that change traces, by name; those added later only if they are on.

        What is done below the floor of agreement is no such setting: it may change at any time.
        """
        values = self.model_dump(exclude={"early_answer"})
        if not self.cut_loops:
            del values["cut_loops"]
        early = {} if self.early_answer is None else self.early_answer.model_dump(mode="json")
        named = {f"{EARLY}.{name}": early[name] for name in early if name not in FLOOR}
        return values | named


@dataclass
class TraceProgress:
    """What one trace has so far; all that a later engine needs to go on.

    ``token_ids`` are those of the present try: thinking, then, if it was closed for it, the closing
    phrase (``closing_tokens`` of them from ``closed_at``), then the answer. ``carried``: how many
    an earlier engine had generated. ``tries`` and ``wasted_tokens``: the tries that went in
    circles and were given up; the latter also of thinking and of probes that were cut off, and of
    answers that were drawn again.
    ``closed_by`` stays None where the model closed its thinking itself and only the answer is a
    pass of its own. ``finish_reason`` ends it. ``probes``: of the present try; those of given-up
    tries are among the wasted tokens.
    """

    token_ids: "array[int]" = field(default_factory=lambda: array("i"))
    finish_reason: str | None = None
    carried: int = 0
    closed_at: int | None = None
    closing_tokens: int = 0
    closed_by: str | None = None
    tries: int = 0
    wasted_tokens: int = 0
    probes: list[Probe] = field(default_factory=list)

    lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def report(self, new: Sequence[int]) -> None:
        """Add what the engine has generated since the last report."""
        self.token_ids.extend(new)

    def begin_again(self) -> None:
        """Give the present try up."""
        self.wasted_tokens += len(self.token_ids) + self.probe_tokens
        self.tries, self.carried, self.token_ids = self.tries + 1, 0, array("i")
        self.probes = []

    def cut(self, at: int) -> None:
        """Give up the thinking after its first ``at`` tokens."""
        self.wasted_tokens += len(self.token_ids) - at
        self.carried = min(self.carried, at)
        del self.token_ids[at:]

    def answer_again(self, asked_tokens: int = 0) -> None:
        """Give the answer up that followed closed thinking.

        ``asked_tokens``: what asking for it once more had taken.
        """
        assert self.closed_at is not None
        begins = self.closed_at + self.closing_tokens
        with self.lock:
            self.wasted_tokens += len(self.token_ids) - begins + asked_tokens
            self.carried = min(self.carried, self.closed_at)
            del self.token_ids[begins:]
            self.finish_reason = None

    def close(self, closing: Sequence[int], by: ClosedBy | None) -> None:
        """Close the thinking with the tokens ``closing``, or lead over to the answer with them."""
        self.closed_at, self.closing_tokens = len(self.token_ids), len(closing)
        self.closed_by = by
        self.token_ids.extend(closing)

    def snapshot(self) -> dict[str, Any]:
        """All of it but ``carried``, at one moment: plain values, and an array of token ids."""
        with self.lock:
            # How it ended is looked at first: when that is set, all its tokens are there.
            plain = {name: getattr(self, name) for name in SAVED}
            return plain | {"token_ids": self.token_ids[:], "probes": self.probes[:]}

    @classmethod
    def restored(cls, saved: Mapping[str, Any]) -> "TraceProgress":
        """The inverse of `snapshot`; of any sequence of token ids."""
        plain = {name: saved[name] for name in SAVED}
        probes = [Probe(**probe) for probe in saved["probes"] or ()]
        return cls(token_ids=array("i", saved["token_ids"]), probes=probes, **plain)

    @property
    def generated(self) -> int:
        """How many tokens of the present try the model has generated."""
        return len(self.token_ids) - self.closing_tokens

    @property
    def probe_tokens(self) -> int:
        """How many tokens the probes of the present try generated."""
        return sum(probe.tokens for probe in self.probes)

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to save."""
        return bool(self.token_ids) or self.tries > 0

    @property
    def _rank(self) -> tuple[bool, int, bool, int, int]:
        closed, length = self.closed_at is not None, len(self.token_ids)
        return self.finish_reason is not None, self.tries, closed, length, len(self.probes)

    def is_ahead_of(self, other: "TraceProgress") -> bool:
        """Whether this has come further than ``other`` of the same trace."""
        return self._rank > other._rank


SAVED = ("finish_reason", "closed_at", "closing_tokens", "closed_by", "tries", "wasted_tokens")


@dataclass(frozen=True)
class AnswerPass:
    """How an answer is generated apart from its thinking, under a grammar.

    ``schema``: the JSON Schema, as JSON text. ``stop_id``: the token that closes the thinking; None
    where that is more than one, and the model ends its turn in its own words first. ``opening``:
    the token ids that stand between thinking that has closed itself and the answer. ``controls``:
    the ids of tokens that are no text, such as the end of turn. ``after_thinking``: False for a
    model that does not think.
    """

    schema: str
    stop_id: int | None
    opening: Sequence[int]
    controls: Sequence[int] = ()
    after_thinking: bool = True


@dataclass(frozen=True)
class Step:
    """What to ask an engine for next.

    ``policy.max_tokens`` bounds the whole output, closing phrase included. ``stop_id``: a token
    that ends the step; ``schema``: what it generates is JSON that fits it. ``probes``: whether the
    thinking may be probed meanwhile.
    """

    policy: SamplingPolicy
    seed: int
    watch_loops: bool
    stop_id: int | None = None
    schema: str | None = None
    probes: bool = False


@dataclass(frozen=True)
class TracePolicy:
    """The policy of a run, with what it needs to know of the model.

    ``closing``: the token ids that close the thinking. ``is_closed``: whether token ids hold the
    end of the thinking. ``context_tokens``: for prompt and output together. ``answer``: None where
    the model goes on from thinking to answer by itself. ``loop_onset``: how many of the token ids
    that loop stood before the loop; None if that is not certain.
    """

    sampling: SamplingPolicy
    thinking: ThinkingPolicy
    context_tokens: int
    closing: Sequence[int]
    is_closed: Callable[[Sequence[int]], bool]
    answer: AnswerPass | None = None
    loop_onset: Callable[[Sequence[int]], int | None] = lambda _: None

    def max_output_tokens(self, prompt_tokens: int) -> int:
        """How many tokens of output the context has room for."""
        return self.context_tokens - prompt_tokens

    def next_step(self, progress: TraceProgress, seed: int, max_output_tokens: int) -> Step:
        """The step that ``progress``, which has not ended, is at."""
        if self.answer is not None and not self.answer.after_thinking and not progress.has_begun:
            progress.close((), None)
        sampling = self.sampling
        if progress.tries:
            seed = derive_again(seed, progress.tries)
            penalty = max(sampling.presence_penalty, self.thinking.loop_presence_penalty)
            sampling = sampling.model_copy(update={"presence_penalty": penalty})
        if progress.closed_at is not None:
            begins = progress.closed_at + progress.closing_tokens
            limit = begins + self.thinking.answer_tokens
            if progress.closed_by is None:  # what is left of all tokens, if that is more
                limit = max(limit, sampling.max_tokens) if begins else sampling.max_tokens
            limit = min(limit, max_output_tokens)
            sampling = sampling.model_copy(update={"max_tokens": limit})
            if self.answer is None:
                return Step(sampling, seed, watch_loops=False)
            del progress.token_ids[begins:]  # a grammar can't go on from the middle
            return Step(sampling, seed, watch_loops=False, schema=self.answer.schema)
        limit = min(sampling.max_tokens, max_output_tokens)
        if self.answer is not None or not self.is_closed(progress.token_ids):
            limit = min(limit, self._thinking_limit(max_output_tokens))
        stop_id = None if self.answer is None else self.answer.stop_id
        if limit != sampling.max_tokens:
            sampling = sampling.model_copy(update={"max_tokens": limit})
        probes = self.thinking.early_answer is not None
        return Step(sampling, seed, self.thinking.detect_loops, stop_id, probes=probes)

    def end_step(self, progress: TraceProgress, finish_reason: str, max_output_tokens: int) -> None:
        """Take note of how a step ended: set ``finish_reason``, or change what comes next."""
        looped = finish_reason == REPETITION
        with progress.lock:
            if finish_reason == SETTLED:
                self._close_early(progress)
            elif self._has_thought(progress, finish_reason):
                self._start_answer(progress)
            elif progress.closed_at is not None or finish_reason == "stop":
                progress.finish_reason = finish_reason
            elif looped and progress.tries < self.thinking.loop_retries:
                progress.begin_again()
            elif self.answer is None and self.is_closed(progress.token_ids):
                if looped or len(progress.token_ids) >= min(
                    self.sampling.max_tokens, max_output_tokens
                ):
                    progress.finish_reason = finish_reason
                # Else the budget ran out after the thinking was over, and the answer goes on.
            elif self.thinking.rescue and looped:
                self._close_loop(progress)
            elif self.thinking.rescue:
                progress.close(self.closing, ClosedBy.BUDGET)
            else:
                progress.finish_reason = finish_reason

    def _close_early(self, progress: TraceProgress) -> None:
        """Close the thinking where its answer had settled, however far it has gone meanwhile."""
        early = self.thinking.early_answer
        found = None if early is None else settled(progress.probes, early.agree)
        assert found is not None
        progress.cut(found.at)
        progress.close(self.closing, ClosedBy.EARLY_ANSWER)

    def _close_loop(self, progress: TraceProgress) -> None:
        """Close thinking that loops, if asked to after its first round."""
        onset = self.loop_onset(progress.token_ids) if self.thinking.cut_loops else None
        if onset is not None:
            progress.cut(onset)
        progress.close(self.closing, ClosedBy.LOOP)

    def _has_thought(self, progress: TraceProgress, finish_reason: str) -> bool:
        """Whether the model has closed its thinking itself, and the answer is still to come."""
        if self.answer is None or progress.closed_at is not None or finish_reason != "stop":
            return False
        return self.answer.stop_id is None or self.is_closed(progress.token_ids)

    def _start_answer(self, progress: TraceProgress) -> None:
        """From thinking that is over to the answer; a turn that has ended has not."""
        assert self.answer is not None
        while progress.token_ids and progress.token_ids[-1] in self.answer.controls:
            progress.token_ids.pop()
        progress.close(self.answer.opening, None)

    def _thinking_limit(self, max_output_tokens: int) -> int:
        """The most tokens of thinking, with room for an answer after it where one may be needed."""
        budget = self.thinking.budget_tokens or self.sampling.max_tokens
        if not self.thinking.rescue and self.answer is None:
            return min(budget, max_output_tokens)
        left = max_output_tokens - len(self.closing) - self.thinking.answer_tokens
        return min(budget, left if left >= 1 else max_output_tokens)
