"""Files on any fsspec filesystem: list, read, write atomically, create if absent, delete.

    store = Storage("s3://bucket/traces")
    store.put("__qwq/manifest.json", data)

Names are relative to the root and use ``/``. Every write is atomic: object stores show a file only
when it is complete, and local files are renamed into place. Every method turns client errors into
`StorageError`, which says what to check and never contains credentials.
"""

import errno
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from pipeline import local_disk
from pipeline.errors import FileChangedError, StorageError, first_line
from pipeline.local_disk import ANY_VERSION, FileInfo, drafted, local_version
from pipeline.object_stores import is_client_error, is_denied, object_store

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ATTEMPTS, FIRST_ATTEMPTS = 10, 3
REQUESTS_AT_ONCE = 16
OBJECT_KEY_BYTES = 1024  # of S3 and Google Cloud Storage; Azure counts as many characters

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of ``function`` for each of ``items``, in order.

    `REQUESTS_AT_ONCE` threads work ahead of the caller by as many results, so that memory stays
    bounded. Raises what ``function`` raises.
    """
    pending = deque[Future[Result]]()
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > REQUESTS_AT_ONCE:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Storage:
    """A folder on a filesystem.

    ``url``: a local path or a URL that fsspec knows. ``attempts``: how often S3 requests are tried.
    Raises `StorageError` if the URL can't be opened.
    """

    def __init__(self, url: str, attempts: int = ATTEMPTS) -> None:
        self.url = url.rstrip("/")
        with self._errors("open"):
            self._store = object_store(self.url, attempts)
            self.fs, self.root = self._store.fs, self._store.root
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of ``name`` as the filesystem spells it."""
        return f"{self.root}/{name}" if name else self.root

    def files(self, folder: str = "", left_out: list[str] | None = None) -> list[FileInfo]:
        """All files below ``folder`` at any depth, sorted by name; none if it does not exist.

        Links to folders are followed, unless their files would be listed twice. ``left_out`` gets
        the names of all links that are not followed, each with the reason.
        """
        with self._errors("list"):
            if self.is_local:
                return local_disk.walk(self.root, folder, [] if left_out is None else left_out)
            self.fs.invalidate_cache()
            try:
                return self._infos(self._store.find(self.path(folder)))
            except FileNotFoundError:
                self._require_bucket()
                return []

    def glob(self, pattern: str, left_out: list[str] | None = None) -> list[FileInfo]:
        """The files that match ``pattern``, sorted by name.

        ``pattern``: relative to the root, with ``*``, ``?`` and ``**``. ``left_out`` gets the names
        of folders that match, and of links that are not followed.
        """
        with self._errors("list"):
            if self.is_local:
                return local_disk.glob(self.root, pattern, [] if left_out is None else left_out)
            self.fs.invalidate_cache()
            matches = self.fs.glob(self.path(pattern), detail=True)
            if not matches:
                self._require_bucket()
        if left_out is not None and "**" not in pattern:
            root = self.root.rstrip("/") + "/"
            folders = (path for path, info in matches.items() if info["type"] == "directory")
            left_out += local_disk.unread_folders(path.removeprefix(root) for path in folders)
        return self._infos(matches)

    def is_file(self) -> bool:
        """Whether the root is a file."""
        with self._errors("list"):
            return bool(self.fs.isfile(self.root))

    def is_folder(self) -> bool:
        """Whether the root is an existing folder."""
        with self._errors("list"):
            return self._store.is_folder(self.root)

    @property
    def location(self) -> str:
        """The URL with local paths made absolute, so that other processes can open it."""
        return self.root if self.is_local else self.url

    @property
    def name_limits(self) -> tuple[int, int]:
        """The most bytes that a file or folder name and a whole path may have."""
        if not self.is_local:
            return OBJECT_KEY_BYTES, OBJECT_KEY_BYTES
        return local_disk.name_limits(self.root)

    def _infos(self, details: dict[str, dict[str, Any]]) -> list[FileInfo]:
        """What fsspec lists, by path, as `FileInfo`; without folders and their placeholders."""
        prefix = self.root.rstrip("/") + "/"
        infos = [
            FileInfo(
                path.removeprefix(prefix),
                int(info["size"] or 0),
                self._store.version_of(info),
                self._store.created(info),
            )
            for path, info in details.items()
            if info["type"] == "file" and path.startswith(prefix) and not path.endswith("/")
        ]
        return sorted(infos, key=attrgetter("name"))

    def read(self, name: str) -> bytes:
        """The bytes of ``name``; raises `FileNotFoundError` if it does not exist."""
        with self._errors("read"):
            data: bytes = self.fs.cat_file(self.path(name))
            return data

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of each of ``names``, in order; see `map_in_threads`."""
        return map_in_threads(self.read, names)

    def exists(self, name: str) -> bool:
        """Whether the file ``name`` exists now, bypassing cached listings."""
        with self._errors("read"):
            if not self.is_local:
                self.fs.invalidate_cache(self.path(name).rpartition("/")[0])
            return bool(self.fs.exists(self.path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Write the file ``name``, or replace it."""
        with self._errors("write"):
            if self.is_local:
                with drafted(Path(self.path(name)), ANY_VERSION) as file:
                    file.write(data)
            else:
                self._store.write(self.path(name), data, ANY_VERSION)

    def version(self, name: str) -> str | None:
        """A text that changes whenever ``name`` is replaced; None if the file does not exist."""
        with self._errors("read"):
            try:
                if self.is_local:
                    return local_version(Path(self.path(name)))
                self.fs.invalidate_cache(self.path(name).rpartition("/")[0])
                return self._store.version_of(self.fs.info(self.path(name)))
            except FileNotFoundError:
                return None

    @contextmanager
    def writing(self, name: str, over: str | None = ANY_VERSION) -> Iterator[IO[bytes]]:
        """Open ``name`` for writing; it appears when the body ends without an error.

        ``over``: the `version` to replace, None for a new file. Raises `FileChangedError`, and
        writes nothing, if the file has another version at the end. The data is collected in a
        local file, so it may exceed the memory.

        S3, Google Cloud Storage and Azure decide with the write itself, and so does a local disk
        for a new file. Elsewhere the version is compared immediately before the write.
        """
        draft = drafted(Path(self.path(name)), over) if self.is_local else self._upload(name, over)
        with self._errors("write"):
            file = draft.__enter__()
        try:
            yield file
        except BaseException as error:  # raised by the body, not by the storage
            with self._errors("write"):
                draft.__exit__(type(error), error, error.__traceback__)
                if isinstance(error, OSError) and error.errno in DISK_FULL:  # but for this
                    raise
            raise
        with self._errors("write"):
            draft.__exit__(None, None, None)

    def create(self, name: str, data: bytes) -> bool:
        """Write ``name`` unless it exists; returns whether it has come from this call.

        One of several concurrent calls wins: by a conditional put on an object store, by a hard
        link on a local disk. If the answer to a put is lost, the client repeats it and is told
        that the file exists. So the bytes decide: callers that compete must write different ones.
        """
        with self._errors("write"):
            try:
                if self.is_local:
                    with drafted(Path(self.path(name)), None) as file:
                        file.write(data)
                else:
                    self._store.write(self.path(name), data, None)
            except FileChangedError:
                return not self.is_local and self._has(name, data)
            return True

    def _has(self, name: str, data: bytes) -> bool:
        try:
            return bool(self.fs.cat_file(self.path(name)) == data)
        except FileNotFoundError:  # removed meanwhile
            return False

    def delete(self, names: list[str]) -> None:
        """Remove files; missing ones are no error."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

        with self._errors("delete"):
            for _ in map_in_threads(remove, names):
                pass

    def open(self, name: str) -> Any:
        """Open ``name`` as a seekable binary file for reading."""
        with self._errors("read"):
            return self.fs.open(self.path(name), "rb")

    def copy_to(self, name: str, path: Path) -> None:
        """Copy the file ``name`` to ``path`` on a local disk."""
        with self._errors("read"):
            self.fs.get_file(self.path(name), str(path))

    def read_end(self, info: FileInfo, count: int) -> bytes:
        """The last ``count`` bytes of a listed file, or all if it is smaller; one request."""
        with self._errors("read"):
            start = max(0, info.size - count)
            if not info.size:  # S3 refuses an empty range
                return b""
            data: bytes = self.fs.cat_file(self.path(info.name), start=start, end=info.size)
            return data

    def prune(self, folder: str) -> None:
        """Remove ``folder`` and its empty subfolders on a local disk; object stores have none."""
        if self.is_local:
            for path, _, _ in os.walk(self.path(folder), topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    continue

    @contextmanager
    def _upload(self, name: str, over: str | None) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            try:
                self._store.write(self.path(name), Path(file.name), over)
            except FileChangedError:
                raise FileChangedError(name) from None

    def _require_bucket(self) -> None:
        """Raise `StorageError` if an object store's bucket does not exist."""
        if not self.is_local and not self._store.has_bucket(self.root.split("/")[0]):
            bucket = self.url.split("://")[0] + "://" + self.root.split("/")[0]
            raise StorageError(f"{bucket} does not exist: create the bucket or correct the path")

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            with self._errors(verb):
                lacks_bucket = not self.is_local and self._store.lacks_bucket(error)
            if lacks_bucket:
                raise StorageError(
                    f"can't {verb} {self.url}: the bucket does not exist; create it or correct the "
                    "path"
                ) from None
            raise
        except ImportError as error:
            raise StorageError(f"can't {verb} {self.url}: {error}") from None
        except Exception as error:
            if is_denied(error):
                raise StorageError(
                    f"can't {verb} {self.url}: access denied ({first_line(error)}); check the "
                    "credentials, and that they allow list, read, write and delete"
                ) from None
            if is_client_error(error):
                raise StorageError(f"can't {verb} {self.url}: {first_line(error)}") from None
            raise


def check_reachable(url: str) -> None:
    """Raise `StorageError` after a few attempts if nothing answers at ``url``."""
    Storage(url, FIRST_ATTEMPTS).is_folder()
