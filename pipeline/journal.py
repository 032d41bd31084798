"""The names in an output location, which are its index; pure, no I/O.

    en/shard-00007.00001.parquet                        a finished part
    __qwq/manifest.yaml                                 whose output this is
    __qwq/shards.yaml                                   the shards that it was made from
    __qwq/journal/en/shard-00007.00001/4096-4112.rows   a finished block (Parquet inside)
    __qwq/running/en/shard-00007.00001/1f3c.running     what an engine's running traces have
    __qwq/passes/00001.yaml                             a retry or a top-up
    __qwq/passes/00001/en/shard-00007.00001.done        a part that has been through it
    __qwq/passes/00001.closed                           it is over
    __qwq/lease/00000003.yaml                           the driver at work
    __qwq/record/20260101T000000Z-1f3c.00000.jsonl      figures of each half minute

The files of pass k are called ``4096-4112.k.rows`` and ``1f3c.k.running``. Checkpoints have a
folder of their own: every block looks for some, and finished blocks there can be thousands of.
Hugging Face `datasets` takes any file for data, except in folders whose names begin with two
underscores; other readers of Parquet pass over names that begin with one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.plan import PARQUET, Part
from pipeline.storage import FileInfo

BOOKKEEPING = "__qwq"
MANIFEST = f"{BOOKKEEPING}/manifest.yaml"
SHARDS = f"{BOOKKEEPING}/shards.yaml"
JOURNAL = f"{BOOKKEEPING}/journal"
CHECKPOINTS = f"{BOOKKEEPING}/running"
PASSES = f"{BOOKKEEPING}/passes"
LEASE = f"{BOOKKEEPING}/lease"
RECORD = f"{BOOKKEEPING}/record"
FRAGMENT, RUNNING, DONE, CLOSED, YAML = ".rows", ".running", ".done", ".closed", ".yaml"


@dataclass(frozen=True)
class Extent:
    """A part as its rows carry it through Ray Data: its name and its rows in the shard."""

    name: str
    start: int
    stop: int

    @classmethod
    def of(cls, part: Part) -> "Extent":
        """The extent of ``part``."""
        return cls(part.name, part.start, part.stop)

    @classmethod
    def parse(cls, text: str) -> "Extent":
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

    @property
    def journal(self) -> str:
        """The folder of its fragments."""
        return f"{JOURNAL}/{self.name.removesuffix(PARQUET)}"

    @property
    def checkpoints(self) -> str:
        """The folder of its checkpoints."""
        return f"{CHECKPOINTS}/{self.name.removesuffix(PARQUET)}"

    def fragment(self, start: int, stop: int, number: int) -> str:
        """The name of the fragment of pass ``number`` with the rows ``start`` to ``stop``."""
        return f"{self.journal}/{start}-{stop}{_of_pass(number)}{FRAGMENT}"

    def running(self, engine: str, number: int) -> str:
        """The name of ``engine``'s checkpoint in pass ``number``."""
        return f"{self.checkpoints}/{engine}{_of_pass(number)}{RUNNING}"

    def done(self, number: int) -> str:
        """The name of the mark that this part has been through pass ``number``; 0: the part's."""
        if number == 0:
            return self.name
        return f"{pass_name(number)}/{self.name.removesuffix(PARQUET)}{DONE}"


@dataclass(frozen=True)
class Entry:
    """A file of what is not finished: whose part's it is, of which pass, and what it holds.

    That is a finished block with ``rows``, or the running traces of ``engine``.
    """

    part: str
    number: int
    file: FileInfo
    rows: tuple[int, int] | None = None
    engine: str | None = None


@dataclass
class Contents:
    """What an output location holds, by pass number: finished parts, and fragments by part."""

    done: dict[int, set[str]] = field(default_factory=dict)
    journal: dict[int, dict[str, list[Entry]]] = field(default_factory=dict)
    passes: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)

    def parts(self, number: int = 0) -> frozenset[str]:
        """The parts that have been through pass ``number``."""
        return frozenset(self.done.get(number, ()))

    def covered(self, number: int) -> dict[str, list[tuple[int, int]]]:
        """Per part, the ranges of rows with a fragment of pass ``number``."""
        journal = self.journal.get(number, {})
        return {part: covered_by(entries) for part, entries in journal.items()}


def contents_of(files: Iterable[FileInfo]) -> Contents:
    """Sort the files of an output location."""
    found = Contents()
    for info in files:
        if entry := entry_of(info):
            parts = found.journal.setdefault(entry.number, {})
            parts.setdefault(entry.part, []).append(entry)
        elif info.name.startswith(f"{PASSES}/"):
            _sort_pass(found, info.name.removeprefix(f"{PASSES}/"))
        elif info.name.endswith(PARQUET) and not info.name.startswith(f"{BOOKKEEPING}/"):
            found.done.setdefault(0, set()).add(info.name)
    return found


def _sort_pass(found: Contents, name: str) -> None:
    number, slash, part = name.partition("/")
    if slash and number.isdigit() and part.endswith(DONE):
        found.done.setdefault(int(number), set()).add(part.removesuffix(DONE) + PARQUET)
    elif name.endswith(YAML):
        found.passes.add(int(name.removesuffix(YAML)))
    elif name.endswith(CLOSED):
        found.closed.add(int(name.removesuffix(CLOSED)))


def entry_of(info: FileInfo) -> Entry | None:
    """What ``info`` is: a fragment or a checkpoint; None if it is neither."""
    folder, _, name = info.name.rpartition("/")
    stem, dot, kind = name.rpartition(".")
    stem, _, number = stem.partition(".")
    if f"{dot}{kind}" == RUNNING and folder.startswith(f"{CHECKPOINTS}/"):
        part = folder.removeprefix(f"{CHECKPOINTS}/") + PARQUET
        return Entry(part, int(number or 0), info, engine=stem)
    if f"{dot}{kind}" != FRAGMENT or not folder.startswith(f"{JOURNAL}/"):
        return None
    part = folder.removeprefix(f"{JOURNAL}/") + PARQUET
    start, _, stop = stem.partition("-")
    return Entry(part, int(number or 0), info, rows=(int(start), int(stop)))


def covered_by(entries: Iterable[Entry]) -> list[tuple[int, int]]:
    """The ranges of rows of the fragments among ``entries``."""
    return [entry.rows for entry in entries if entry.rows is not None]


def runs(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Cut a list of row spans where the next does not begin at the end of the one before.

    Returns index ranges. Equal spans side by side are the samples of one row.
    """
    found: list[tuple[int, int]] = []
    begin, before = 0, None
    count = 0
    for i, span in enumerate(spans):
        if before is not None and span not in (before, (before[1], span[1])):
            found.append((begin, i))
            begin = i
        before, count = span, i + 1
    return [*found, (begin, count)] if count else []


def pass_name(number: int) -> str:
    """The stem of the names of pass ``number``."""
    return f"{PASSES}/{number:05}"


def _of_pass(number: int) -> str:
    return f".{number}" if number else ""
