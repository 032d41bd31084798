"""The counts of an output, from the footers of its finished parts; no rows are read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pipeline.output.answers import not_compared_lines
from pipeline.output.early import EarlySummary
from pipeline.output.ledger import Ledger
from pipeline.output.made_by import EngineMark, distinct_engines
from pipeline.output.parts import AGREE, SAMPLES, read_footers
from pipeline.planning import Part, Shard, split_parts
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage


@dataclass(frozen=True)
class Summary:
    """The counts of a run's output.

    ``expected``, ``expected_rows``: traces and rows of a complete output; ``traces`` and ``rows``
    are in finished parts. ``states``: traces by state. ``duplicates``: traces copied from a row
    with the same prompt, which the token counts omit. ``unreadable``: failed traces of rows that
    could not be read from the input. ``missing_parts``: names of unfinished parts. ``agree``: the
    setting ``sampling.agree``. ``answers``: as `AnswerCounts` counts them; older versions did not.
    ``early``: what closing thinking early saves and costs; None if the run does not do that.
    ``engines``: those that made the traces.
    """

    expected: int
    expected_rows: int
    rows: int
    traces: int
    states: Counter[str]
    prompt_tokens: int
    think_tokens: int
    answer_tokens: int
    carried_tokens: int
    missing_parts: tuple[str, ...]
    duplicates: int = 0
    agree: int | None = None
    answers: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    early: EarlySummary | None = None
    engines: tuple[EngineMark, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every input row has all its samples, in whatever state.

        With ``sampling.agree``, a row is complete with fewer samples.
        """
        has_all_rows = self.rows == self.expected_rows and not self.missing_parts
        return has_all_rows and (self.agree is not None or self.traces == self.expected)

    @property
    def damage(self) -> str:
        """What to do about rows that could not be read from the input; empty if there are none."""
        if not self.unreadable:
            return ""
        return (
            f"{self.unreadable:,} traces failed because the input is damaged at their rows; the "
            "column error names the files. Put sound copies in their place, then run qwq-batch "
            "retry CONFIG --state failed (if it says that they have changed, do as it says)"
        )

    @property
    def output_tokens(self) -> int:
        """The think and answer tokens together."""
        return self.think_tokens + self.answer_tokens

    def lines(self) -> Iterator[str]:
        """The summary as lines of text for people."""
        for state in State:
            if count := self.states.get(state, 0):
                yield f"{state:<10} {count:>9,} traces  {count / max(1, self.traces):>6.1%}"
        if self.agree is not None and not self.missing_parts:
            spared = self.expected - self.traces
            yield (
                f"{'agreement':<10} {spared:>9,} samples not needed, "
                f"{spared / max(1, self.expected):.1%} (drawn until {self.agree} agree)"
            )
        if self.duplicates:
            yield (
                f"{'duplicates':<10} {self.duplicates:>9,} traces, each copied from a row with the "
                "same prompt"
            )
        if judged := self.answers["right"] + self.answers["wrong"]:
            right = self.answers["right"]
            yield f"{'correct':<10} {right:>9,} of {judged:,} compared  {right / judged:>6.1%}"
        for line in not_compared_lines(self.answers):
            yield f"{'no verdict':<10} {line}"
        yield (
            f"{'tokens':<10} {self.prompt_tokens:>9,} prompt, {self.think_tokens:,} think, "
            f"{self.answer_tokens:,} answer"
            + (f" ({self.carried_tokens:,} carried over)" if self.carried_tokens else "")
        )
        if self.early is not None:
            yield from self.early.lines()
            if self.early.warning is not None:
                yield self.early.warning


def recorded_parts(ledger: Ledger, rows_per_part: int) -> list[Part]:
    """The parts of an output by its own record of shards."""
    shards = [
        Shard(name, name, each["rows"], each["size"], each["tag"]).selecting_as(each)
        for name, each in sorted(ledger.known_shards().identities.items())
    ]
    return list(split_parts(shards, rows_per_part))


def recorded_summary(ledger: Ledger) -> Summary:
    """The summary of an output by its own record of settings and shards; there has to be a run."""
    manifest = ledger.manifest()
    assert manifest is not None
    settings = manifest["settings"]
    parts = recorded_parts(ledger, settings["output.rows_per_part"])
    return summarize(ledger.store, parts, settings[SAMPLES], settings.get(AGREE))


def summarize(
    store: Storage,
    parts: Iterable[Part],
    samples: int,
    agree: int | None = None,
    floor: ControlGroup | None = None,
) -> Summary:
    """Add up the footers of the run's finished parts.

    ``samples``: of each row; with ``agree``, the most that a row can have. ``floor``: of the
    agreement of early answers. Raises `OutputError` if a part was not written by qwq-batch.
    """
    parts = list(parts)
    files = {info.name for info in store.files()}
    finished = [part.name for part in parts if part.name in files]
    footers = list(read_footers(store, finished))
    summaries = [footer["summary"] for footer in footers]
    states: Counter[str] = Counter()
    answers: Counter[str] = Counter()
    for summary in summaries:
        states.update(summary["states"])
        answers.update(summary.get("answers", {}))
    return Summary(
        expected=sum(part.rows for part in parts) * samples,
        expected_rows=sum(part.rows for part in parts),
        rows=sum(summary["rows"] for summary in summaries),
        traces=sum(summary["traces"] for summary in summaries),
        states=states,
        prompt_tokens=sum(summary["prompt_tokens"] for summary in summaries),
        think_tokens=sum(summary["think_tokens"] for summary in summaries),
        answer_tokens=sum(summary["answer_tokens"] for summary in summaries),
        carried_tokens=sum(summary["carried_tokens"] for summary in summaries),
        missing_parts=tuple(part.name for part in parts if part.name not in files),
        duplicates=sum(summary.get("duplicates", 0) for summary in summaries),
        agree=agree,
        answers=answers,
        unreadable=sum(summary.get("unreadable", 0) for summary in summaries),
        early=EarlySummary.of_parts(summaries, floor),
        engines=distinct_engines(footers),
    )
