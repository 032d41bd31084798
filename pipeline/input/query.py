"""What a run takes of its input's files: which columns, which rows, and what a row is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.input.column_types import Check, Schemas, fit, plain, unify
from pipeline.input.conditions import Condition, columns_of
from pipeline.input.earlier_run import EarlierRun
from pipeline.input.rows import read_rows
from pipeline.planning import Part, Range, RowSelection, Shard
from pipeline.registry import did_you_mean
from pipeline.schema import SOURCE_ROW, UNREADABLE_COLUMN, row_numbers

Unit = Literal["traces", "rows"]
# A condition is evaluated on so much at once.
ROWS_AT_ONCE, BYTES_AT_ONCE = 32_768, 64 * 2**20


@dataclass(frozen=True)
class InputQuery:
    """What is taken of the files; columns have the names that they have there.

    ``columns``: those to carry, None for all. ``where``: a condition on the rows, as
    `pipeline.input.conditions` describes. ``unit``: what a row is, if a run wrote the files: each
    of its traces, or the first trace of each of its rows for which the condition holds.
    """

    columns: tuple[str, ...] | None = None
    where: str | None = None
    unit: Unit = "traces"

    @property
    def selects_rows(self) -> bool:
        """Whether some rows may be left out."""
        return self.where is not None or self.unit == "rows"

    @property
    def settings(self) -> dict[str, Any]:
        """Those that identify a run, by full name, as far as they differ from taking everything."""
        columns = None if self.columns is None else list(self.columns)
        unit = None if self.unit == "traces" else self.unit
        settings = {"input.columns": columns, "input.where": self.where, "input.unit": unit}
        return {name: value for name, value in settings.items() if value is not None}

    def check_columns(self, present: Iterable[str]) -> None:
        """Raise `InputError` if a column to carry is not among those ``present`` in the files."""
        present = list(present)
        for name in self.columns or ():
            if name not in present:
                raise InputError(f"input.columns: {did_you_mean(name, present, 'column')}")

    def carried(self, schema: pa.Schema, run: EarlierRun | None) -> pa.Schema:
        """The columns that are carried of a file with ``schema``, which ``run`` wrote.

        `SOURCE_ROW` is among them, of whatever type, only if no run wrote the file. Raises
        `InputError` if a column that the run made would be carried under a name that is taken.
        """
        names = {} if run is None else run.carried(schema.names)
        carried = pa.schema(
            [
                field.with_name(names.get(field.name, field.name))
                for field in schema
                if self.columns is None or field.name in self.columns
                if run is None or field.name != SOURCE_ROW
            ]
        )
        for name, new in names.items():
            if carried.names.count(new) > 1:
                raise InputError(
                    f"the input has a column {new}, and that is the name under which {name} of the "
                    "run before is carried; leave one of them out with input.columns, or give "
                    f"that run's another name (output.rename.{name})"
                )
        return carried


ALL = InputQuery()


class RowSelector:
    """Selects the rows of shards as ``query`` says.

    ``schemas``: of all columns of the files. ``run``: the one that wrote them. ``check``: as in
    `unify`. ``recorded``: the `schema` with which other files were selected before; these have to
    fit it. Raises `InputError` if the query or a file does not fit.
    """

    def __init__(
        self,
        query: InputQuery,
        schemas: Schemas,
        run: EarlierRun | None,
        check: Check,
        recorded: pa.Schema | None = None,
    ) -> None:
        schemas = list(schemas)
        self._condition: Condition | None = None
        self._sample: str | None = None
        columns = list[str]()
        if query.where is not None:
            everything = [schema for _, schema in schemas] if recorded is None else [recorded]
            present = dict.fromkeys(name for schema in everything for name in schema.names)
            columns = columns_of(query.where, present)
        if query.unit == "rows":
            if run is None:
                raise InputError(
                    "input.unit is rows, but input.path is not the output of a run (its files have "
                    "no footer of one); leave input.unit out"
                )
            self._sample = run.names["sample"]
        used = [*columns, *([self._sample] if self._sample else [])]
        narrowed = [(n, pa.schema([f for f in schema if f.name in used])) for n, schema in schemas]
        if recorded is None:
            self.schema, _ = unify(narrowed, check)
        else:
            self.schema = plain(recorded)
            fit(narrowed, self.schema, check)
        if query.where is not None:
            types = pa.schema([self.schema.field(name) for name in columns])
            self._condition = Condition(query.where, types)

    def select(self, url: str, shard: Shard) -> RowSelection:
        """The rows to take of ``shard``, a file of the input at ``url``.

        Raises `InputError` if the columns that decide can't be read.
        """
        chosen, samples = list[Any](), list[Any]()
        everything = Range(Part(shard.name, shard, 0, shard.rows), 0, shard.rows)
        for table in _gathered(read_rows(url, everything, self.schema)):
            if errors := table[UNREADABLE_COLUMN].drop_null():
                raise InputError(
                    f"{errors[0]}, so the rows to take can't be told; put a sound copy of the file "
                    "in its place, or take it away"
                )
            holds = np.ones(table.num_rows, bool)
            chosen.append(holds if self._condition is None else self._holds(shard, table))
            if self._sample is not None:
                samples.append(table[self._sample].to_numpy())
        mask = np.concatenate(chosen) if chosen else np.zeros(0, bool)
        return RowSelection.of(_first_of_rows(mask, samples) if samples else mask)

    def _holds(self, shard: Shard, table: pa.Table) -> Any:
        assert self._condition is not None
        try:
            return self._condition.holds(table)
        except InputError as error:
            raise InputError(f"{shard.name}: {error.message}") from None


def _first_of_rows(mask: Any, samples: Sequence[Any]) -> Any:
    """``mask`` of traces with only the first true value of each row; bool array (traces,)."""
    chosen = np.flatnonzero(mask)
    rows = row_numbers(np.concatenate(samples), 0)
    _, firsts = np.unique(rows[chosen], return_index=True)
    first_of_row = np.zeros(len(mask), bool)
    first_of_row[chosen[firsts]] = True
    return first_of_row


def _gathered(tables: Iterable[pa.Table]) -> Iterable[pa.Table]:
    """``tables``, gathered to larger ones."""
    group, rows, size = list[pa.Table](), 0, 0
    for table in tables:
        group.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= ROWS_AT_ONCE or size >= BYTES_AT_ONCE:
            yield pa.concat_tables(group)
            group, rows, size = [], 0, 0
    if group:
        yield pa.concat_tables(group)
