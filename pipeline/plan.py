"""What there is to do: shards to parts, parts less what is done; pure, no I/O.

A part is a slice of one shard and becomes one output file. Its name follows the shard's:
``en/shard-00007.parquet``, rows 4096 to 8191, is ``en/shard-00007.00001.parquet``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.errors import InputError

PARQUET = ".parquet"


@dataclass(frozen=True)
class Shard:
    """One input file: its name below the input's root, its path, rows, size and version tag."""

    name: str
    path: str
    rows: int
    size: int
    tag: str


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` (exclusive) of ``shard``: one file of the output."""

    name: str
    shard: Shard
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many input rows it holds."""
        return self.stop - self.start


@dataclass(frozen=True)
class Range:
    """Rows ``start`` to ``stop`` (exclusive, counted in the shard) of a part, still to do."""

    part: Part
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many input rows it holds."""
        return self.stop - self.start


@dataclass(frozen=True)
class Plan:
    """All parts of the run, how many are done, and the ranges of rows still to do."""

    parts: tuple[Part, ...]
    parts_done: int
    todo: tuple[Range, ...]

    @property
    def rows(self) -> int:
        """Input rows of the whole run."""
        return sum(part.rows for part in self.parts)

    @property
    def rows_todo(self) -> int:
        """Input rows still to do."""
        return sum(piece.rows for piece in self.todo)


def split_parts(shards: Iterable[Shard], rows_per_part: int) -> list[Part]:
    """The parts of all shards, in order. Empty shards have one empty part, so none is forgotten."""
    parts = [
        Part(
            f"{_stem(shard.name)}.{i:05d}{PARQUET}",
            shard,
            start,
            min(start + rows_per_part, shard.rows),
        )
        for shard in shards
        for i, start in enumerate(range(0, max(shard.rows, 1), rows_per_part))
    ]
    names: dict[str, str] = {}
    for part in parts:
        if names.setdefault(part.name, part.shard.name) != part.shard.name:
            raise InputError(
                f"the shards {names[part.name]} and {part.shard.name} would share the output file "
                f"{part.name}; rename one"
            )
    return parts


def make_plan(
    parts: Iterable[Part], done: frozenset[str], fragments: Mapping[str, list[tuple[int, int]]]
) -> Plan:
    """Subtract finished parts and, per part name, the row ranges that have fragments."""
    parts = tuple(parts)
    todo = [
        Range(part, start, stop)
        for part in parts
        if part.name not in done
        for start, stop in missing(part.start, part.stop, fragments.get(part.name, []))
    ]
    return Plan(parts, sum(part.name in done for part in parts), tuple(todo))


def missing(start: int, stop: int, covered: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches of ``start`` to ``stop`` (exclusive) outside the ``covered`` ranges."""
    for low, high in sorted(covered):
        if start < min(low, stop):
            yield start, min(low, stop)
        start = max(start, high)
    if start < stop:
        yield start, stop


def bundles(todo: Iterable[Range], rows: int) -> Iterator[list[Range]]:
    """Group ``todo``, in order, into lists of at most ``rows`` rows: one read task each."""
    bundle: list[Range] = []
    room = rows
    for piece in todo:
        start = piece.start
        while start < piece.stop:
            stop = min(piece.stop, start + room)
            bundle.append(Range(piece.part, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield bundle
                bundle, room = [], rows
    if bundle:
        yield bundle


def _stem(name: str) -> str:
    return name.removesuffix(PARQUET)
