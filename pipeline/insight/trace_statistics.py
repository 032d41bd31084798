"""What an output holds, counted from its finished parts; and some of its traces to look at."""

import heapq
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.monitor.figures import STEPS_AN_OCTAVE
from pipeline.output.parts import known_columns, part_metadata, read_footers
from pipeline.reasoning.think_format import State
from pipeline.schema import TRACE_COLUMNS
from pipeline.storage import Storage, map_in_threads

COUNTED = (
    "sample", "state", "think_tokens", "answer_tokens", "prompt_tokens", "wasted_tokens",
    "carried_tokens", "closed_by", "loop_retries", "attempt", "correct", "duplicate_of", "error",
)  # fmt: skip
WITHOUT_RAW = tuple(name for name in TRACE_COLUMNS if name != "raw")
# Traces to look at: so many of each state, from so many parts, since a part is read whole for it.
TRACES_A_STATE, PARTS_LOOKED_AT = 40, 16


@dataclass
class TraceStatistics:
    """Counts of traces (copies of duplicates left out of tokens and lengths).

    ``closed``: by why their thinking was closed, and how they ended; ``begun_again``: of those that
    went in circles at first, how they ended; ``retried``: of those done again by `retry`;
    ``correct``: right and wrong, by state, where there is a reference.
    """

    states: Counter[str] = field(default_factory=Counter)
    think: Counter[int] = field(default_factory=Counter)
    answer: Counter[int] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    closed: Counter[tuple[str, str]] = field(default_factory=Counter)
    begun_again: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    correct: Counter[tuple[str, bool]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def traces(self) -> int:
        """All of them."""
        return sum(self.states.values())

    def add(self, table: pa.Table) -> None:
        """Count the traces of ``table``, whose columns are `COUNTED`."""
        states = table["state"].to_pylist()
        self.states.update(states)
        generated = table.filter(pc.is_null(table["duplicate_of"]))
        for name in ("prompt_tokens", "think_tokens", "answer_tokens", "wasted_tokens",
                     "carried_tokens"):  # fmt: skip
            self.tokens[name] += pc.sum(generated[name]).as_py() or 0
        ran = generated.filter(pc.not_equal(generated["state"], str(State.FAILED)))
        self.think.update(_bins(ran["think_tokens"]))
        self.answer.update(_bins(ran["answer_tokens"]))
        self._count_pairs(self.closed, table, "closed_by")
        self._count_pairs(self.correct, table, "correct", state_first=True)
        for counter, name in ((self.begun_again, "loop_retries"), (self.retried, "attempt")):
            counter.update(table["state"].filter(pc.greater(table[name], 0)).to_pylist())
        for error in table["error"].drop_null().to_pylist():
            self.errors[reason(error)] += 1

    @staticmethod
    def _count_pairs(
        counter: Counter[Any], table: pa.Table, name: str, state_first: bool = False
    ) -> None:
        there = table.filter(pc.is_valid(table[name]))
        pairs = zip(there[name].to_pylist(), there["state"].to_pylist(), strict=True)
        counter.update((state, value) if state_first else (value, state) for value, state in pairs)


def reason(error: str) -> str:
    """An error's first line, without what differs from row to row."""
    first = (error.strip().splitlines() or [""])[0]
    return re.sub(r"\d[\d,.]*", "N", first)[:200]


def count(store: Storage, parts: Sequence[str]) -> TraceStatistics:
    """Count all traces of finished parts."""
    found = TraceStatistics()

    def read(name: str) -> pa.Table:
        names = part_metadata(store, name)["columns"]
        with store.open(name) as file:
            return known_columns(pq.ParquetFile(file), names, COUNTED)

    for table in map_in_threads(read, parts):
        found.add(table)
    return found


def examples(store: Storage, parts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Some traces of each state, drawn at random but always the same, with their part's name."""
    metadata = dict(zip(parts, read_footers(store, parts), strict=True))
    chosen = _parts_to_look_at(
        {name: found["summary"]["states"] for name, found in metadata.items()}
    )
    rng = random.Random(0)
    drawn: dict[str, list[tuple[float, str, int]]] = {}
    for name in chosen:
        column = metadata[name]["columns"]["state"]
        with store.open(name) as file:
            states = pq.read_table(file, columns=[column])[column].to_pylist()
        for at, state in enumerate(states):
            held, one = drawn.setdefault(state, []), (rng.random(), name, at)
            if len(held) < TRACES_A_STATE:
                heapq.heappush(held, one)
            else:
                heapq.heappushpop(held, one)
    for name in chosen:
        numbers = sorted(at for held in drawn.values() for _, part, at in held if part == name)
        if not numbers:
            continue
        names: Mapping[str, str] = metadata[name]["columns"]
        made = TRACE_COLUMNS if metadata[name]["settings"].get("output.raw_text") else WITHOUT_RAW
        with store.open(name) as file:
            rows = list(_rows(pq.ParquetFile(file), numbers))
        for row in rows:
            ours = {key: row.pop(column, None) for key, column in names.items() if key in made}
            yield name, {**ours, "input": row}


def _rows(file: pq.ParquetFile, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows with these numbers, in order; only their row groups are read."""
    first = 0
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        here = [number - first for number in numbers if first <= number < stop]
        if here:
            table = file.read_row_group(group)
            yield from (table.slice(at, 1).to_pylist()[0] for at in here)
        first = stop


def _parts_to_look_at(states: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Parts that have every state there is, and others up to the number that are looked at."""
    chosen: list[str] = []
    for state in State:
        most = max(states, key=lambda name: states[name].get(state, 0), default=None)
        if most is not None and states[most].get(state) and most not in chosen:
            chosen.append(most)
    others = [name for name in states if name not in chosen]
    step = max(1, len(others) // PARTS_LOOKED_AT)
    return sorted([*chosen, *others[::step][: max(0, PARTS_LOOKED_AT - len(chosen))]])


def _bins(lengths: pa.ChunkedArray) -> Counter[int]:
    """`pipeline.monitor.figures.length_bin` of many lengths."""
    values = lengths.to_numpy()
    with np.errstate(divide="ignore"):
        bins = np.where(values < 1, 0, 1 + (STEPS_AN_OCTAVE * np.log2(np.maximum(values, 1))))
    numbers, counts = np.unique(bins.astype(int), return_counts=True)
    return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
