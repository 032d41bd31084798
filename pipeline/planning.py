"""What there is to do: shards to parts, parts less what is done; pure, no I/O.

A part is a slice of one shard and becomes one output file. Its name follows the shard's:
``en/shard-00007.parquet``, rows 4096 to 8191, is ``en/shard-00007.00001.parquet``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

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

    @property
    def identity(self) -> dict[str, int | str]:
        """What tells its content from another under the same name, as far as a listing shows."""
        return {"rows": self.rows, "size": self.size, "tag": self.tag}


@dataclass(frozen=True)
class KnownShards:
    """The shards that a run has seen before, by name, as their `Shard.identity`.

    ``schema``: of Arrow, that all of them fit; None if that is not known. ``location``: of the
    input that they belong to.
    """

    identities: Mapping[str, Mapping[str, Any]]
    schema: Any = None
    location: str | None = None

    def among(self, location: str, files: Iterable[Any]) -> "KnownShards":
        """The same if ``files``, listed at ``location``, are as they were; else none is known.

        Files that are new do not matter.
        """
        changed = any(
            (known["size"], known["tag"]) != (info.size, info.tag)
            for info in files
            if (known := self.identities.get(info.name)) is not None
        )
        unknown = changed or self.schema is None or self.location != location
        return NONE_KNOWN if unknown else self


NONE_KNOWN = KnownShards({})


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


Picks = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)  # there can be millions
class Range:
    """Rows ``start`` to ``stop`` (exclusive, counted in the shard) of a part, still to do.

    ``picks``: only these rows and of each only these samples; None for all.
    """

    part: Part
    start: int
    stop: int
    picks: Picks | None = None

    @property
    def rows(self) -> int:
        """How many input rows are to be done."""
        return self.stop - self.start if self.picks is None else len(self.picks)

    def cut(self, start: int, stop: int) -> "Range":
        """The same between ``start`` and ``stop``."""
        picks = self.picks and tuple(pick for pick in self.picks if start <= pick[0] < stop)
        return Range(self.part, start, stop, picks)

    def split(self, marks: Sequence[int]) -> Iterator[tuple[int, "Range"]]:
        """The same, cut where the mark changes, each with its mark; a mark for each row to do."""
        rows = (
            range(self.start, self.stop) if self.picks is None else [row for row, _ in self.picks]
        )
        cuts = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
        borders = [self.start, *(rows[i] for i in cuts), self.stop]
        for i, between in zip([0, *cuts], pairwise(borders), strict=True):
            yield marks[i], self.cut(*between)


@dataclass(frozen=True)
class Pass:
    """One going over parts: the run itself (number 0), a retry, or a top-up with more samples.

    Each row is given the samples ``first`` to ``stop`` (exclusive). A retry does again only what
    ended in one of ``states``, or has more than the share ``foreign`` of letters in scripts that
    its prompt does not use. ``changed``: its settings that are not the run's.
    """

    number: int
    first: int
    stop: int
    states: tuple[str, ...] = ()
    changed: tuple[tuple[str, Any], ...] = ()
    foreign: float | None = None

    @property
    def is_retry(self) -> bool:
        """Whether it does traces again, rather than for the first time."""
        return bool(self.states) or self.foreign is not None

    @property
    def attempt(self) -> int:
        """What its seeds and its traces' ``attempt`` hold: a retry's number, otherwise 0."""
        return self.number if self.is_retry else 0

    @property
    def samples(self) -> tuple[int, ...]:
        """The samples of each row."""
        return tuple(range(self.first, self.stop))


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
    parts: Iterable[Part],
    done: frozenset[str],
    covered: Mapping[str, list[tuple[int, int]]],
    picks: Mapping[str, Picks] | None = None,
) -> Plan:
    """Subtract finished parts and, per part name, the row ranges that have fragments.

    ``picks``: of these parts only these rows, of all others nothing; None for everything.
    """
    parts = tuple(parts)
    todo = []
    for part in parts:
        if part.name in done or (picks is not None and part.name not in picks):
            continue
        whole = Range(part, part.start, part.stop, None if picks is None else picks[part.name])
        gaps = missing(part.start, part.stop, covered.get(part.name, []))
        todo += [piece for piece in (whole.cut(*gap) for gap in gaps) if piece.rows]
    return Plan(parts, sum(part.name in done for part in parts), tuple(todo))


def missing(start: int, stop: int, covered: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches of ``start`` to ``stop`` (exclusive) outside the ``covered`` ranges."""
    for low, high in sorted(covered):
        if start < min(low, stop):
            yield start, min(low, stop)
        start = max(start, high)
    if start < stop:
        yield start, stop


def bundles(todo: Sequence[Range], rows: int, last: int = 0) -> Iterator[list[Range]]:
    """Group ``todo``, in order, into lists of at most ``rows`` rows: one read task each.

    The ``last`` rows are in a list of their own.
    """
    bundle: list[Range] = []
    before = sum(piece.rows for piece in todo) - last if last else 0
    room = min(rows, before) if before > 0 else max(rows, last)
    for piece in todo:
        while piece.rows:
            border = piece.stop
            if piece.rows > room:
                border = piece.start + room if piece.picks is None else piece.picks[room][0]
            bundle.append(piece.cut(piece.start, border))
            room -= bundle[-1].rows
            piece = piece.cut(border, piece.stop)
            if room == 0:
                before -= sum(piece.rows for piece in bundle)
                yield bundle
                bundle, room = [], min(rows, before) if before > 0 else max(rows, last)
    if bundle:
        yield bundle


def _stem(name: str) -> str:
    return name.removesuffix(PARQUET)


@dataclass(frozen=True)
class PartRef:
    """A part as its rows carry it through Ray Data: its name and its rows in the shard."""

    name: str
    start: int
    stop: int

    @classmethod
    def of(cls, part: Part) -> "PartRef":
        """The ref of ``part``."""
        return cls(part.name, part.start, part.stop)

    @classmethod
    def parse(cls, text: str) -> "PartRef":
        """The inverse of ``str``."""
        name, start, stop = text.rsplit(":", 2)
        return cls(name, int(start), int(stop))

    def __str__(self) -> str:
        return f"{self.name}:{self.start}:{self.stop}"

    @property
    def rows(self) -> int:
        """How many input rows it holds."""
        return self.stop - self.start

    @property
    def shard(self) -> str:
        """The shard's name: without the part's number, so that seeds follow the shard."""
        return self.name.removesuffix(PARQUET).rpartition(".")[0]
