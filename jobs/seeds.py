"""Seeds to prompts: each row times each combination of values, as shards below the job's folder.

A shard holds as many seeds as make one part of the output, and is written once: its name follows
the seeds' shard, its footer says what it was made of. So the run's ledger finds it unchanged, and
other seeds or other values are told from those it was made of.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby, product
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, OutputError
from pipeline.input.shards import find_shards, read_rows
from pipeline.planning import Part, Range, split_parts
from pipeline.storage import Storage, map_in_threads

MADE_OF, SEEDS = b"qwq-batch.seeds", "seeds"
Values = Mapping[str, Sequence[str | int | float]]


def combinations(values: Values) -> list[dict[str, str | int | float]]:
    """All combinations of ``values`` (a list for each column), the last column's varying first."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def expanded(seeds: pa.Table, values: Values) -> pa.Table:
    """Each row of ``seeds`` times each combination of ``values``, which are columns behind."""
    chosen = combinations(values)
    rows = [row for row in range(seeds.num_rows) for _ in chosen]
    table = seeds.take(pa.array(rows, pa.int64()))
    for name, of in values.items():
        column = [combination[name] for combination in chosen] * seeds.num_rows
        table = table.append_column(name, pa.array(column, pa.array(of).type))
    return table


class PromptShards:
    """The prompts of a job, a shard at a time, in the order of the seeds.

    ``seeds``: their `input.path`. ``folder``: where the shards are to lie. ``rows``: prompts of one
    shard at most (but all combinations of a seed are in one).
    """

    def __init__(self, seeds: str, folder: str, values: Values, rows: int) -> None:
        shards, self._schema = find_shards(seeds)
        if taken := [name for name in values if name in self._schema.names]:
            raise InputError(
                f"synthesize.expand has {', '.join(taken)}, and the input has a column of that "
                "name; give the expanded one another name"
            )
        self._seeds, self._values, self._rows = seeds, values, rows
        self._times = len(combinations(values))
        self._store = Storage(folder)
        parts = split_parts(shards, max(1, rows // self._times))
        self._parts = sorted((part for part in parts if part.rows), key=lambda part: part.name)
        if not self._parts:
            raise InputError(f"input.path {seeds}: the Parquet files have no rows")
        self._check()

    @property
    def folder(self) -> str:
        """Where the shards lie."""
        return self._store.url

    @property
    def rows(self) -> int:
        """All prompts that there can be."""
        return self._times * sum(part.rows for part in self._parts)

    @property
    def rows_written(self) -> int:
        """The prompts of the shards that are there."""
        there = self._written()
        return self._times * sum(part.rows for part in self._parts if part.name in there)

    def write(self, rows: int) -> int:
        """Write the next shards, until they have ``rows`` prompts; returns how many they have."""
        there, wanted, count = self._written(), [], 0
        for part in self._parts:
            if part.name not in there and count < rows:
                wanted.append(part)
                count += self._times * part.rows
        for part, seeds in self._read(wanted):
            table = expanded(seeds, self._values)
            made_of = json.dumps(self._made_of(part), sort_keys=True)
            table = table.replace_schema_metadata({MADE_OF: made_of})
            sink = BytesIO()
            pq.write_table(table, sink, compression="zstd")
            self._store.create(part.name, sink.getvalue())
        return count

    def _written(self) -> set[str]:
        return {info.name for info in self._store.files()}

    def _read(self, parts: Iterable[Part]) -> Iterator[tuple[Part, pa.Table]]:
        """The seeds of each part; those of one shard in one go."""
        for _, of_shard in groupby(parts, key=lambda part: part.shard):
            todo = list(of_shard)
            row, held = todo[0].start, self._schema.empty_table()
            for table in read_rows(self._seeds, Range(todo[0], row, todo[-1].stop), self._schema):
                held = pa.concat_tables([held, table])
                while todo and row + held.num_rows >= todo[0].stop:
                    part = todo.pop(0)
                    yield part, held.slice(part.start - row, part.rows)
                    row, held = part.stop, held.slice(part.stop - row)

    def _made_of(self, part: Part) -> dict[str, Any]:
        return {
            "input.path": Storage(self._seeds).location,
            "output.rows_per_part": self._rows,
            "synthesize.expand": [[name, list(values)] for name, values in self._values.items()],
            SEEDS: {"name": part.shard.name, **part.shard.identity},
        }

    def _check(self) -> None:
        """Raise `OutputError` if shards are there that were made of something else."""
        there, touched = self._written(), []
        found = [part for part in self._parts if part.name in there]
        footers = list(map_in_threads(self._footer, found))
        for part, before in zip(found, footers, strict=True):
            now = self._made_of(part)
            touched += [part] if before.get(SEEDS) != now[SEEDS] else []
            changes = [
                f"  {key}: there {before.get(key)!r}, now {now[key]!r}"
                for key in now if key != SEEDS and before.get(key) != now[key]
            ]  # fmt: skip
            if changes:
                self._refuse(changes)
        # Files that were copied, or written again as they were, look like others.
        for part, seeds in self._read(touched):
            with self._store.open(part.name) as file:
                if not pq.read_table(file).equals(expanded(seeds, self._values)):
                    self._refuse([f"  {part.shard.name} has other rows"])
        if foreign := there - {part.name for part in self._parts}:
            raise OutputError(
                f"{self.folder} has {min(foreign)}, which no seeds in {self._seeds} make; put the "
                "seeds back, or choose another output.path"
            )

    def _footer(self, part: Part) -> dict[str, Any]:
        with self._store.open(part.name) as file:
            made_of = (pq.read_schema(file).metadata or {}).get(MADE_OF, b"{}")
        found: dict[str, Any] = json.loads(made_of)
        return found

    def _refuse(self, changes: Sequence[str]) -> NoReturn:
        raise OutputError(
            f"the prompts in {self.folder} were made of other seeds or values:\n"
            + "\n".join(changes)
            + "\nset these back to go on, or choose another output.path"
        )
