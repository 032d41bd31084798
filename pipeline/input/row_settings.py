"""Checks the settings that rows bring along, all of them, before a run starts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.answers.references import as_written
from pipeline.errors import InputError
from pipeline.input.rows import read_rows
from pipeline.planning import Part, Range, Shard
from pipeline.reasoning.row_settings import FIELDS, RowSettings, read_settings
from pipeline.reasoning.sampling import SamplingPolicy
from pipeline.schema import UNREADABLE_COLUMN, plain_value
from pipeline.storage import map_in_threads

# Wrong rows that are named, and kept of one shard.
MAX_NAMED = 20


@dataclass
class SettingsByRow:
    """What the rows of an input set themselves.

    ``rows``: of the input. ``fields``: how many rows set each. ``own``: how many set any;
    ``greedy``: how many ask for greedy decoding. ``max_tokens``: the largest limit of any row, the
    run's own for rows without one; 0 without rows.
    """

    column: str
    rows: int = 0
    own: int = 0
    greedy: int = 0
    max_tokens: int = 0
    fields: Counter[str] = field(default_factory=Counter)

    def add(self, settings: RowSettings, policy: SamplingPolicy) -> None:
        """Count one row. ``policy``: the run's."""
        self.rows += 1
        self.own += bool(settings.names)
        self.greedy += settings.is_greedy
        self.max_tokens = max(self.max_tokens, settings.applied(policy).max_tokens)
        self.fields.update(settings.names)

    def join(self, other: "SettingsByRow") -> None:
        """Count the rows of ``other`` too."""
        self.rows, self.own = self.rows + other.rows, self.own + other.own
        self.greedy += other.greedy
        self.max_tokens = max(self.max_tokens, other.max_tokens)
        self.fields.update(other.fields)

    def notes(self) -> Iterator[str]:
        """What people should know, a line each."""
        names = ", ".join(name for name in FIELDS if self.fields[name])
        yield (
            f"{self.own:,} of {self.rows:,} rows have settings of their own, which go before the "
            f"run's (input.sampling_column {self.column}: {names or 'none'})"
        )
        if self.greedy:
            yield (
                f"{self.greedy:,} rows ask for greedy decoding (temperature 0 or top_k 1), with "
                "which reasoning models loop"
            )


def check_settings_type(schema: pa.Schema, column: str) -> None:
    """Raise `InputError` unless ``column`` can hold settings: objects, or text."""
    if column not in schema.names:
        raise InputError(
            f"input.sampling_column is {column}, but the input has only the columns "
            f"{', '.join(schema.names)}"
        )
    type_ = schema.field(column).type
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
    kinds = (pa.types.is_struct, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(is_kind(type_) for is_kind in kinds):
        raise InputError(
            f"input.sampling_column {column} is of type {type_}; it must hold objects with some "
            f"of {', '.join(FIELDS)}, or JSON text of such objects"
        )


def check_row_settings(
    input_url: str, shards: Sequence[Shard], schema: pa.Schema, column: str, policy: SamplingPolicy
) -> SettingsByRow:
    """Read the settings of all rows of ``shards``; raises `InputError` that names the wrong ones.

    ``schema``: of the input. ``policy``: the run's. Rows that can't be read are left out: the run
    says so, and does the others.
    """
    found, errors, wrong = SettingsByRow(column), list[str](), 0
    only = pa.schema([schema.field(column)])
    for of_shard, of_errors, count in map_in_threads(
        lambda shard: _of_shard(input_url, shard, only, policy), shards
    ):
        found.join(of_shard)
        errors += of_errors
        wrong += count
    if wrong:
        named = "\n".join(errors[:MAX_NAMED])
        more = f"\n  and {wrong - MAX_NAMED:,} more" if wrong > MAX_NAMED else ""
        raise InputError(
            f"{wrong:,} rows have settings that can't be used, so nothing was started (rows are "
            f"counted from 0):\n{named}{more}"
        )
    return found


def _of_shard(
    input_url: str, shard: Shard, only: pa.Schema, policy: SamplingPolicy
) -> tuple[SettingsByRow, list[str], int]:
    """The settings of one shard; errors, `MAX_NAMED` at most; and how many there are."""
    [column] = only.names
    found, errors, wrong, begin = SettingsByRow(column), list[str](), 0, 0
    whole = Range(Part(shard.name, shard, 0, shard.rows), 0, shard.rows)
    for table in read_rows(input_url, whole, only):
        cells = zip(table[column], table[UNREADABLE_COLUMN].to_pylist(), strict=True)
        for row, (cell, unreadable) in enumerate(cells, begin):
            if unreadable is None:
                try:
                    found.add(_read(cell), policy)
                except ValueError as error:
                    wrong += 1
                    if wrong <= MAX_NAMED:
                        errors.append(f"  {shard.name}, row {row}, column {column}: {error}")
        begin += table.num_rows
    return found, errors, wrong


def _read(cell: pa.Scalar) -> RowSettings:
    try:
        return read_settings(as_written(cell.as_py(), cell.type))
    except UnicodeDecodeError:
        raise ValueError(f"is not UTF-8: {plain_value(cell)!r:.60}") from None
