"""The files that a job makes beside its traces; it replaces and removes no others.

Their names are kept in `LIST` below the job's output, and noted before a file is written.
"""

import json
import re
from collections.abc import Iterable, Sequence

from pipeline.errors import OutputError
from pipeline.output.ledger import Ledger
from pipeline.storage import Storage

LIST = "__qwq/files.txt"
MOST_NAMED = 3


class OwnFiles:
    """The job's files at ``places``: names of files, or of folders with a slash at the end.

    ``output``: the job's folder; ``traces``: its run's. ``before``: matches the names that versions
    without a list have written, where a run is in ``traces``.
    """

    def __init__(self, output: str, traces: str, places: Sequence[str], before: str) -> None:
        self.output = output.rstrip("/")
        self._store, self._places = Storage(output), tuple(places)
        if self._store.exists(LIST):
            self._own = set(map(_name, self._store.read(LIST).decode().split("\n")[:-1]))
        elif Ledger(Storage(traces)).manifest() is not None:
            self._own = {name for name in self._there() if re.fullmatch(before, name)}
        else:
            self._own = set()

    def refuse_others(self) -> None:
        """Raise `OutputError` if somebody else's files are where the job writes."""
        self._refuse(self._there() - self._own)

    def _refuse(self, files: set[str]) -> None:
        others = sorted(files)
        if others:
            more = len(others) - MOST_NAMED
            named = ", ".join(others[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
            raise OutputError(
                f"output.path {self._store.url} has files that this job has not written, where it "
                f"would replace or remove them: {named}; move them, or choose another output.path"
            )

    def claim(self, names: Iterable[str]) -> None:
        """Note ``names``, which the job is about to write.

        Raises `OutputError` if somebody else has put a file there since the job began.
        """
        if new := set(names) - self._own:
            self._refuse(self._there() & new)
        self._own.update(new)
        self._write()

    def remove_all_but(self, names: Iterable[str], folder: str = "") -> None:
        """Delete the job's files at its places, of those in ``folder``, except ``names``."""
        kept = set(names) | {name for name in self._own if not name.startswith(folder)}
        self._store.delete(sorted((self._there() & self._own) - kept))
        self._own = kept
        self._write()

    def _there(self) -> set[str]:
        folders = [place.rstrip("/") for place in self._places if place.endswith("/")]
        files = [place for place in self._places if not place.endswith("/")]
        below = {info.name for folder in folders for info in self._store.files(folder)}
        return below | {name for name in files if self._store.exists(name)}

    def _write(self) -> None:
        self._store.put(LIST, "".join(f"{_line(name)}\n" for name in sorted(self._own)).encode())


def _line(name: str) -> str:
    """A name on a line of the list: as JSON where it has a line break, or looks like JSON."""
    return json.dumps(name) if "\n" in name or name.startswith('"') else name


def _name(line: str) -> str:
    """The name on a line of the list."""
    name: str = json.loads(line) if line.startswith('"') else line
    return name
