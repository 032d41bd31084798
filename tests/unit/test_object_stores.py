"""What the object stores do alike, each on a server of its own: conditions, lost answers, errors."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import object_stores
from pipeline.errors import FileChangedError, StorageError
from pipeline.storage import Storage, check_reachable
from tests.azure import ACCOUNT, AzureServer
from tests.conftest import OBJECT_STORES, at
from tests.faults.proxy import EXPIRED, ONE_IN_FIVE_BUSY, FaultProxy
from tests.google_cloud import GoogleCloudServer
from tests.object_server import ObjectServer
from tests.s3 import S3Server

BUCKET = "object-stores"


@pytest.fixture(params=OBJECT_STORES)
def server(request: pytest.FixtureRequest) -> ObjectServer:
    server: ObjectServer = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of Google Cloud Storage and Azure wait half a minute and more, in all."""

    async def no_wait(*_: object) -> None: ...

    monkeypatch.setattr("gcsfs.retry.asyncio", SimpleNamespace(sleep=no_wait))
    policies = "azure.storage.blob._shared.policies_async.AsyncStorageRetryPolicy.sleep"
    monkeypatch.setattr(policies, no_wait)


@pytest.fixture
def proxy(
    server: ObjectServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FaultProxy]:
    with FaultProxy(server.endpoint) as proxy:
        at(proxy.endpoint, server, monkeypatch)
        yield proxy


def test_missing_bucket_is_one_clear_message(server: ObjectServer) -> None:
    store = Storage(f"{server.scheme}://no-such-bucket/x")

    def write() -> None:
        with store.writing("a", over=None) as file:
            file.write(b"x")

    reads: list[Callable[[], object]] = [
        store.files,
        lambda: store.glob("*"),
        lambda: store.read("a"),
        lambda: store.open("a"),
    ]
    writes: list[Callable[[], object]] = [
        lambda: store.put("a", b"x"),
        lambda: store.create("a", b"x"),
        write,
    ]
    # SeaweedFS makes a bucket as it is written to.
    for attempt in reads if server.scheme == "s3" else reads + writes:
        with pytest.raises(StorageError, match=r"no-such-bucket.*does not exist"):
            attempt()


def test_create_whose_answer_was_lost_is_ours_and_nobody_elses(
    server: ObjectServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    proxy.lose = 1
    assert store.create("lease", b"mine")
    assert proxy.lose == 0, "no answer was lost, so this shows nothing"
    assert not store.create("lease", b"another's")
    assert store.read("lease") == b"mine"


def test_replacement_whose_answer_was_lost_is_not_done_twice(
    server: ObjectServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    store.put("part", b"first")
    before = store.version("part")
    proxy.lose = 1
    with pytest.raises(FileChangedError), store.writing("part", over=before) as file:
        file.write(b"second")
    assert store.read("part") == b"second"


def test_requests_to_a_busy_server_are_repeated_and_whole(
    server: ObjectServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    data, local = b"0123456789" * 200_000, tmp_path / "local"
    proxy.fault = ONE_IN_FIVE_BUSY
    for number in range(30):
        with store.writing(f"{number}", over=None) as file:
            file.write(data)
        store.copy_to(f"{number}", local)
        assert local.read_bytes() == data
    assert len(store.files()) == 30
    assert proxy.refused, "no request was refused, so this shows nothing"


def test_expired_credentials_are_one_clear_message(
    server: ObjectServer, proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    store.put("a", b"x")
    proxy.fault = EXPIRED
    for attempt in (
        store.files, lambda: store.read("a"), lambda: store.put("a", b"x"),
        lambda: store.create("b", b"x"), lambda: store.delete(["a"]), lambda: store.version("a"),
        lambda: store.exists("a"), lambda: store.open("a").read(),
    ):  # fmt: skip
        with pytest.raises(StorageError, match=r"access denied .*check the credentials"):
            attempt()
    assert not [record.message for record in caplog.records if record.exc_info]


def test_unreachable_server_is_named(
    server: ObjectServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at("http://127.0.0.1:9", server, monkeypatch)
    with pytest.raises(StorageError, match=rf"can't list {server.scheme}://bucket/x: .*127.0.0.1"):
        check_reachable(f"{server.scheme}://bucket/x")


def test_no_client_keeps_listings_and_files_have_the_time_of_the_store(
    server: ObjectServer, tmp_path: Path
) -> None:
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    assert not store.fs.dircache.use_listings_cache
    store.put("a", b"x")
    [info] = store.files()
    assert abs(info.created / 1e9 - time.time()) < 60


def test_client_of_google_cloud_does_not_wait_forever(google_cloud: GoogleCloudServer) -> None:
    limits = Storage(google_cloud.bucket(BUCKET)).fs.requests_timeout
    assert (limits.total, limits.sock_connect, limits.sock_read) == (None, 20, 60)


def test_s3_file_too_large_for_one_request_is_compared_before_it_is_written(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(f"{s3.bucket(BUCKET)}/{tmp_path.name}")
    with store.writing("a", over=None) as file:
        file.write(b"one")
    first = store.version("a")
    monkeypatch.setattr(object_stores, "LARGEST_PUT", 2)
    monkeypatch.setattr(object_stores.S3, "_put", lambda *_: pytest.fail("one request"))
    for stale in (None, "1"):
        with pytest.raises(FileChangedError), store.writing("a", over=stale) as file:
            file.write(b"no!")
    with store.writing("a", over=first) as file:
        file.write(b"two")
    with store.writing("b", over=None) as file:
        file.write(b"new")
    assert (store.read("a"), store.read("b")) == (b"two", b"new")


def test_a_file_may_hold_any_text(server: ObjectServer, tmp_path: Path) -> None:
    """gcsfs ends a file at a text of its own, and prompts are not trusted."""
    store = Storage(f"{server.bucket(BUCKET)}/{tmp_path.name}")
    data = b"one\r\n--==0==--\r\n--==0==\r\ntwo"
    for name in ("put", "a name #1 & ü+%41?x=1"):
        store.put(name, data)
        assert store.read(name) == data
    assert store.create("create", data)
    with store.writing("writing", over=None) as file:
        file.write(data)
    assert store.read("create") == store.read("writing") == data
    assert [info.size for info in store.files()] == [len(data)] * 4


def test_wrong_key_of_azure_is_one_clear_message_without_it(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    azure: AzureServer = request.getfixturevalue("azure")
    url, planted = azure.bucket(BUCKET), "cGxhbnRlZA=="
    for name, value in azure.environment_at(azure.endpoint, planted).items():
        monkeypatch.setenv(name, value)
    for call in (lambda: Storage(url).files(), lambda: Storage(url).create("x", b"x")):
        with pytest.raises(StorageError, match="check the credentials") as caught:
            call()
        assert planted not in str(caught.value)


def test_azure_is_reached_by_the_urls_of_its_own_tools(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    azure: AzureServer = request.getfixturevalue("azure")
    folder = f"{azure.bucket(BUCKET)}/{tmp_path.name}"
    Storage(folder).put("a", b"x")
    for scheme in ("abfs", "abfss"):
        url = f"{scheme}://{BUCKET}@{ACCOUNT}.dfs.core.windows.net/{tmp_path.name}"
        assert [info.name for info in Storage(url).files()] == ["a"]


def test_a_bucket_that_may_only_be_listed_exists(
    google_cloud: GoogleCloudServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the role of an object administrator: the bucket itself may not be looked at."""
    from gcsfs.core import GCSFileSystem

    url = google_cloud.bucket("listed-only")

    async def denied(*_: object, **__: object) -> None:
        raise OSError("Forbidden: looked at")

    monkeypatch.setattr(GCSFileSystem, "_info", denied)
    assert Storage(f"{url}/new").files() == Storage(f"{url}/new").glob("*") == []


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("gs://b/x", "gcsfs", "gcs"),
        ("az://b/x", "adlfs", "azure"),
        ("abfss://b/x", "adlfs", "azure"),
    ],
)
def test_missing_package_is_named_with_the_extra_that_has_it(
    url: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_stores, "find_spec", lambda name: None)
    with pytest.raises(
        StorageError,
        match=rf"can't open {url}: {package} is not .*pip install 'qwq-batch\[{extra}\]'",
    ):
        Storage(url)


def test_errors_that_mean_denied() -> None:
    from azure.core.exceptions import ClientAuthenticationError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import DefaultCredentialsError

    def is_denied(error: Any) -> bool:
        return object_stores.is_denied(error)

    assert is_denied(HttpError({"code": 401, "message": "Invalid Credentials"}))
    assert is_denied(OSError("Forbidden: b/x\nno"))
    assert is_denied(ClientAuthenticationError("DefaultAzureCredential failed"))
    no_credentials: Callable[[str], Exception] = DefaultCredentialsError
    assert is_denied(no_credentials("none were found"))
    assert not is_denied(HttpError({"code": 503, "message": "busy"}))
    assert not is_denied(OSError("no space left"))
