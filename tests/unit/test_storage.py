"""Storage on a local disk and on servers of object stores: the same methods, the same guarantees."""

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import FileChangedError, StorageError
from pipeline.local_disk import DRAFT, FileInfo
from pipeline.storage import (
    REQUESTS_AT_ONCE,
    Storage,
    map_in_threads,
)
from tests.conftest import OBJECT_STORES


@pytest.fixture(params=["local", *OBJECT_STORES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    server = request.getfixturevalue(request.param)
    return Storage(f"{server.bucket('storage')}/{tmp_path.name}/root")


def names(store: Storage, folder: str = "") -> list[str]:
    return [info.name for info in store.files(folder)]


def test_missing_folder_lists_nothing(store: Storage) -> None:
    assert names(store) == []
    assert names(store, "a") == []


def test_put_list_read_delete(store: Storage) -> None:
    store.put("b/2", b"two")
    store.put("a", b"one")
    store.put("b/2", b"TWO!")
    assert [(i.name, i.size) for i in store.files()] == [("a", 3), ("b/2", 4)]
    assert names(store, "b") == ["b/2"]
    assert store.read("b/2") == b"TWO!"
    with store.open("b/2") as file:
        assert file.read() == b"TWO!"
    store.put("empty", b"")
    ends = {info.name: store.read_end(info, 3) for info in store.files()}
    assert ends == {"a": b"one", "b/2": b"WO!", "empty": b""}
    store.delete(["empty"])
    with pytest.raises(FileNotFoundError):
        store.read("c")
    store.delete(["a", "b/2", "gone"])
    assert names(store) == []


def test_many_files_are_read_in_order_and_removed(store: Storage) -> None:
    files = {f"a/{i}": str(i).encode() for i in range(50)}
    for name, data in files.items():
        store.put(name, data)
    assert list(store.read_all(files)) == list(files.values())
    with pytest.raises(FileNotFoundError):
        list(store.read_all([*files, "a/none"]))
    store.delete([*files, "a/none"])
    assert names(store) == []


def test_tag_changes_with_the_content(store: Storage) -> None:
    store.put("a", b"one")
    [before] = store.files()
    store.put("a", b"two")
    [after] = store.files()
    assert before.tag != after.tag


def test_one_of_concurrent_creators_wins(store: Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: store.create("lease", str(i).encode()), range(8)))
    assert sum(won) == 1
    assert store.read("lease") == str(won.index(True)).encode()
    assert not store.create("lease", b"late")


@pytest.mark.parametrize("size", [3, 6 * 2**20], ids=["small", "large"])
def test_a_file_is_replaced_in_the_version_that_was_read_only(store: Storage, size: int) -> None:
    assert store.version("a") is None
    with store.writing("a", over=None) as file:
        file.write(b"1" * size)
    first = store.version("a")
    for stale in (None, "1"):
        with pytest.raises(FileChangedError), store.writing("a", over=stale) as file:
            file.write(b"no")
    with store.writing("a", over=first) as file:
        file.write(b"2" * size)
    assert store.version("a") != first
    with pytest.raises(FileChangedError), store.writing("a", over=first) as file:
        file.write(b"no")
    with pytest.raises(FileChangedError), store.writing("removed", over=first) as file:
        file.write(b"no")
    assert store.read("a") == b"2" * size
    assert names(store) == ["a"]


def test_a_store_without_conditional_puts_compares_before_it_writes() -> None:
    store = Storage("memory://conditional")
    with store.writing("a", over=None) as file:
        file.write(b"1")
    first = store.version("a")
    with pytest.raises(FileChangedError), store.writing("a", over=None) as file:
        file.write(b"no")
    with store.writing("a", over=first) as file:
        file.write(b"2")
    assert store.read("a") == b"2"


def test_glob_matches_files_below_the_root(store: Storage) -> None:
    for name in ("en/a.parquet", "en/b.txt", "de/c.parquet"):
        store.put(name, b"x")
    assert [i.name for i in store.glob("*/*.parquet")] == ["de/c.parquet", "en/a.parquet"]
    assert [i.name for i in store.glob("en/*")] == ["en/a.parquet", "en/b.txt"]
    left_out = list[str]()
    store.glob("e*", left_out)
    assert left_out == ["en (a folder; add /*.parquet to the path to have its files)"]


def test_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match=r"can't open ftpx://a/b: Protocol not known"):
        Storage("ftpx://a/b")


def test_links_to_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "blob")
    (tmp_path / "root/broken").symlink_to(tmp_path / "nothing")
    assert [(i.name, i.size) for i in Storage(str(tmp_path / "root")).files()] == [("link", 1)]


def test_threads_work_ahead_of_the_reader_by_a_bounded_number_of_items() -> None:
    started = list[int]()

    def square(item: int) -> int:
        started.append(item)
        return item * item

    results = map_in_threads(square, range(1000))
    assert next(results) == 0
    assert len(started) <= REQUESTS_AT_ONCE + 1
    assert list(results) == [item * item for item in range(1, 1000)]


# What each method does at its borders


def test_root_is_a_file_or_a_folder_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for name, is_file, is_folder in (
        ("", False, True),
        ("file", True, False),
        ("no", False, False),
    ):
        store = Storage(f"{tmp_path}/{name}")
        assert (store.is_file(), store.is_folder()) == (is_file, is_folder)
    assert Storage(f"{tmp_path}/").location == str(tmp_path)
    assert Storage(f"{tmp_path}/file").files() == []


def test_only_files_are_listed_whatever_lies_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Storage(str(tmp_path))
    for name in ("b/c", "b/a", "a", "b.txt", f".x.1{DRAFT}"):
        store.put(name, b"1")
    os.mkfifo(tmp_path / "b/pipe")
    (tmp_path / "b/gone").symlink_to(tmp_path / "nothing")
    assert names(store) == ["a", "b.txt", "b/a", "b/c"]
    assert [info.name for info in store.glob("*")] == ["a", "b.txt"]
    assert [info.name for info in store.glob("**/*")] == ["a", "b.txt", "b/a", "b/c"]
    [info] = store.files("b")[:1]
    assert info == FileInfo("b/a", 1, str((tmp_path / "b/a").stat().st_mtime_ns))
    assert store.exists("b/a")
    assert not store.exists("b/x")


@pytest.mark.parametrize("is_new", [True, False])
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool
) -> None:
    store = Storage(str(tmp_path))
    if not is_new:
        store.put("a", b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"can't write .*No space left"):
        store.put("a", b"new")
    with pytest.raises(StorageError, match=r"can't write .*No space left"):
        store.create("b", b"new")
    with pytest.raises(StorageError, match=r"can't write .*No space left"):
        with store.writing("a") as file:
            file.write(b"new")
    assert {path.name for path in tmp_path.iterdir()} == (set() if is_new else {"a"})


def test_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = list[int](), os.fsync

    def record(handle: int) -> None:
        assert not (tmp_path / "a").exists()
        synced.append(os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    Storage(str(tmp_path)).put("a", b"data")
    assert synced == [4]


def test_written_file_appears_when_it_is_whole(store: Storage) -> None:
    with store.writing("x/a") as file:
        file.write(b"one")
        file.write(b"two")
        assert names(store) == []
    assert store.read("x/a") == b"onetwo"
    with pytest.raises(OSError, match="of the body") as caught:
        with store.writing("x/a") as file:
            file.write(b"half")
            raise OSError("of the body")
    assert not isinstance(caught.value, StorageError)
    assert store.read("x/a") == b"onetwo"
    assert names(store) == ["x/a"]


def test_empty_folders_are_removed_and_others_stay(tmp_path: Path) -> None:
    store = Storage(str(tmp_path))
    store.put("a/b/c/file", b"")
    (tmp_path / "a/b/d/e").mkdir(parents=True)
    store.prune("a")
    assert not (tmp_path / "a/b/d").exists()
    assert names(store) == ["a/b/c/file"]
    store.delete(["a/b/c/file"])
    store.prune("a/b")
    assert [path.name for path in tmp_path.rglob("*")] == ["a"]
    store.prune("none")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("no\nmore"), r"can't delete /.*: access denied \(no\); check the credent"),
        (ImportError("install s3fs"), r"can't delete /.*: install s3fs$"),
        (ValueError("bad\nvalue"), r"can't delete /.*: bad$"),
        (
            type("ClientError", (Exception,), {"__module__": "aiohttp.client"})("down"),
            r"/.*: down$",
        ),
    ],
)
def test_errors_of_clients_say_what_was_tried_and_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    store = Storage(str(tmp_path))
    store.put("a", b"")
    monkeypatch.setattr(type(store.fs), "rm_file", lambda *_: _raise(error))
    with pytest.raises(StorageError, match=message):
        store.delete(["a"])
    monkeypatch.setattr(type(store.fs), "rm_file", lambda *_: _raise(KeyError("a fault of ours")))
    with pytest.raises(KeyError):
        store.delete(["a"])


def _raise(error: Exception) -> None:
    raise error


def test_items_are_drawn_as_far_ahead_as_threads_work() -> None:
    drawn = list[int]()

    def source() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    results = map_in_threads(str, source())
    assert next(results) == "0"
    assert len(drawn) == REQUESTS_AT_ONCE + 1
    assert next(results) == "1"
    assert len(drawn) == REQUESTS_AT_ONCE + 2
    assert len(list(results)) == 98


def test_disk_that_becomes_full_while_a_file_is_written_is_an_error_of_the_storage(
    tmp_path: Path,
) -> None:
    """What writes has no part in it; any other error of its own passes through."""
    store = Storage(str(tmp_path))
    with pytest.raises(StorageError, match="No space left on device"), store.writing("a", None):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError), store.writing("a", None):
        raise FileNotFoundError(errno.ENOENT, "a fragment that was removed")
    assert list(tmp_path.iterdir()) == []
    # A buffer that is still to be written as the file is closed.
    full = Path("/dev/full")
    if full.exists():
        with (
            pytest.raises(StorageError, match="No space left on device"),
            store.writing("b", None) as file,
            full.open("wb") as disk,
        ):
            os.dup2(disk.fileno(), file.fileno())
            file.write(b"x")
            raise KeyError("what the body raises meanwhile")


def test_end_of_a_file_is_that_of_the_listed_one(store: Storage) -> None:
    """The file has grown since."""
    store.put("a", b"one more")
    assert store.read_end(FileInfo("a", 3, "t"), 2) == b"ne"
    assert store.read_end(FileInfo("a", 3, "t"), 99) == b"one"
