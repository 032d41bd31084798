"""What came out: counts from the footers of the finished parts, no rows read."""

from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.output.parts import part_metadata
from pipeline.planning import Part
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage

FOOTER_THREADS = 32


@dataclass(frozen=True)
class Summary:
    """A run's output: traces expected and present, by state, tokens, and parts that lack.

    ``duplicates``: traces copied from a row with the same prompt; their tokens are not counted.
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

    @property
    def is_complete(self) -> bool:
        """Whether every input row is there with all its samples, whatever their states.

        Where samples are drawn until enough ``agree``, each row has those that it took.
        """
        there = self.rows == self.expected_rows and not self.missing_parts
        return there and (self.agree is not None or self.traces == self.expected)

    @property
    def output_tokens(self) -> int:
        """All tokens that the engines generated for these traces."""
        return self.think_tokens + self.answer_tokens

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
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
        yield (
            f"{'tokens':<10} {self.prompt_tokens:>9,} prompt, {self.think_tokens:,} think, "
            f"{self.answer_tokens:,} answer"
            + (f" ({self.carried_tokens:,} carried over)" if self.carried_tokens else "")
        )


def summarize(
    store: Storage, parts: Iterable[Part], samples: int, agree: int | None = None
) -> Summary:
    """Add up the footers of the run's parts; parts that are not there are named.

    ``samples``: how many each row has, at most if they are drawn until enough ``agree``.
    """
    parts = list(parts)
    present = {info.name for info in store.files()}
    there = [part.name for part in parts if part.name in present]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        found = list(pool.map(lambda name: part_metadata(store, name)["summary"], there))
    states: Counter[str] = Counter()
    for summary in found:
        states.update(summary["states"])
    return Summary(
        expected=sum(part.rows for part in parts) * samples,
        expected_rows=sum(part.rows for part in parts),
        rows=sum(summary["rows"] for summary in found),
        traces=sum(summary["traces"] for summary in found),
        states=states,
        prompt_tokens=sum(summary["prompt_tokens"] for summary in found),
        think_tokens=sum(summary["think_tokens"] for summary in found),
        answer_tokens=sum(summary["answer_tokens"] for summary in found),
        carried_tokens=sum(summary["carried_tokens"] for summary in found),
        missing_parts=tuple(part.name for part in parts if part.name not in present),
        duplicates=sum(summary.get("duplicates", 0) for summary in found),
        agree=agree,
    )
