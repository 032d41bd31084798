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

from pipeline.planning import PARQUET, PartRef
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
class JournalEntry:
    """A file of what is not finished: whose part's it is, of which pass, and what it holds.

    That is a finished block with ``rows``, or the running traces of ``engine``.
    """

    part: str
    number: int
    file: FileInfo
    rows: tuple[int, int] | None = None
    engine: str | None = None


@dataclass
class OutputListing:
    """What an output location holds, by pass number: finished parts, and fragments by part."""

    done: dict[int, set[str]] = field(default_factory=dict)
    journal: dict[int, dict[str, list[JournalEntry]]] = field(default_factory=dict)
    passes: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)

    def parts(self, number: int = 0) -> frozenset[str]:
        """The parts that have been through pass ``number``."""
        return frozenset(self.done.get(number, ()))

    def covered(self, number: int) -> dict[str, list[tuple[int, int]]]:
        """Per part, the ranges of rows with a fragment of pass ``number``."""
        journal = self.journal.get(number, {})
        return {part: covered_by(entries) for part, entries in journal.items()}


def sort_listing(files: Iterable[FileInfo]) -> OutputListing:
    """Sort the files of an output location."""
    found = OutputListing()
    for info in files:
        if entry := journal_entry(info):
            parts = found.journal.setdefault(entry.number, {})
            parts.setdefault(entry.part, []).append(entry)
        elif info.name.startswith(f"{PASSES}/"):
            _sort_pass(found, info.name.removeprefix(f"{PASSES}/"))
        elif info.name.endswith(PARQUET) and not info.name.startswith(f"{BOOKKEEPING}/"):
            found.done.setdefault(0, set()).add(info.name)
    return found


def _sort_pass(found: OutputListing, name: str) -> None:
    number, slash, part = name.partition("/")
    if slash and number.isdigit() and part.endswith(DONE):
        found.done.setdefault(int(number), set()).add(part.removesuffix(DONE) + PARQUET)
    elif name.endswith(YAML):
        found.passes.add(int(name.removesuffix(YAML)))
    elif name.endswith(CLOSED):
        found.closed.add(int(name.removesuffix(CLOSED)))


def journal_entry(info: FileInfo) -> JournalEntry | None:
    """What ``info`` is: a fragment or a checkpoint; None if it is neither."""
    folder, _, name = info.name.rpartition("/")
    stem, dot, kind = name.rpartition(".")
    stem, _, number = stem.partition(".")
    if f"{dot}{kind}" == RUNNING and folder.startswith(f"{CHECKPOINTS}/"):
        part = folder.removeprefix(f"{CHECKPOINTS}/") + PARQUET
        return JournalEntry(part, int(number or 0), info, engine=stem)
    if f"{dot}{kind}" != FRAGMENT or not folder.startswith(f"{JOURNAL}/"):
        return None
    part = folder.removeprefix(f"{JOURNAL}/") + PARQUET
    start, _, stop = stem.partition("-")
    return JournalEntry(part, int(number or 0), info, rows=(int(start), int(stop)))


def covered_by(entries: Iterable[JournalEntry]) -> list[tuple[int, int]]:
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


def journal_folder(part: PartRef) -> str:
    """The folder of the part's fragments."""
    return f"{JOURNAL}/{part.name.removesuffix(PARQUET)}"


def checkpoint_folder(part: PartRef) -> str:
    """The folder of the part's checkpoints."""
    return f"{CHECKPOINTS}/{part.name.removesuffix(PARQUET)}"


def fragment_name(part: PartRef, start: int, stop: int, number: int) -> str:
    """The name of the fragment of pass ``number`` with the rows ``start`` to ``stop``."""
    return f"{journal_folder(part)}/{start}-{stop}{_pass_suffix(number)}{FRAGMENT}"


def checkpoint_name(part: PartRef, engine: str, number: int) -> str:
    """The name of ``engine``'s checkpoint in pass ``number``."""
    return f"{checkpoint_folder(part)}/{engine}{_pass_suffix(number)}{RUNNING}"


def done_name(part: PartRef, number: int) -> str:
    """The file whose existence means that the part has been through pass ``number``.

    For pass 0, the run itself, that is the part's own file.
    """
    if number == 0:
        return part.name
    return f"{pass_name(number)}/{part.name.removesuffix(PARQUET)}{DONE}"


def pass_name(number: int) -> str:
    """The stem of the names of pass ``number``."""
    return f"{PASSES}/{number:05}"


def _pass_suffix(number: int) -> str:
    return f".{number}" if number else ""
