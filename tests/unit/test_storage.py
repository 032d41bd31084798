"""Storage on a local disk and on a real S3 server: the same methods, the same guarantees."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import FileChangedError, StorageError
from pipeline.storage import REQUESTS_AT_ONCE, Storage, check_reachable, map_in_threads
from tests.s3 import S3Server


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    server: S3Server = request.getfixturevalue("s3")
    server.filesystem().makedirs("storage", exist_ok=True)
    return Storage(f"s3://storage/{tmp_path.name}/root")


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
    for stale in (None, "other"):
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


def test_missing_bucket_is_one_clear_message(s3: S3Server) -> None:
    store = Storage("s3://no-such-bucket/x")
    for attempt in (store.files, lambda: store.glob("*.parquet"), lambda: store.read("a")):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*does not exist"):
            attempt()


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


def test_unreachable_server_is_named(monkeypatch: pytest.MonkeyPatch, s3: S3Server) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"can't list s3://bucket/x: .*127.0.0.1:9"):
        check_reachable("s3://bucket/x")


def test_unknown_protocol_is_named() -> None:
    with pytest.raises(StorageError, match=r"can't open ftpx://a/b: Protocol not known"):
        Storage("ftpx://a/b")


def test_links_to_files_are_files(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"x")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "blob")
    (tmp_path / "root/broken").symlink_to(tmp_path / "nothing")
    assert [(i.name, i.size) for i in Storage(str(tmp_path / "root")).files()] == [("link", 1)]


def test_folder_placeholders_of_s3_consoles_are_ignored(s3: S3Server) -> None:
    s3.filesystem().makedirs("console", exist_ok=True)
    s3.filesystem().pipe_file("console/out/", b"")
    assert Storage("s3://console/out").files() == []


def test_threads_work_ahead_of_the_reader_by_a_bounded_number_of_items() -> None:
    started = list[int]()

    def square(item: int) -> int:
        started.append(item)
        return item * item

    results = map_in_threads(square, range(1000))
    assert next(results) == 0
    assert len(started) <= REQUESTS_AT_ONCE + 1
    assert list(results) == [item * item for item in range(1, 1000)]
