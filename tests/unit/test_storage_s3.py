"""Storage on S3: a real server, and answers that a server gives seldom."""

from typing import Any

import pytest

from pipeline.errors import FileChangedError, StorageError
from pipeline.local_disk import FileInfo
from pipeline.object_stores import S3, ObjectStore, object_store
from pipeline.storage import Storage
from tests.s3 import S3Server


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_one_clear_message_without_them(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import s3fs

    s3.filesystem().makedirs("guarded", exist_ok=True)
    monkeypatch.setenv(name, "planted-wrong-value")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"check the credentials") as caught:
        Storage("s3://guarded/x").files()
    assert "planted" not in str(caught.value)


def test_folder_placeholders_of_s3_consoles_are_ignored(s3: S3Server) -> None:
    s3.filesystem().makedirs("console", exist_ok=True)
    s3.filesystem().pipe_file("console/out/", b"")
    assert Storage("s3://console/out").files() == []


def s3_error(code: str) -> OSError:
    """As s3fs raises it: an error of the system, with what the server said behind it."""
    cause = Exception("of the client")
    cause.response = {"Error": {"Code": code}}  # type: ignore[attr-defined]
    error = OSError(22, "refused")
    error.__cause__ = cause
    return error


class FakeS3:
    """A filesystem that is not local, and answers each put with what it was given."""

    def __init__(self, *answers: Exception | None) -> None:
        self.answers, self.puts, self.forgotten = list(answers), 0, list[str | None]()

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def cat_file(self, path: str) -> bytes:
        return b"another's"

    def call_s3(self, method: str, **more: Any) -> None:
        put = {"Bucket": "bucket", "Key": "out/lease", "Body": b"x", "IfNoneMatch": "*"}
        assert (method, more) == ("put_object", put)
        self.puts += 1
        if answer := self.answers.pop(0):
            raise answer

    def invalidate_cache(self, path: str | None = None) -> None:
        self.forgotten.append(path)

    def exists(self, path: str) -> bool:
        return path in ("bucket", "bucket/out/a/b")

    def find(self, path: str, detail: bool) -> dict[str, Any]:
        if path != "bucket/out":
            raise FileNotFoundError(path)
        file = {"type": "file", "size": 3, "ETag": '"e"'}
        return {
            "bucket/out/b": {"type": "file", "size": None, "etag": "f"},
            "bucket/out/a": file,
            "bucket/out/folder": {"type": "directory", "size": 0},
            "bucket/out/placeholder/": file,
            "bucket/outside": file,
        }

    def glob(self, path: str, detail: bool) -> dict[str, Any]:
        return {} if path.endswith("none") else self.find("bucket/out", detail)


def on(fake: FakeS3, url: str = "s3://bucket/out") -> Storage:
    store = Storage("memory://x")
    store.url, store.fs, store.root = url, fake, url.removeprefix("s3://")
    store._store = S3.__new__(S3)
    store._store.fs, store._store.root = store.fs, store.root
    return store


@pytest.mark.parametrize(
    ("answers", "created"),
    [
        ([None], True), ([s3_error("PreconditionFailed")], False),
        ([s3_error("ConditionalRequestConflict"), None], True),
        ([s3_error("ConditionalRequestConflict"), s3_error("PreconditionFailed")], False),
    ],
)  # fmt: skip
def test_s3_says_in_several_ways_that_a_file_exists(
    answers: list[Exception | None], created: bool
) -> None:
    fake = FakeS3(*answers)
    assert on(fake).create("lease", b"x") is created
    assert fake.puts == len(answers)


def test_file_that_was_removed_is_changed_however_s3_says_it(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS answers 404 to If-Match then."""
    store = Storage(f"{s3.bucket('removed')}/x")

    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("a")

    monkeypatch.setattr(store.fs, "call_s3", gone)
    with pytest.raises(FileChangedError), store.writing("a", over="e") as file:
        file.write(b"x")


def test_failed_create_is_an_error() -> None:
    for answers in ([s3_error("SlowDown")], [s3_error("ConditionalRequestConflict")] * 2):
        fake = FakeS3(*answers)
        with pytest.raises(StorageError, match=r"can't write s3://bucket/out: .*refused"):
            on(fake).create("lease", b"x")
        assert fake.puts == len(answers)


def test_listing_of_a_store_has_files_alone_and_is_never_an_old_one() -> None:
    fake = FakeS3()
    store = on(fake)
    expected = [FileInfo("a", 3, "e"), FileInfo("b", 0, "f")]
    assert store.files() == expected
    assert store.files("elsewhere") == []
    assert store.glob("*") == expected
    assert store.glob("none") == []
    assert fake.forgotten == [None] * 4
    assert store.exists("a/b")
    assert not store.exists("a/c")
    assert fake.forgotten[4:] == ["bucket/out/a"] * 2
    assert (store.location, store.path(""), store.path("x")) == (
        "s3://bucket/out", "bucket/out", "bucket/out/x",
    )  # fmt: skip
    gone = on(FakeS3(), "s3://gone/out")
    with pytest.raises(StorageError, match=r"s3://gone does not exist: create the bucket"):
        gone.files("x")
    with pytest.raises(StorageError, match=r"s3://gone does not exist: create the bucket"):
        gone.glob("none")


@pytest.mark.parametrize(
    ("info", "tag"),
    [
        ({"ETag": '"a"', "etag": "b", "mtime": 1}, "a"), ({"etag": "b", "mtime": 1}, "b"),
        ({"mtime": 1.5, "LastModified": 2}, "1.5"), ({"LastModified": 2}, "2"),
    ],
)  # fmt: skip
def test_tag_is_the_best_that_a_store_has(info: dict[str, Any], tag: str) -> None:
    assert ObjectStore("memory://x", 1).version_of(info) == tag


def test_s3_is_asked_patiently() -> None:
    for url in ("s3://b/x", "s3a://b/x"):
        store = object_store(url, 7)
        assert store.fs.config_kwargs == {
            "retries": {"mode": "legacy", "max_attempts": 7},
            "connect_timeout": 20,
            "read_timeout": 60,
        }
        assert not store.fs.dircache.use_listings_cache
    assert Storage("s3://b/x", 7).fs.config_kwargs["retries"]["max_attempts"] == 7
