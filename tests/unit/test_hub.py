"""The stub of the Hugging Face hub behaves as huggingface_hub and `datasets` expect."""

import types
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import _http

from tests.hub import Hub
from tests.hub_answers import TOKEN

NAME = "org/name"


def commit(data: bytes, path: str = "a/x.parquet") -> str:
    operation = CommitOperationAdd(path, data)
    return HfApi().create_commit(NAME, [operation], commit_message="m", repo_type="dataset").oid


def test_what_is_committed_can_be_read(hub: Hub) -> None:
    HfApi().create_repo(NAME, repo_type="dataset", exist_ok=True)
    HfApi().create_repo(NAME, repo_type="dataset", exist_ok=True)
    oid = commit(b"0123456789")
    commit(b"---\nlicense: mit\n---\n", "README.md")
    files = HfFileSystem()
    assert files.find(f"datasets/{NAME}") == [
        f"datasets/{NAME}/README.md",
        f"datasets/{NAME}/a/x.parquet",
    ]
    assert files.cat_file(f"datasets/{NAME}/a/x.parquet", start=2, end=5) == b"234"
    path = hf_hub_download(NAME, "a/x.parquet", repo_type="dataset", revision=oid)
    assert Path(path).read_bytes() == b"0123456789"
    assert oid in path
    with pytest.raises(RevisionNotFoundError):
        HfApi().dataset_info(NAME, revision="v9")


def test_writers_need_the_token_and_the_repository(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RepositoryNotFoundError):
        commit(b"x")
    monkeypatch.setenv("HF_TOKEN", TOKEN[::-1])
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        HfApi().create_repo(NAME, repo_type="dataset")


def test_a_killed_hub_keeps_what_it_has(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda _: None))  # between tries
    HfApi().create_repo(NAME, repo_type="dataset")
    hub.dies_after = lambda line: line.startswith("PUT /lfs/")
    with pytest.raises(RuntimeError, match="uploading"):
        commit(b"x")
    assert len(hub.uploads) == 1
    assert len(hub.repos[NAME]) == 1
    hub.start()
    commit(b"x")
    assert len(hub.uploads) == 1
    assert hub.files(NAME) == {"a/x.parquet": b"x"}
