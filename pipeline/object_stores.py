"""What differs between object stores: clients and their options, versions, conditional writes.

    store = object_store("gs://bucket/traces", attempts=10)
    store.write("bucket/traces/a", data, over=None)    # a new file, or FileChangedError

Tested with S3 (SeaweedFS), Google Cloud Storage (fake-gcs-server) and Azure Blob Storage (Azurite).
Other filesystems of fsspec are written as their client does it. Errors are those of the clients.
"""

import json
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import nullcontext
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec

from pipeline.errors import FileChangedError
from pipeline.local_disk import ANY_VERSION

CONNECT_SECONDS, READ_SECONDS = 20, 60
LARGEST_PUT = 5 * 2**30  # bytes; S3 takes no more in one request
SENT_BYTES = 2**20
UNAUTHORIZED, FORBIDDEN = 401, 403
# The modules of errors that are no OSError.
CLIENTS = ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google.auth", "azure")


class ObjectStore:
    """A filesystem of fsspec: ``fs``, and ``root``, the path of ``url`` as it spells it.

    ``attempts``: how often requests are tried, where a client can be told.
    """

    # What holds a file's version in a listing (the first that is there), and when it was written.
    versions: tuple[str, ...] = ("ETag", "etag", "mtime", "LastModified")
    written = "LastModified"

    def __init__(self, url: str, attempts: int) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url, **self.options(attempts))

    def options(self, attempts: int) -> dict[str, Any]:
        """What fsspec's client is made with."""
        return {}

    def write(self, path: str, source: bytes | Path, over: str | None) -> None:
        """Write bytes, or a local file, to ``path``, if that has the version ``over``.

        ``over``: None for a new file, or `ANY_VERSION`. Raises `FileChangedError`.
        """
        if over != ANY_VERSION and over != self._version(path):
            raise FileChangedError(path)
        mode = {"mode": "create"} if over is None else {}
        try:
            if isinstance(source, Path):
                self.fs.put_file(str(source), path, **mode)
            else:
                self.fs.pipe_file(path, source, **mode)
        except FileExistsError:
            raise FileChangedError(path) from None

    def find(self, path: str) -> dict[str, Any]:
        """What is below ``path``, by path; raises `FileNotFoundError` if there is no bucket."""
        found: dict[str, Any] = self.fs.find(path, detail=True)
        return found

    def is_folder(self, path: str) -> bool:
        """Whether there are files below ``path``."""
        return bool(self.fs.isdir(path))

    def has_bucket(self, bucket: str) -> bool:
        """Whether ``bucket`` exists."""
        return bool(self.fs.exists(bucket))

    def lacks_bucket(self, error: FileNotFoundError) -> bool:
        """Whether ``error`` came because the bucket of this store does not exist."""
        return False

    def version_of(self, info: Mapping[str, Any]) -> str:
        """The version of a listed file."""
        found = (info[name] for name in self.versions if info.get(name))
        return str(next(found, None)).strip('"')

    def created(self, info: Mapping[str, Any]) -> int:
        """When a listed file was written, in nanoseconds; S3 and Azure count seconds."""
        time = info.get(self.written)
        return int(time.timestamp() * 1e9) if isinstance(time, datetime) else 0

    def _version(self, path: str) -> str | None:
        try:
            return self.version_of(self.fs.info(path))
        except FileNotFoundError:
            return None


class S3(ObjectStore):
    """S3, by If-Match and If-None-Match.

    The client retries throttling, 5xx, timeouts and resets, and doubles the wait each time: ten
    attempts take about a minute. Its "standard" mode gives up early when many threads see errors at
    the same time; "legacy" does not.
    """

    def options(self, attempts: int) -> dict[str, Any]:
        """As above."""
        client = {
            "retries": {"mode": "legacy", "max_attempts": attempts},
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
        }
        return {"config_kwargs": client, "use_listings_cache": False}

    def write(self, path: str, source: bytes | Path, over: str | None) -> None:
        """As above; a file that one request can't take is compared before it is written."""
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if over == ANY_VERSION or size > LARGEST_PUT:
            super().write(path, source, over)
            return
        try:
            self._put(path, source, over)
        except OSError as error:
            # S3 asks to repeat a put that raced a deletion of the same name.
            if over is not None or s3_code(error) != "ConditionalRequestConflict":
                raise
            self._put(path, source, over)

    def _put(self, path: str, source: bytes | Path, over: str | None) -> None:
        bucket, key, _ = self.fs.split_path(path)
        condition = {"IfNoneMatch": "*"} if over is None else {"IfMatch": f'"{over}"'}
        changed = ["PreconditionFailed"] + ["ConditionalRequestConflict"] * (over is not None)
        try:
            with source.open("rb") if isinstance(source, Path) else nullcontext(source) as body:
                self.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=body, **condition)
        except FileNotFoundError as error:  # If-Match of a file that was removed
            if over is None or self.lacks_bucket(error):
                raise
            raise FileChangedError(path) from None
        except OSError as error:
            if s3_code(error) in changed:
                raise FileChangedError(path) from None
            raise

    def lacks_bucket(self, error: FileNotFoundError) -> bool:
        """By what the server said."""
        return s3_code(error) == "NoSuchBucket"


class GoogleCloud(ObjectStore):
    """Google Cloud Storage, by ifGenerationMatch.

    The client tries a request six times, for half a minute.
    """

    versions = ("generation",)
    written = "ctime"

    def __init__(self, url: str, attempts: int) -> None:
        # Not `gcsfs.GCSFileSystem`: it asks another service for the kind of each bucket first, and
        # writes in other ways, which nobody has tried, where a bucket is in one zone.
        from gcsfs.core import GCSFileSystem

        for name in ("gcsfs", "google.auth"):  # they log all that they raise, with its traceback
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.fs = GCSFileSystem(**self.options(attempts))
        self.root = GCSFileSystem._strip_protocol(url)

    def options(self, attempts: int) -> dict[str, Any]:
        """Limits of time, of which the client has none."""
        from aiohttp import ClientTimeout

        limits = ClientTimeout(None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        return {"requests_timeout": limits, "use_listings_cache": False}

    def write(self, path: str, source: bytes | Path, over: str | None) -> None:
        """As above, in one request.

        The client's own writes know no other condition than "is new", and end a file at the text
        ``--==0==`` if it has that.
        """
        bucket, key, _ = self.fs.split_path(path)
        body = _Multipart(key, source)
        generation = {None: "0", ANY_VERSION: None}.get(over, over)
        try:
            self.fs.call(
                "POST", f"{self.fs._location}/upload/storage/v1/b/{quote(bucket)}/o",
                uploadType="multipart", headers=body.headers, data=body,
                ifGenerationMatch=generation,
            )  # fmt: skip
        except FileExistsError:  # 412 Precondition Failed
            raise FileChangedError(path) from None

    def is_folder(self, path: str) -> bool:
        """As above; `isdir` of the client is false when there is no answer."""
        try:
            return bool(self.fs.info(path)["type"] == "directory")
        except FileNotFoundError:
            return False

    def has_bucket(self, bucket: str) -> bool:
        """By a listing: most roles do not allow to look at the bucket."""
        try:
            self.fs.call("GET", "b/{}/o", bucket, maxResults=1)
        except FileNotFoundError:
            return False
        return True

    def lacks_bucket(self, error: FileNotFoundError) -> bool:
        """The client does not tell what the server said."""
        return not self.has_bucket(self.root.split("/")[0])


class Azure(ObjectStore):
    """Azure Blob Storage, by If-Match and If-None-Match.

    The client tries a request four times, for a minute.
    """

    versions = ("etag",)
    written = "last_modified"

    def options(self, attempts: int) -> dict[str, Any]:
        """No cache."""
        return {"use_listings_cache": False}

    def write(self, path: str, source: bytes | Path, over: str | None) -> None:
        """As above; large files by blocks, which appear together."""
        from azure.core import MatchConditions
        from azure.core.exceptions import ResourceModifiedError, ResourceNotFoundError

        condition: dict[str, Any] = {"overwrite": over is not None}
        if over not in (None, ANY_VERSION):
            condition |= {"etag": f'"{over}"', "match_condition": MatchConditions.IfNotModified}
        try:
            # Not `put_file`, which repeats a write without its condition.
            with source.open("rb") if isinstance(source, Path) else nullcontext(source) as body:
                self.fs.pipe_file(path, body, **condition)
        except (FileExistsError, ResourceModifiedError):
            raise FileChangedError(path) from None
        except ResourceNotFoundError as error:
            if (
                getattr(error, "error_code", "") == "BlobNotFound"
            ):  # If-Match of a file that was removed
                raise FileChangedError(path) from None
            raise FileNotFoundError(path) from error

    def find(self, path: str) -> dict[str, Any]:
        """As above; for a file the client gives a list, for a missing container nothing."""
        found = self.fs.find(path, detail=True)
        if not found and not self.has_bucket(path.partition("/")[0]):
            raise FileNotFoundError(path)
        return found if isinstance(found, dict) else {}

    def lacks_bucket(self, error: FileNotFoundError) -> bool:
        """The client tells it in several ways."""
        return not self.has_bucket(self.root.split("/")[0])


class _Multipart:
    """The body of an upload to Google Cloud Storage; each retry iterates over all of it."""

    def __init__(self, key: str, source: bytes | Path) -> None:
        boundary, self._source = uuid.uuid4().hex, source
        described = json.dumps({"name": key})
        self._head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n{described}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        self.headers = {
            "Content-Type": f'multipart/related; boundary="{boundary}"',
            "Content-Length": str(len(self._head) + size + len(self._tail)),
        }

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._head
        if isinstance(self._source, Path):
            with self._source.open("rb") as file:
                while data := file.read(SENT_BYTES):
                    yield data
        else:
            yield self._source
        yield self._tail


# By the beginning of URLs: the class, the package that it needs, and the extra of ours that has it.
STORES: Mapping[str, tuple[type[ObjectStore], str, str]] = {
    "s3": (S3, "s3fs", ""),
    "s3a": (S3, "s3fs", ""),
    "gs": (GoogleCloud, "gcsfs", "gcs"),
    "gcs": (GoogleCloud, "gcsfs", "gcs"),
    "az": (Azure, "adlfs", "azure"),
    "abfs": (Azure, "adlfs", "azure"),
    "abfss": (Azure, "adlfs", "azure"),
}


def object_store(url: str, attempts: int) -> ObjectStore:
    """The client for ``url``, which may be a local path; raises `ImportError` if it is missing."""
    kind, package, extra = STORES.get(url.partition("://")[0], (ObjectStore, "fsspec", ""))
    if extra and find_spec(package) is None:
        raise ImportError(
            f"{package} is not installed here: pip install 'qwq-batch[{extra}]', on every node"
        )
    return kind(url, attempts)


def is_client_error(error: Exception) -> bool:
    """Whether ``error`` came from a client or its server."""
    return isinstance(error, (OSError, ValueError)) or _is_of(error, *CLIENTS)


def is_denied(error: Exception) -> bool:
    """Whether ``error`` says that credentials are missing, wrong, expired or not enough."""
    if isinstance(error, PermissionError) or _is_of(error, "google.auth"):
        return True
    code = getattr(error, "status_code", None) or getattr(error, "code", None)
    return (
        str(code) in (str(UNAUTHORIZED), str(FORBIDDEN))
        or str(error).startswith("Forbidden: ")  # gcsfs
        or type(error).__name__ in ("ClientAuthenticationError", "CredentialUnavailableError")
    )


def s3_code(error: BaseException) -> str | None:
    """The S3 error code that caused an error of s3fs; None for other errors."""
    response = getattr(error.__cause__, "response", None)
    return response["Error"]["Code"] if isinstance(response, dict) else None


def _is_of(error: Exception, *packages: str) -> bool:
    """Whether the type of ``error`` is of one of ``packages``."""
    return any(f"{type(error).__module__}.".startswith(f"{name}.") for name in packages)
