"""The file names of an output location, which serve as its index; no I/O.

    en/shard-00007.00001.parquet                        a finished part
    __qwq/manifest.yaml                                 the settings that identify the run
    __qwq/shards.yaml                                   the input shards and their schema
    __qwq/input/en/shard-00007.parquet                  a shard that was made of another format
    __qwq/journal/en/shard-00007.00001/4096-4112.rows   a fragment: a finished block, as Parquet
    __qwq/running/en/shard-00007.00001/1f3c.running     a checkpoint: one engine's running traces
    __qwq/passes/00001.yaml                             a retry or a top-up
    __qwq/passes/00001/en/shard-00007.00001.done        a part that has finished this pass
    __qwq/passes/00001.closed                           this pass is finished
    __qwq/lease/00000003.yaml                           the driver that holds the lease
    __qwq/workers/1f3c.yaml                             a worker: one of several drivers at once
    __qwq/claims/00000.00000042.json                    which rows of a pass which worker has
    __qwq/record/20260101T000000.000000Z-1f3c.00000.jsonl   figures of each half minute, by driver
    __qwq/engines/20260101T000000.000000Z-1f3c.yaml     what an engine found when it started
    __qwq/pushed.json                                   hashes of the files that were pushed
    __qwq/registered/6b1c….json                         which files of parts an Iceberg table has

Files of pass k are named ``4096-4112.k.rows`` and ``1f3c.k.running``. Checkpoints have a separate
folder, as every block looks for them and there can be thousands of fragments. Hugging Face
`datasets` reads every file as data, except in folders whose names begin with two underscores.
Other Parquet readers ignore names that begin with one.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import InputError
from pipeline.local_disk import FileInfo
from pipeline.planning import PARQUET, Part, PartRef
from pipeline.storage import Storage

BOOKKEEPING = "__qwq"
MANIFEST = f"{BOOKKEEPING}/manifest.yaml"
SHARDS = f"{BOOKKEEPING}/shards.yaml"
INPUT_SHARDS = f"{BOOKKEEPING}/input"
JOURNAL = f"{BOOKKEEPING}/journal"
CHECKPOINTS = f"{BOOKKEEPING}/running"
PASSES = f"{BOOKKEEPING}/passes"
LEASE = f"{BOOKKEEPING}/lease"
WORKERS = f"{BOOKKEEPING}/workers"
CLAIMS = f"{BOOKKEEPING}/claims"
RECORD = f"{BOOKKEEPING}/record"
ENGINES = f"{BOOKKEEPING}/engines"
FRAGMENT, RUNNING, DONE, CLOSED = ".rows", ".running", ".done", ".closed"
YAML, JSON = ".yaml", ".json"
# Room for the names of fragments and checkpoints in a part's folders.
_LONGEST_BELOW = 64
_NUMBER = re.compile(r"[0-9]+")
_FRAGMENT = re.compile(r"(?P<start>[0-9]+)-(?P<stop>[0-9]+)(?:\.(?P<number>[0-9]+))?\.rows")
_CHECKPOINT = re.compile(r"(?P<engine>[^. ]+)(?:\.(?P<number>[0-9]+))?\.running")
_PASS_FILE = re.compile(r"(?P<number>[0-9]+)(?P<kind>\.yaml|\.closed)")


@dataclass(frozen=True)
class JournalEntry:
    """A fragment or a checkpoint of an unfinished part.

    ``part``: the part's name. ``pass_number``: 0 is the run itself. A fragment has ``rows`` (start,
    stop), a checkpoint the name of its ``engine``.
    """

    part: str
    pass_number: int
    file: FileInfo
    rows: tuple[int, int] | None = None
    engine: str | None = None


@dataclass
class OutputListing:
    """The files of an output location by their meaning.

    ``done``: names of finished parts, by pass number. ``journal``: fragments and checkpoints, by
    pass number and part name. ``passes``, ``closed``: numbers of opened and of closed passes.
    """

    done: dict[int, set[str]] = field(default_factory=dict)
    journal: dict[int, dict[str, list[JournalEntry]]] = field(default_factory=dict)
    passes: set[int] = field(default_factory=set)
    closed: set[int] = field(default_factory=set)

    def finished_parts(self, pass_number: int = 0) -> frozenset[str]:
        """The names of the parts that have finished the pass."""
        return frozenset(self.done.get(pass_number, ()))

    def durable_ranges(self, pass_number: int) -> dict[str, list[tuple[int, int]]]:
        """The row ranges with a fragment of the pass, by part name; of unfinished parts."""
        journal = self.journal.get(pass_number, {})
        return {part: ranges_of(entries) for part, entries in journal.items()}


def parse_listing(files: Iterable[FileInfo]) -> OutputListing:
    """Sort the files of an output location by their names; unknown names are ignored."""
    listing = OutputListing()
    for info in files:
        if entry := parse_journal_name(info):
            parts = listing.journal.setdefault(entry.pass_number, {})
            parts.setdefault(entry.part, []).append(entry)
        elif info.name.startswith(f"{PASSES}/"):
            _add_pass_file(listing, info.name.removeprefix(f"{PASSES}/"))
        elif info.name.endswith(PARQUET) and not info.name.startswith(f"{BOOKKEEPING}/"):
            listing.done.setdefault(0, set()).add(info.name)
    return listing


def _add_pass_file(listing: OutputListing, name: str) -> None:
    number, slash, part = name.partition("/")
    if slash and _NUMBER.fullmatch(number) and part.endswith(DONE):
        listing.done.setdefault(int(number), set()).add(part.removesuffix(DONE) + PARQUET)
    elif found := _PASS_FILE.fullmatch(name):
        numbers = listing.passes if found["kind"] == YAML else listing.closed
        numbers.add(int(found["number"]))


def parse_journal_name(info: FileInfo) -> JournalEntry | None:
    """The fragment or checkpoint that ``info`` names; None if it is neither.

    What other programs leave beside our files (``._0-4.rows``, ``0-4 (1).rows``) is neither.
    """
    folder, _, name = info.name.rpartition("/")
    if (found := _CHECKPOINT.fullmatch(name)) and folder.startswith(f"{CHECKPOINTS}/"):
        part = folder.removeprefix(f"{CHECKPOINTS}/") + PARQUET
        return JournalEntry(part, int(found["number"] or 0), info, engine=found["engine"])
    if not (found := _FRAGMENT.fullmatch(name)) or not folder.startswith(f"{JOURNAL}/"):
        return None
    part = folder.removeprefix(f"{JOURNAL}/") + PARQUET
    rows = int(found["start"]), int(found["stop"])
    return JournalEntry(part, int(found["number"] or 0), info, rows=rows)


def ranges_of(entries: Iterable[JournalEntry]) -> list[tuple[int, int]]:
    """The row ranges of the fragments among ``entries``."""
    return [entry.rows for entry in entries if entry.rows is not None]


def check_names(parts: Iterable[Part], store: Storage) -> None:
    """Raise `InputError` if ``store`` can't have a file that a part needs: its name is too long."""
    name_bytes, path_bytes = store.name_limits
    for part in parts:
        longest = f"{CHECKPOINTS}/{part.name}".encode()
        name_size = max(map(len, longest.split(b"/")))
        path_size = len(os.fsencode(store.root)) + len(longest) + _LONGEST_BELOW
        excess = max(name_size - name_bytes, path_size - path_bytes)
        if excess > 0:
            raise InputError(
                f"the shard {part.shard.name} has too long a name: {store.url} takes names of "
                f"{name_bytes} bytes and paths of {path_bytes}, and files named after the shard "
                f"would have {excess} bytes more; shorten the name, or output.path"
            )


def contiguous(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Divide a list of row spans (start, stop) where rows are missing in between.

    Returns the index ranges of the pieces. Equal neighbors are the samples of one row.
    """
    pieces: list[tuple[int, int]] = []
    begin = 0
    for i in range(1, len(spans)):
        previous, span = spans[i - 1], spans[i]
        if span != previous and span[0] != previous[1]:
            pieces.append((begin, i))
            begin = i
    return [*pieces, (begin, len(spans))] if spans else []


def journal_folder(part: PartRef) -> str:
    """The folder of a part's fragments."""
    return f"{JOURNAL}/{part.name.removesuffix(PARQUET)}"


def checkpoint_folder(part: PartRef) -> str:
    """The folder of a part's checkpoints."""
    return f"{CHECKPOINTS}/{part.name.removesuffix(PARQUET)}"


def fragment_name(part: PartRef, start: int, stop: int, pass_number: int) -> str:
    """The name of the fragment with rows ``start`` to ``stop`` (exclusive) of a pass."""
    return f"{journal_folder(part)}/{start}-{stop}{_pass_suffix(pass_number)}{FRAGMENT}"


def checkpoint_name(part: PartRef, engine: str, pass_number: int) -> str:
    """The name of an engine's checkpoint of a part in a pass."""
    return f"{checkpoint_folder(part)}/{engine}{_pass_suffix(pass_number)}{RUNNING}"


def done_name(part: PartRef, pass_number: int) -> str:
    """The file whose existence means that the part has finished the pass.

    For pass 0, the run itself, it is the part's own file.
    """
    if pass_number == 0:
        return part.name
    return f"{pass_name(pass_number)}/{part.name.removesuffix(PARQUET)}{DONE}"


def pass_name(pass_number: int) -> str:
    """The common beginning of a pass's file names."""
    return f"{PASSES}/{pass_number:05}"


def _pass_suffix(pass_number: int) -> str:
    return f".{pass_number}" if pass_number else ""
