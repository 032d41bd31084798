"""Files of a local disk: written beside their place, then renamed into it."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.errors import FileChangedError

ANY_VERSION = "any"  # write whatever is there
DRAFT = ".draft"  # ends the name of a file until it is complete


def local_version(path: Path) -> str | None:
    """A text that changes whenever the file is replaced; None if it does not exist."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


@contextmanager
def drafted(path: Path, over: str | None) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place at the end, if that has the version ``over``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{DRAFT}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(draft, path, over)
    finally:
        draft.unlink(missing_ok=True)


def _publish(draft: Path, path: Path, over: str | None) -> None:
    """Rename ``draft`` to ``path`` if that has the version ``over``."""
    if over is None:
        try:
            os.link(draft, path)
        except FileExistsError:
            raise FileChangedError(path.name) from None
        return
    # A disk can't compare and rename in one step: a few microseconds lie between the two.
    if over != ANY_VERSION and local_version(path) != over:
        raise FileChangedError(path.name)
    os.replace(draft, path)
