"""Files on any fsspec filesystem: list, read, atomic put, create-if-absent, delete.

    store = Storage("s3://bucket/traces")
    store.put("__qwq/manifest.json", data)

Names are relative to the root and use ``/``. A put is seen whole or not at all: object stores work
so, local files are renamed into place. Client errors become `StorageError`, which says what to
check; credentials never appear in it.
"""

import os
import tempfile
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from stat import S_ISREG
from typing import IO, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StorageError

# Throttling, 5xx, timeouts and resets are retried, with waits that double, by the client itself:
# ten attempts take about a minute. Its "standard" mode stops early when many threads meet errors at
# once; "legacy" does not.
ATTEMPTS, FIRST_ATTEMPTS = 10, 3
REQUESTS_AT_ONCE = 16
DRAFT = ".draft"  # a local file that is being written, before it is renamed into place


@dataclass(frozen=True)
class FileInfo:
    """A file's name (relative to the root it was listed from), size and version tag.

    ``tag`` is the ETag where the store has one, otherwise the time of change.
    """

    name: str
    size: int
    tag: str


class Storage:
    """A folder on some filesystem; ``attempts`` are made at each request where that has a say."""

    def __init__(self, url: str, attempts: int = ATTEMPTS) -> None:
        self.url = url.rstrip("/")
        with self._errors("open"):
            self.fs, self.root = fsspec.core.url_to_fs(self.url, **_options(self.url, attempts))
        self.is_local = isinstance(self.fs, LocalFileSystem)

    def path(self, name: str) -> str:
        """The filesystem's own path of ``name``."""
        return f"{self.root}/{name}" if name else self.root

    def files(self, folder: str = "") -> list[FileInfo]:
        """All files below ``folder``, at any depth, by name; empty if there is no such folder."""
        with self._errors("list"):
            if self.is_local:
                return sorted(self._walk(folder), key=attrgetter("name"))
            self.fs.invalidate_cache()
            try:
                return self._infos(self.fs.find(self.path(folder), detail=True))
            except FileNotFoundError:
                self._require_bucket()
                return []

    def glob(self, pattern: str) -> list[FileInfo]:
        """The files that ``pattern`` (relative, with ``*``, ``?``, ``**``) matches, by name."""
        with self._errors("list"):
            if self.is_local:
                return self._local_infos(Path(self.root).glob(pattern))
            self.fs.invalidate_cache()
            found = self.fs.glob(self.path(pattern), detail=True)
            if not found:
                self._require_bucket()
        return self._infos(found)

    def is_file(self) -> bool:
        """Whether the root itself is a file rather than a folder."""
        with self._errors("list"):
            return bool(self.fs.isfile(self.root))

    def is_folder(self) -> bool:
        """Whether the root is a folder that exists."""
        with self._errors("list"):
            return bool(self.fs.isdir(self.root))

    @property
    def location(self) -> str:
        """The URL in a form that means the same on every machine: local paths made absolute."""
        return self.root if self.is_local else self.url

    def _local_infos(self, paths: Iterable[Path]) -> list[FileInfo]:
        found = (_local_info(path, path.relative_to(self.root).as_posix()) for path in paths)
        return sorted((info for info in found if info), key=attrgetter("name"))

    def _walk(self, folder: str) -> Iterator[FileInfo]:
        """All local files below ``folder``: there can be thousands, so with no more than a stat."""
        try:
            entries = list(os.scandir(self.path(folder)))
        except (FileNotFoundError, NotADirectoryError):
            return
        prefix = f"{folder}/" if folder else ""
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(prefix + entry.name)
            elif info := _local_info(entry, prefix + entry.name):
                yield info

    def _infos(self, found: dict[str, dict[str, Any]]) -> list[FileInfo]:
        prefix = self.root.rstrip("/") + "/"
        infos = [
            FileInfo(path.removeprefix(prefix), int(info["size"] or 0), _tag(info))
            for path, info in found.items()
            if info["type"] == "file" and path.startswith(prefix) and not path.endswith("/")
        ]
        return sorted(infos, key=lambda info: info.name)

    def read(self, name: str) -> bytes:
        """The bytes of ``name``; FileNotFoundError if there is none."""
        with self._errors("read"):
            data: bytes = self.fs.cat_file(self.path(name))
            return data

    def read_all(self, names: Iterable[str]) -> Iterator[bytes]:
        """The bytes of each of ``names`` in order, some read ahead."""
        waiting = deque[Future[bytes]]()
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            for name in names:
                waiting.append(pool.submit(self.read, name))
                if len(waiting) > REQUESTS_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def exists(self, name: str) -> bool:
        """Whether there is a file ``name`` now, whatever was listed before."""
        with self._errors("read"):
            if not self.is_local:
                self.fs.invalidate_cache(self.path(name).rpartition("/")[0])
            return bool(self.fs.exists(self.path(name)))

    def put(self, name: str, data: bytes) -> None:
        """Write ``name`` whole, replacing what is there."""
        with self._errors("write"):
            if self.is_local:
                self._put_local(Path(self.path(name)), data, os.replace)
            else:
                self.fs.pipe_file(self.path(name), data)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """A file of any size to write ``name`` through; seen when the body has ended in order."""
        path = self.path(name)
        draft = self._draft(Path(path), os.replace) if self.is_local else self._upload(path)
        with self._errors("write"):
            file = draft.__enter__()
        try:
            yield file
        except BaseException as error:  # the body's own: no trouble of the storage
            draft.__exit__(type(error), error, error.__traceback__)
            raise
        with self._errors("write"):
            draft.__exit__(None, None, None)

    def create(self, name: str, data: bytes) -> bool:
        """Write ``name`` if it does not exist; whether this call was the one that did.

        On S3 by a conditional put (If-None-Match), so that of racing creators one wins.
        """
        with self._errors("write"):
            try:
                return self._create(name, data)
            except OSError as error:
                # One that races a deletion of the same name is to be made again.
                if _s3_code(error) != "ConditionalRequestConflict":
                    raise
                return self._create(name, data)

    def _create(self, name: str, data: bytes) -> bool:
        try:
            if self.is_local:
                self._put_local(Path(self.path(name)), data, os.link)
            else:
                self.fs.pipe_file(self.path(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs turns 412 PreconditionFailed into OSError(EINVAL).
            if _s3_code(error) == "PreconditionFailed":
                return False
            raise
        return True

    def delete(self, names: list[str]) -> None:
        """Remove files; those that are gone already are no error."""

        def remove(name: str) -> None:
            with suppress(FileNotFoundError):
                self.fs.rm_file(self.path(name))

        with self._errors("delete"), ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(remove, names))

    def open(self, name: str) -> Any:
        """A seekable binary file for reading."""
        with self._errors("read"):
            return self.fs.open(self.path(name), "rb")

    def read_end(self, info: FileInfo, count: int) -> bytes:
        """The last ``count`` bytes of a file that has been listed, or all; in one request."""
        with self._errors("read"):
            start = max(0, info.size - count)
            if not info.size:  # S3 knows no empty range
                return b""
            data: bytes = self.fs.cat_file(self.path(info.name), start=start, end=info.size)
            return data

    def prune(self, folder: str) -> None:
        """Remove ``folder`` and its empty subfolders where folders are real (local disks)."""
        if self.is_local:
            for path, _, _ in os.walk(self.path(folder), topdown=False):
                try:
                    os.rmdir(path)
                except OSError:
                    continue

    @contextmanager
    def _upload(self, path: str) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile() as file:
            yield file
            file.flush()
            self.fs.put_file(file.name, path)

    def _put_local(self, path: Path, data: bytes, place: Any) -> None:
        with self._draft(path, place) as file:
            file.write(data)

    @contextmanager
    def _draft(self, path: Path, place: Any) -> Iterator[IO[bytes]]:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{DRAFT}")
        try:
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            place(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _require_bucket(self) -> None:
        """On an object store, tell a missing bucket from an empty prefix."""
        if not self.is_local and not self.fs.exists(self.root.split("/")[0]):
            bucket = self.url.split("://")[0] + "://" + self.root.split("/")[0]
            raise StorageError(f"{bucket} does not exist: create the bucket or mend the path")

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            if _s3_code(error) == "NoSuchBucket":
                raise StorageError(f"can't {verb} {self.url}: the bucket does not exist") from None
            raise
        except PermissionError as error:
            raise StorageError(
                f"can't {verb} {self.url}: access denied ({_reason(error)}); check the credentials "
                "and that they may list, read, write and delete there"
            ) from None
        except ImportError as error:
            raise StorageError(f"can't {verb} {self.url}: {error}") from None
        except (OSError, ValueError) as error:
            raise StorageError(f"can't {verb} {self.url}: {_reason(error)}") from None
        except Exception as error:
            if type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
                raise StorageError(f"can't {verb} {self.url}: {_reason(error)}") from None
            raise


def check_reachable(url: str) -> None:
    """Raise `StorageError` soon, rather than after all attempts, if nothing answers at ``url``."""
    Storage(url, FIRST_ATTEMPTS).is_folder()


def _options(url: str, attempts: int) -> dict[str, Any]:
    """What s3fs is told of us; other filesystems are left as they are."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    client = {
        "retries": {"mode": "legacy", "max_attempts": attempts},
        "connect_timeout": 20,
        "read_timeout": 60,
    }
    return {"config_kwargs": client, "use_listings_cache": False}


def _local_info(file: "Path | os.DirEntry[str]", name: str) -> FileInfo | None:
    """Of a file, or a link to one; None for drafts and what is just gone."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    if not S_ISREG(stat.st_mode) or name.endswith(DRAFT):
        return None
    return FileInfo(name, stat.st_size, str(stat.st_mtime_ns))


def _s3_code(error: BaseException) -> str | None:
    """The S3 error code behind what s3fs raised; None if it is no such error."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"]["Code"] if isinstance(response, dict) else None


def _reason(error: BaseException) -> str:
    """The first line of what the client library says."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _tag(info: dict[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified")
    return str(tag).strip('"')
