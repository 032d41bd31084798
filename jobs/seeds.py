"""Prompts from seeds: each seed with each combination of values, as shards in the job's folder.

A shard holds the prompts of one part of the output and is written once. Its name follows the seeds'
shard, and its footer records the seeds and values it was made from. So the run's ledger finds it
unchanged, and changed seeds or values are detected. Prompts with a benchmark question are left out;
the footer has their rows and the questions.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import groupby, product
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.synthesize_config import PROMPTS
from pipeline import console
from pipeline.config.input import InputConfig
from pipeline.errors import InputError, OutputError
from pipeline.execution.run_input import find_shards_of, list_files
from pipeline.input.rows import read_rows
from pipeline.output.layout import INPUT_SHARDS
from pipeline.planning import Part, Range, split_parts
from pipeline.schema import SOURCE_ROW, UNREADABLE_COLUMN
from pipeline.storage import Storage, map_in_threads

# Settings of the input, beside those of its query, that decide what its files say.
READING = ("types", "subset", "split")
# Key of the footer, and in its JSON the key of the seeds' identity.
FOOTER_KEY, SEEDS, CONTAMINATED = b"qwq-batch.seeds", "seeds", "contaminated"
# Of each prompt of a table: the benchmark question that it has, None for most.
FindContamination = Callable[[pa.Table], Sequence[str | None]]
Values = Mapping[str, Sequence[str | int | float]]


def combinations(values: Values) -> list[dict[str, str | int | float]]:
    """All combinations of ``values`` (a list for each column); the last column varies fastest."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def expanded(seeds: pa.Table, values: Values) -> pa.Table:
    """Each row of ``seeds`` with each combination of ``values`` as additional columns."""
    combined = combinations(values)
    rows = [row for row in range(seeds.num_rows) for _ in combined]
    table = seeds.take(pa.array(rows, pa.int64()))
    for name, column_values in values.items():
        column = [combination[name] for combination in combined] * seeds.num_rows
        table = table.append_column(name, pa.array(column, pa.array(column_values).type))
    return table


def _with_combinations(prompts: pa.Table, combined: int) -> pa.Table:
    """``prompts``, ``combined`` of each seed, with that number added to their source rows.

    So no two prompts have the same, nor have two samples in a run over the traces.
    """
    if combined == 1 or not pa.types.is_string(prompts.schema.field(SOURCE_ROW).type):
        return prompts
    numbers = [str(number) for number in range(combined)] * (prompts.num_rows // combined)
    rows = pc.binary_join_element_wise(prompts[SOURCE_ROW], pa.array(numbers, pa.string()), ":")
    return prompts.set_column(prompts.schema.get_field_index(SOURCE_ROW), SOURCE_ROW, rows)


def _without(prompts: pa.Table, left_out: Iterable[tuple[int, str]]) -> pa.Table:
    rows = {row for row, _ in left_out}
    kept = [row for row in range(prompts.num_rows) if row not in rows]
    return prompts.take(pa.array(kept, pa.int64())) if rows else prompts


class PromptShards:
    """The prompt shards of a job, in the order of the seeds.

    ``seeds``: the job's section `input`. ``output``: URL of the job's folder, with the shards in
    `PROMPTS`, and seeds that are not Parquet as such in `INPUT_SHARDS`. ``rows``: most prompts in
    one shard, which still holds all combinations of a seed. ``find``: what is left out. Raises
    `InputError` if there are no seeds, if they have a column of ``values``, or if a run wrote them.
    Raises `OutputError` if there are shards made from other seeds or values.
    """

    def __init__(
        self,
        seeds: InputConfig,
        output: str,
        values: Values,
        rows: int,
        find: FindContamination = lambda prompts: [None] * len(prompts),
    ) -> None:
        self._store = Storage(f"{output.rstrip('/')}/{PROMPTS}")
        made = Storage(f"{output.rstrip('/')}/{INPUT_SHARDS}")
        found = find_shards_of(list_files(seeds, made, not self._written()), seeds, made)
        if found.stage:
            raise InputError(
                f"input.path {seeds.path} is the output of a run; synthesize.expand, accepted and "
                "benchmarks copy their seeds, which must be files of your own: leave them out, or "
                "write the columns that you need to a Parquet file"
            )
        for note in found.notes:
            console.warn(note)
        self._schema, columns = found.schema, [name.lower() for name in found.schema.names]
        if taken := [name for name in values if name.lower() in columns]:
            raise InputError(
                f"synthesize.expand has {', '.join(taken)}, and the input has a column of that "
                "name; rename the one in expand"
            )
        self._seeds, self._values, self._rows, self._find = seeds, values, rows, find
        self._url, self._source = found.url, found.source
        self._contaminated = dict[str, list[tuple[int, str]]]()
        self._prompts_per_seed = len(combinations(values))
        parts = split_parts(found.shards, max(1, rows // self._prompts_per_seed))
        self._parts = sorted((part for part in parts if part.rows), key=lambda part: part.name)
        if not self._parts:
            condition = " for which input.where holds" if seeds.where else ""
            raise InputError(f"input.path {seeds.path}: the files have no rows{condition}")
        self._check_existing()

    @property
    def folder(self) -> str:
        """URL of the shards."""
        return self._store.url

    @property
    def rows(self) -> int:
        """Number of prompts that the seeds make."""
        return self._prompts_per_seed * sum(part.rows for part in self._parts)

    @property
    def rows_written(self) -> int:
        """Number of prompts that the seeds so far make, those that are left out included."""
        written = self._written()
        seeds = sum(part.rows for part in self._parts if part.name in written)
        return self._prompts_per_seed * seeds

    @property
    def rows_kept(self) -> int:
        """Number of prompts in the shards written so far."""
        return self.rows_written - len(self.contaminated)

    @property
    def contaminated(self) -> list[str]:
        """The benchmark question of each prompt that is left out so far."""
        return [name for left_out in self._contaminated.values() for _, name in left_out]

    def write(self, rows: int) -> int:
        """Write further shards with at least ``rows`` prompts; return their number of prompts."""
        written, count = self._written(), 0
        for part, seeds in self._read(part for part in self._parts if part.name not in written):
            prompts = self._prompts(seeds)
            found = enumerate(self._find(prompts))
            left_out = [(row, name) for row, name in found if name is not None]
            table = _without(prompts, left_out)
            origin = json.dumps({**self._origin(part), CONTAMINATED: left_out}, sort_keys=True)
            table = table.replace_schema_metadata({FOOTER_KEY: origin})
            sink = BytesIO()
            pq.write_table(table, sink, compression="zstd")
            self._store.create(part.name, sink.getvalue())
            self._contaminated[part.name] = left_out
            count += table.num_rows
            if count >= rows:
                break
        return count

    def _prompts(self, seeds: pa.Table) -> pa.Table:
        """Those of ``seeds``."""
        prompts = expanded(seeds, self._values)
        if not self._seeds.query.selects_rows:
            return prompts
        return _with_combinations(prompts, self._prompts_per_seed)

    def _written(self) -> set[str]:
        return {info.name for info in self._store.files()}

    def _read(self, parts: Iterable[Part]) -> Iterator[tuple[Part, pa.Table]]:
        """The seeds of each part; parts of the same shard are read together."""
        for _, shard_parts in groupby(parts, key=lambda part: part.shard):
            todo = list(shard_parts)
            row, read_ahead = todo[0].start, self._schema.empty_table()
            for table in read_rows(self._url, Range(todo[0], row, todo[-1].stop), self._schema):
                if errors := table[UNREADABLE_COLUMN].drop_null():
                    raise InputError(f"{errors[0]}; put a sound copy of the file in its place")
                read_ahead = pa.concat_tables([read_ahead, table.drop_columns(UNREADABLE_COLUMN)])
                while todo and row + read_ahead.num_rows >= todo[0].stop:
                    part = todo.pop(0)
                    yield part, read_ahead.slice(part.start - row, part.rows)
                    row, read_ahead = part.stop, read_ahead.slice(part.stop - row)

    def _origin(self, part: Part) -> dict[str, Any]:
        """What the shard of ``part`` is made from, as its footer records it."""
        return {
            "input.path": Storage(self._source).location,
            **self._seeds.query.settings,
            **{f"input.{name}": value for name in READING if (value := getattr(self._seeds, name))},
            "output.rows_per_part": self._rows,
            "synthesize.expand": [[name, list(values)] for name, values in self._values.items()],
            SEEDS: {"name": part.shard.name, **part.shard.identity},
        }

    def _check_existing(self) -> None:
        """Raise `OutputError` if existing shards were made from other seeds or values."""
        written = self._written()
        parts = [part for part in self._parts if part.name in written]
        recorded = list(map_in_threads(self._recorded_origin, parts))
        for part, before in zip(parts, recorded, strict=True):
            now = self._origin(part)
            self._contaminated[part.name] = [tuple(each) for each in before.get(CONTAMINATED, [])]
            changes = [
                f"  {key}: was {before.get(key)!r}, is now {now.get(key)!r}"
                for key in {**before, **now}
                if key not in (SEEDS, CONTAMINATED) and before.get(key) != now.get(key)
            ]  # fmt: skip
            if changes:
                self._refuse(changes)
        # Seeds that were copied or rewritten have another identity, but can be the same rows.
        touched = [
            part
            for part, before in zip(parts, recorded, strict=True)
            if before.get(SEEDS) != self._origin(part)[SEEDS]
        ]
        for part, seeds in self._read(touched):
            with self._store.open(part.name) as file:
                prompts = _without(self._prompts(seeds), self._contaminated[part.name])
                if not pq.read_table(file).equals(prompts):
                    self._refuse([f"  {part.shard.name} has other rows"])
        if foreign := written - {part.name for part in self._parts}:
            raise OutputError(
                f"{self.folder} has {min(foreign)}, which no seeds in {self._seeds.path} make; put "
                "the seeds back, or choose another output.path"
            )

    def _recorded_origin(self, part: Part) -> dict[str, Any]:
        with self._store.open(part.name) as file:
            try:
                footer = pq.read_schema(file).metadata or {}
            except pa.ArrowInvalid:
                raise OutputError(
                    f"{self.folder}/{part.name} is not one of the prompts that the job has "
                    "written; move it, or choose another output.path"
                ) from None
        origin: dict[str, Any] = json.loads(footer.get(FOOTER_KEY, b"{}"))
        return origin

    def _refuse(self, changes: Sequence[str]) -> NoReturn:
        raise OutputError(
            f"the prompts in {self.folder} were made from other seeds or values:\n"
            + "\n".join(changes)
            + "\nset these back to go on, or choose another output.path"
        )
