"""What came out: counts from the footers of the finished parts, no rows read."""

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import OutputError
from pipeline.ledger import METADATA_KEY
from pipeline.plan import Plan
from pipeline.reasoning import State
from pipeline.storage import Storage

FOOTER_THREADS = 32


@dataclass(frozen=True)
class Summary:
    """A run's output: traces expected and present, by state, tokens, and parts that lack."""

    expected: int
    traces: int
    states: Counter[str]
    prompt_tokens: int
    think_tokens: int
    answer_tokens: int
    missing_parts: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every input row is there with all its samples, whatever their states."""
        return not self.missing_parts and self.traces == self.expected

    @property
    def output_tokens(self) -> int:
        """All tokens that the engines generated for these traces."""
        return self.think_tokens + self.answer_tokens

    def lines(self) -> Iterator[str]:
        """The summary as a person reads it."""
        for state in State:
            if count := self.states.get(state, 0):
                yield f"{state:<10} {count:>9,} traces  {count / max(1, self.traces):>6.1%}"
        yield (
            f"{'tokens':<10} {self.prompt_tokens:>9,} prompt, {self.think_tokens:,} think, "
            f"{self.answer_tokens:,} answer"
        )


def summarize(store: Storage, plan: Plan, samples: int) -> Summary:
    """Add up the footers of the plan's parts; parts that are not there are named."""
    present = {info.name for info in store.files()}
    there = [part.name for part in plan.parts if part.name in present]
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        parts = list(pool.map(lambda name: part_metadata(store, name)["summary"], there))
    states: Counter[str] = Counter()
    for part in parts:
        states.update(part["states"])
    return Summary(
        expected=plan.rows * samples,
        traces=sum(part["traces"] for part in parts),
        states=states,
        prompt_tokens=sum(part["prompt_tokens"] for part in parts),
        think_tokens=sum(part["think_tokens"] for part in parts),
        answer_tokens=sum(part["answer_tokens"] for part in parts),
        missing_parts=tuple(part.name for part in plan.parts if part.name not in present),
    )


def part_metadata(store: Storage, name: str) -> dict[str, Any]:
    """What a finished part says of its making: columns, settings, versions, summary."""
    with store.open(name) as file:
        found = pq.read_metadata(file).metadata or {}
    if METADATA_KEY not in found:
        raise OutputError(f"{store.path(name)} was not written by qwq-batch")
    data: dict[str, Any] = json.loads(found[METADATA_KEY])
    return data
