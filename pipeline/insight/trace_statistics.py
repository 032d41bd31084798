"""Statistics of the traces in finished parts, and example traces of each state."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.insight.text import error_kind
from pipeline.monitor.figures import STEPS_AN_OCTAVE
from pipeline.output.parts import known_columns, part_metadata, read_footers
from pipeline.reasoning.think_format import State
from pipeline.schema import OUR_COLUMNS, plain_rows
from pipeline.storage import Storage, map_in_threads

TOKEN_COLUMNS = (
    "prompt_tokens", "think_tokens", "answer_tokens", "wasted_tokens", "carried_tokens",
    "probe_tokens",
)  # fmt: skip
COUNTED_COLUMNS = (
    *TOKEN_COLUMNS, "sample", "state", "closed_by", "loop_retries", "attempt", "correct",
    "duplicate_of", "error",
)  # fmt: skip
WITHOUT_RAW = tuple(name for name in OUR_COLUMNS if name != "raw")
EXAMPLES_PER_STATE = 40
# Examples come from at most this many parts, because each of them is read whole.
EXAMPLE_PARTS = 16


@dataclass
class TraceStatistics:
    """Counts of traces.

    ``think`` and ``answer``: traces by `length_bin` of their tokens. ``tokens``: sums by column;
    copies of duplicates count in neither. ``closed``: by the reason why their thinking was closed
    for them, and final state. ``restarted``: final states of traces that were restarted because
    they looped. ``retried``: final states of traces that `retry` has generated again. ``correct``:
    by state and verdict, for rows with a reference. ``errors``: by `error_kind`.
    """

    states: Counter[str] = field(default_factory=Counter)
    think: Counter[int] = field(default_factory=Counter)
    answer: Counter[int] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    closed: Counter[tuple[str, str]] = field(default_factory=Counter)
    restarted: Counter[str] = field(default_factory=Counter)
    retried: Counter[str] = field(default_factory=Counter)
    correct: Counter[tuple[str, bool]] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def traces(self) -> int:
        """Number of traces."""
        return sum(self.states.values())

    @property
    def good(self) -> int:
        """Number of traces that finished or were rescued."""
        return self.states[State.FINISHED] + self.states[State.RESCUED]

    @property
    def output_tokens(self) -> int:
        """Tokens of thinking and answers."""
        return self.tokens["think_tokens"] + self.tokens["answer_tokens"]

    def add(self, table: pa.Table) -> None:
        """Count the traces of ``table``, whose columns are `COUNTED_COLUMNS`."""
        states = table["state"]
        self.states.update(states.to_pylist())
        generated = table.filter(pc.is_null(table["duplicate_of"]))
        for name in TOKEN_COLUMNS:
            self.tokens[name] += pc.sum(generated[name]).as_py() or 0
        ran = generated.filter(pc.not_equal(generated["state"], str(State.FAILED)))
        self.think.update(_length_bins(ran["think_tokens"]))
        self.answer.update(_length_bins(ran["answer_tokens"]))
        self.closed.update((value, state) for state, value in _with_values(table, "closed_by"))
        self.correct.update(_with_values(table, "correct"))
        self.restarted.update(states.filter(pc.greater(table["loop_retries"], 0)).to_pylist())
        self.retried.update(states.filter(pc.greater(table["attempt"], 0)).to_pylist())
        self.errors.update(map(error_kind, table["error"].drop_null().to_pylist()))


def _with_values(table: pa.Table, name: str) -> Iterator[tuple[str, Any]]:
    """State and value of the traces that have a value in column ``name``."""
    valid = table.filter(pc.is_valid(table[name]))
    return zip(valid["state"].to_pylist(), valid[name].to_pylist(), strict=True)


def count(store: Storage, parts: Sequence[str]) -> TraceStatistics:
    """Count all traces of ``parts``, names of finished parts."""
    statistics = TraceStatistics()

    def read(name: str) -> pa.Table:
        names = part_metadata(store, name)["columns"]
        with store.open(name) as file:
            return known_columns(pq.ParquetFile(file), names, COUNTED_COLUMNS)

    for table in map_in_threads(read, parts):
        statistics.add(table)
    return statistics


def examples(store: Storage, parts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Up to `EXAMPLES_PER_STATE` traces of each state, each with the name of its part.

    A trace has our columns by their own names, and the row's own columns in ``input``. The choice
    is random, with a fixed seed.
    """
    metadata = dict(zip(parts, read_footers(store, parts), strict=True))
    chosen = _choose_parts({name: part["summary"]["states"] for name, part in metadata.items()})
    state_columns = {name: metadata[name]["columns"]["state"] for name in chosen}
    for name, numbers in _choose_rows(store, state_columns).items():
        columns: Mapping[str, str] = metadata[name]["columns"]
        has_raw = metadata[name]["settings"].get("output.raw_text")
        trace_columns = OUR_COLUMNS if has_raw else WITHOUT_RAW
        with store.open(name) as file:
            rows = list(_rows(pq.ParquetFile(file), numbers))
        for row in rows:
            named = ((key, columns[key]) for key in columns if key in trace_columns)
            trace = {key: row.pop(column, None) for key, column in named}
            yield name, {**trace, "input": row}


def _choose_parts(states: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Parts that together have every state, filled up to `EXAMPLE_PARTS` with evenly spread ones.

    ``states``: by part, the number of traces in each state.
    """
    chosen: list[str] = []
    for state in State:
        most = max(states, key=lambda name: states[name].get(state, 0), default=None)
        if most is not None and states[most].get(state) and most not in chosen:
            chosen.append(most)
    others = [name for name in states if name not in chosen]
    step = max(1, len(others) // EXAMPLE_PARTS)
    return sorted([*chosen, *others[::step][: max(0, EXAMPLE_PARTS - len(chosen))]])


def _choose_rows(store: Storage, state_columns: Mapping[str, str]) -> dict[str, list[int]]:
    """Row numbers of random traces of each state, by part; one pass over the state columns."""
    rng = random.Random(0)
    by_state: dict[str, list[tuple[float, str, int]]] = {}
    for name, column in state_columns.items():
        with store.open(name) as file:
            states = pq.read_table(file, columns=[column])[column].to_pylist()
        for number, state in enumerate(states):
            # The traces with the highest random keys are a uniform sample.
            heap, keyed = by_state.setdefault(state, []), (rng.random(), name, number)
            if len(heap) < EXAMPLES_PER_STATE:
                heapq.heappush(heap, keyed)
            else:
                heapq.heappushpop(heap, keyed)
    rows: dict[str, list[int]] = {}
    for _, name, number in sorted(
        (keyed for heap in by_state.values() for keyed in heap), key=lambda keyed: keyed[1:]
    ):
        rows.setdefault(name, []).append(number)
    return rows


def _rows(file: pq.ParquetFile, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows with these ascending ``numbers``; only their row groups are read."""
    first = 0
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        in_group = [number - first for number in numbers if first <= number < stop]
        if in_group:
            table = file.read_row_group(group)
            yield from plain_rows(table.take(in_group))
        first = stop


def _length_bins(lengths: pa.ChunkedArray) -> Counter[int]:
    """How many of ``lengths`` are in each `pipeline.monitor.figures.length_bin`; vectorized."""
    values = lengths.to_numpy()
    with np.errstate(divide="ignore"):
        bins = np.where(values < 1, 0, 1 + (STEPS_AN_OCTAVE * np.log2(np.maximum(values, 1))))
    numbers, counts = np.unique(bins.astype(int), return_counts=True)
    return Counter(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
