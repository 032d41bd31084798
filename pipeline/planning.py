"""Divide shards into parts and subtract finished rows; no I/O.

A part is a slice of one shard and becomes one output file, named after the shard. Rows 4096 to
8191 of ``en/shard-00007.parquet`` become ``en/shard-00007.00001.parquet``. Row numbers count from
0 at the start of the shard. Of a shard from which rows are selected, all counts and row numbers are
those of its selected rows.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from pipeline.errors import InputError

PARQUET = ".parquet"


# The runs of a chain in order, each with its ``output`` and a digest of its ``settings``.
Lineage = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class RowSelection:
    """The rows of a file that a run takes.

    ``file_rows``: the number of rows in the file. ``rows``: of the selected ones. ``bits``: one for
    each row of the file, packed and compressed.
    """

    file_rows: int
    rows: int
    bits: bytes

    @classmethod
    def of(cls, chosen: Any) -> "RowSelection":
        """The selection of the rows at which ``chosen``, a bool array of shape (rows,), is true."""
        return cls(len(chosen), int(chosen.sum()), zlib.compress(np.packbits(chosen).tobytes()))

    @property
    def numbers(self) -> Any:
        """The row numbers in the file: ascending int64 array of shape (selected rows,)."""
        bits = np.frombuffer(zlib.decompress(self.bits), np.uint8)
        return np.flatnonzero(np.unpackbits(bits, count=self.file_rows))


@dataclass(frozen=True)
class Shard:
    """One input file.

    ``name``: relative to the input root. ``path``: as the filesystem spells it. ``size``: in bytes.
    ``tag``: the version tag of `pipeline.storage.FileInfo`. ``digest``: of the file's end, where
    Parquet keeps the footer; empty if unknown. ``rows``: those that the run takes, all of the file
    without a ``selection``.
    """

    name: str
    path: str
    rows: int
    size: int
    tag: str
    digest: str = ""
    selection: RowSelection | None = None

    @property
    def file_rows(self) -> int:
        """The number of rows in the file, selected or not."""
        return self.rows if self.selection is None else self.selection.file_rows

    def selecting(self, selection: RowSelection) -> "Shard":
        """The shard, of which the run takes only the rows of ``selection``."""
        return replace(self, rows=selection.rows, selection=selection)

    def selecting_as(self, known: Mapping[str, Any]) -> "Shard":
        """The shard with the selection that an earlier `identity` of the same content records."""
        if "bits" not in known:
            return self
        bits = b64decode(known["bits"])
        return self.selecting(RowSelection(known["rows"], known["selected"], bits))

    @property
    def identity(self) -> dict[str, int | str]:
        """What identifies the file's content, as far as its listing and its end show it.

        And which of its rows are selected, so that these are not looked for again.
        """
        identity: dict[str, int | str] = {
            "rows": self.file_rows, "size": self.size, "tag": self.tag,
        }  # fmt: skip
        if self.digest:
            identity["digest"] = self.digest
        if self.selection is not None:
            identity["selected"] = self.rows
            identity["bits"] = b64encode(self.selection.bits).decode()
        return identity

    def is_unchanged(self, known: Mapping[str, Any]) -> bool:
        """Whether an earlier `identity` is of the same content.

        A copied file has another tag, but the same size and the same end.
        """
        same_tag = known["tag"] == self.tag
        same_end = bool(self.digest) and known.get("digest") == self.digest
        same_rows = (known["rows"], known["size"]) == (self.file_rows, self.size)
        return same_rows and (same_tag or same_end)


@dataclass(frozen=True)
class KnownShards:
    """The shards that an earlier run recorded.

    ``identities``: `Shard.identity` by shard name. ``schema``: the Arrow schema of the input
    columns in the output, None if unknown. ``location``: the input location they were listed from.
    ``lineage``: the runs whose rows they hold; empty if no run wrote them. ``deciding``: the Arrow
    schema of the columns that decide which rows are taken, None if all are.
    """

    identities: Mapping[str, Mapping[str, Any]]
    schema: Any = None
    location: str | None = None
    lineage: Lineage = ()
    deciding: Any = None

    def unchanged(self, location: str, info: Any) -> Mapping[str, Any] | None:
        """The identity of a file if its listing shows that it is unchanged, else None.

        ``info``: its `FileInfo`, listed at ``location``.
        """
        known = self.identities.get(info.name)
        if known is None or self.schema is None or self.location != location:
            return None
        same = (known["size"], known["tag"]) == (info.size, info.tag) and known.get("digest")
        return known if same else None

    def touched(self, shards: Iterable[Shard]) -> list[Shard]:
        """The shards of unchanged content whose tags have changed: they were copied."""
        return [
            shard
            for shard in shards
            if (known := self.identities.get(shard.name)) is not None
            and shard.is_unchanged(known)
            and known["tag"] != shard.tag
        ]

    def are_among(self, shards: Iterable[Shard]) -> bool:
        """Whether all known shards are among ``shards``, with the same names and content."""
        present = {shard.name: shard for shard in shards}
        return bool(self.identities) and all(
            name in present and present[name].is_unchanged(known)
            for name, known in self.identities.items()
        )


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
        """The number of input rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class PartRef:
    """A part's name and rows, short enough to travel with each row through Ray Data."""

    name: str
    start: int
    stop: int

    @classmethod
    def of(cls, part: Part) -> "PartRef":
        """The reference to ``part``."""
        return cls(part.name, part.start, part.stop)

    @classmethod
    def parse(cls, text: str) -> "PartRef":
        """Parse what ``str`` of a reference returned."""
        name, start, stop = text.rsplit(":", 2)
        return cls(name, int(start), int(stop))

    def __str__(self) -> str:
        return f"{self.name}:{self.start}:{self.stop}"

    @property
    def rows(self) -> int:
        """The number of input rows."""
        return self.stop - self.start

    @property
    def shard(self) -> str:
        """The shard's name without its ending and the part's number.

        Seeds derive from it, so they do not depend on ``output.rows_per_part``.
        """
        return self.name.removesuffix(PARQUET).rpartition(".")[0]


# Chosen rows in ascending order, each with its chosen samples.
Picks = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)  # there can be millions
class Range:
    """Rows ``start`` to ``stop`` (exclusive) of a part, still to do.

    ``picks``: do only these rows and samples; None for all rows and samples of the range.
    """

    part: Part
    start: int
    stop: int
    picks: Picks | None = None

    @property
    def rows(self) -> int:
        """The number of input rows to do."""
        return self.stop - self.start if self.picks is None else len(self.picks)

    def clip(self, start: int, stop: int) -> "Range":
        """The piece of the range from ``start`` to ``stop``, which must lie within it."""
        picks = self.picks and tuple(pick for pick in self.picks if start <= pick[0] < stop)
        return Range(self.part, start, stop, picks)

    def split(self, marks: Sequence[int]) -> Iterator[tuple[int, "Range"]]:
        """Split the range where the mark changes; yields each mark with its piece.

        ``marks``: one per row to do, in order.
        """
        rows = (
            range(self.start, self.stop) if self.picks is None else [row for row, _ in self.picks]
        )
        cuts = [i for i in range(1, len(marks)) if marks[i] != marks[i - 1]]
        borders = [self.start, *(rows[i] for i in cuts), self.stop]
        for i, between in zip([0, *cuts], pairwise(borders), strict=True):
            yield marks[i], self.clip(*between)


@dataclass(frozen=True)
class Pass:
    """One pass over all parts: the run itself (number 0), a retry, or a top-up of samples.

    A pass makes the samples ``first`` to ``stop`` (exclusive) of each row. A retry repeats only
    the traces that ended in one of ``states``, or whose share of letters in foreign scripts
    exceeds ``foreign``. A foreign script is one that the prompt does not use. ``changed``: the
    settings that differ from the run's.
    """

    number: int
    first: int
    stop: int
    states: tuple[str, ...] = ()
    changed: tuple[tuple[str, Any], ...] = ()
    foreign: float | None = None

    @property
    def is_retry(self) -> bool:
        """Whether the pass repeats existing traces."""
        return bool(self.states) or self.foreign is not None

    @property
    def attempt(self) -> int:
        """The ``attempt`` in the traces and their seeds: a retry's number, otherwise 0."""
        return self.number if self.is_retry else 0

    @property
    def samples(self) -> tuple[int, ...]:
        """The sample numbers that the pass makes of each row."""
        return tuple(range(self.first, self.stop))


@dataclass(frozen=True)
class Plan:
    """All parts of the run, the number of finished ones, and the ranges still to do."""

    parts: tuple[Part, ...]
    parts_done: int
    todo: tuple[Range, ...]

    @property
    def rows(self) -> int:
        """The number of input rows in all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def rows_todo(self) -> int:
        """The number of input rows still to do."""
        return sum(piece.rows for piece in self.todo)


def split_parts(shards: Iterable[Shard], rows_per_part: int) -> list[Part]:
    """Divide shards into parts of at most ``rows_per_part`` rows, in order.

    An empty shard gets one empty part, so that every shard has an output file. Raises `InputError`
    if two shards would share an output file.
    """
    parts = [
        Part(
            f"{shard.name.removesuffix(PARQUET)}.{i:05d}{PARQUET}",
            shard,
            start,
            min(start + rows_per_part, shard.rows),
        )
        for shard in shards
        for i, start in enumerate(range(0, max(shard.rows, 1), rows_per_part))
    ]
    shard_of: dict[str, str] = {}
    for part in parts:
        if shard_of.setdefault(part.name, part.shard.name) != part.shard.name:
            raise InputError(
                f"the shards {shard_of[part.name]} and {part.shard.name} would share the output "
                f"file {part.name}; rename one"
            )
    return parts


def make_plan(
    parts: Iterable[Part],
    finished: frozenset[str],
    durable: Mapping[str, list[tuple[int, int]]],
    picks: Mapping[str, Picks] | None = None,
) -> Plan:
    """Subtract the ``finished`` parts, and the ``durable`` row ranges of the others.

    ``finished``: part names. ``durable``, ``picks``: by part name. With ``picks``, only those rows
    of those parts are to do; None chooses all rows.
    """
    parts = tuple(parts)
    todo = []
    for part in parts:
        if part.name in finished or (picks is not None and part.name not in picks):
            continue
        whole = Range(part, part.start, part.stop, None if picks is None else picks[part.name])
        open_ranges = gaps(part.start, part.stop, durable.get(part.name, []))
        todo += [piece for piece in (whole.clip(*gap) for gap in open_ranges) if piece.rows]
    return Plan(parts, sum(part.name in finished for part in parts), tuple(todo))


def gaps(start: int, stop: int, ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The pieces of ``start`` to ``stop`` (exclusive) that no range covers, in order."""
    for low, high in sorted(ranges):
        if start < min(low, stop):
            yield start, min(low, stop)
        start = max(start, high)
    if start < stop:
        yield start, stop


def bundles(todo: Sequence[Range], rows: int, last: int = 0) -> Iterator[list[Range]]:
    """Group ``todo``, in order, into lists of at most ``rows`` rows: one read task each.

    ``last``: the number of final rows that make a list of their own, which may exceed ``rows``.
    """
    bundle: list[Range] = []
    before_last = sum(piece.rows for piece in todo) - last if last else 0
    capacity = min(rows, before_last) if before_last > 0 else max(rows, last)
    for piece in todo:
        while piece.rows:
            border = piece.stop
            if piece.rows > capacity:
                border = piece.start + capacity if piece.picks is None else piece.picks[capacity][0]
            bundle.append(piece.clip(piece.start, border))
            capacity -= bundle[-1].rows
            piece = piece.clip(border, piece.stop)
            if capacity == 0:
                before_last -= sum(piece.rows for piece in bundle)
                yield bundle
                bundle = []
                capacity = min(rows, before_last) if before_last > 0 else max(rows, last)
    if bundle:
        yield bundle
