"""Files of a local disk: listed with links, written beside their place, then renamed into it."""

import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ELOOP
from operator import attrgetter
from pathlib import Path
from stat import S_ISREG
from typing import IO

from fsspec.utils import glob_translate

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
    draft = path.with_name(f".{uuid.uuid4().hex}{DRAFT}")  # shorter than any name of ours
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


@dataclass(frozen=True)
class FileInfo:
    """One listed file.

    ``name``: relative to the root of the listing. ``size``: in bytes. ``tag``: changes with the
    content; the ETag where the store has one, otherwise the modification time. ``created``: when
    the file got its name, by the store's clock, in nanoseconds; 0 if unknown.
    """

    name: str
    size: int
    tag: str
    created: int = field(default=0, compare=False)


def walk(root: str, folder: str, left_out: list[str]) -> list[FileInfo]:
    """All files below ``folder`` of ``root``, sorted by name; none if it does not exist.

    Links to folders are followed, unless files would be listed twice. ``left_out`` gets the names
    of links that are not followed, each with the reason.
    """
    seen = {os.path.realpath(f"{root}/{folder}")}
    return sorted(_walk(root, folder, seen, left_out), key=attrgetter("name"))


def glob(root: str, pattern: str, left_out: list[str]) -> list[FileInfo]:
    """The files that match ``pattern``, sorted by name.

    Links to folders are followed as in `walk`. ``left_out``: as there, with folders that match.
    """
    if "**" in pattern:  # there Path.glob follows no links to folders
        matches, links = re.compile(glob_translate(pattern)).match, list[str]()
        infos = [info for info in walk(root, "", links) if matches(info.name)]
        left_out += [name for name in links if _OVERLAP in name or matches(name.split(_BROKEN)[0])]
        return infos
    paths = {path.relative_to(root).as_posix(): path for path in Path(root).glob(pattern)}
    left_out += [name + _BROKEN for name, path in paths.items() if _is_broken(path)]
    left_out += unread_folders(name for name, path in sorted(paths.items()) if path.is_dir())
    found = (_info(path, name) for name, path in sorted(paths.items()))
    return [info for info in found if info]


def unread_folders(names: Iterable[str]) -> list[str]:
    """The ``names`` of folders that match a pattern, each with what to do to have their files."""
    return [f"{name} (a folder; add /*.parquet to the path to have its files)" for name in names]


def name_limits(root: str) -> tuple[int, int]:
    """The most bytes that a file's name and a whole path may have where ``root`` is or will be."""
    folder = Path(root)
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return os.pathconf(folder, "PC_NAME_MAX"), os.pathconf(folder, "PC_PATH_MAX") - 1


def _walk(root: str, folder: str, seen: set[str], left_out: list[str]) -> Iterator[FileInfo]:
    """All files below ``folder``. There can be thousands: one stat each, no more.

    ``seen``: the real paths of the folders that are listed with all that is below them.
    """
    try:
        entries = list(os.scandir(f"{root}/{folder}" if folder else root))
    except (FileNotFoundError, NotADirectoryError):
        return
    prefix = f"{folder}/" if folder else ""
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(root, name, seen, left_out)
        elif info := _info(entry, name):
            yield info
        elif entry.is_symlink() and os.path.isdir(entry.path):
            target = os.path.realpath(entry.path)
            if any(_overlap(target, path) for path in seen):
                left_out.append(name + _OVERLAP)
            else:
                seen.add(target)
                yield from _walk(root, name, seen, left_out)
        elif _is_broken(entry.path):
            left_out.append(name + _BROKEN)


def _info(file: "Path | os.DirEntry[str]", name: str) -> FileInfo | None:
    """The info of a file or a link to one; None for anything else, drafts and vanished files."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == ELOOP:
            return None
        raise
    if not S_ISREG(stat.st_mode) or name.endswith(DRAFT):
        return None
    return FileInfo(name, stat.st_size, str(stat.st_mtime_ns), stat.st_ctime_ns)


_BROKEN = " (a link that leads nowhere)"
_OVERLAP = " (a link to a folder that overlaps one that is listed)"


def _is_broken(path: str | Path) -> bool:
    return os.path.islink(path) and not os.path.exists(path)


def _overlap(one: str, other: str) -> bool:
    """Whether one of two folders lies in the other."""
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")
