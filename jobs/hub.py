"""Push the files of a folder to a data set on the Hugging Face hub, each once.

What is there is asked of the hub alone, by the hashes of its files; so a push that was killed, or
is repeated, sends only what is missing. `DIGESTS`, in the folder, keeps the hash of each file that
was read, with its size and tag, so that the next push need not read it again.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from pipeline.errors import ConfigError, OutputError, QwqBatchError, StorageError, first_line
from pipeline.local_disk import FileInfo
from pipeline.output.layout import BOOKKEEPING
from pipeline.storage import Storage

DIGESTS = f"{BOOKKEEPING}/pushed.json"
CARD = "README.md"
CARDS = "cards"  # the entry of `DIGESTS` with the cards that were sent
DATA = (".parquet", ".jsonl")
# The hub advises 50 to 100 files for a commit. Files from an object store are copied to a local
# disk before they are sent, those of one commit at a time.
FILES_A_COMMIT, BYTES_A_COMMIT = 64, 2**30
_TARGET = re.compile(r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+)/?")
_REFUSED = (401, 403)
# huggingface_hub, and what sends its requests in one version or another.
_CLIENTS = ("huggingface_hub", "httpx2", "httpx", "requests", "hf_xet")
MOST_NAMED = 3
CHUNK = 2**20

Report = Callable[[str], None]


@dataclass(frozen=True)
class Pushed:
    """What a push did: ``sent`` and ``there`` (before) count files. ``notes``: for people."""

    sent: int
    there: int
    notes: tuple[str, ...] = ()


def dataset_of(target: str) -> str:
    """``ORG/NAME`` of ``hf://datasets/ORG/NAME``; raises `ConfigError` for anything else."""
    if found := _TARGET.fullmatch(target):
        return found["repo"]
    raise ConfigError(
        f"{target} is not a data set on the hub; write hf://datasets/ORG/NAME, without a branch or "
        "a path in it"
    )


def push_files(
    store: Storage, files: Mapping[str, FileInfo], card: bytes, target: str, report: Report
) -> Pushed:
    """Send the files that the data set ``target`` lacks or has otherwise, then its card.

    ``files``: those of ``store`` by their paths in the data set, which is made, private, if it does
    not exist. ``report`` gets a line for each commit. Raises `OutputError`, before anything is
    sent, if the data set has data of others, and `StorageError` if the hub refuses or does not
    answer.
    """
    repo = dataset_of(target)
    with _errors(target):
        dataset = _Dataset.open(repo)
        _refuse_others(target, set(dataset.there) - files.keys())
        digests = _Digests(store)
        todo = [path for path, info in files.items() if not dataset.has(path, info, digests)]
        sent, left = 0, iter(todo)
        while batch := _batch(left, files):
            with tempfile.TemporaryDirectory() as folder:
                local = {
                    path: _local(store, files[path], folder, i) for i, path in enumerate(batch)
                }
                hashes = dataset.commit(local, f"qwq-batch: {len(batch)} files")
            for path, digest in hashes.items():
                digests.keep(files[path], digest)
            digests.write()
            sent += len(batch)
            report(f"{sent:,} of {len(todo):,} files")
        notes = _push_card(dataset, card, digests, target)
        digests.write()
    if dataset.is_new:
        notes += ("the data set is new and private; its settings on the hub make it public",)
    return Pushed(sent, len(files) - len(todo), notes)


def _batch(left: Iterator[str], files: Mapping[str, FileInfo]) -> list[str]:
    """The next paths of ``left`` for one commit; none at the end."""
    batch, size = list[str](), 0
    for path in islice(left, FILES_A_COMMIT):
        batch.append(path)
        size += files[path].size
        if size >= BYTES_A_COMMIT:
            break
    return batch


def _local(store: Storage, info: FileInfo, folder: str, number: int) -> str:
    """The path of a file on a local disk: its own, or that of a copy in ``folder``."""
    if store.is_local:
        return store.path(info.name)
    path = Path(folder) / str(number)
    store.copy_to(info.name, path)
    return str(path)


def _refuse_others(target: str, paths: set[str]) -> None:
    """Raise `OutputError` if data among ``paths`` would be mixed with ours."""
    others = sorted(path for path in paths if path.endswith(DATA))
    if others:
        more = len(others) - MOST_NAMED
        named = ", ".join(others[:MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")
        raise OutputError(
            f"{target} has files that this output does not have, and readers would mix them: "
            f"{named}; remove them there, or push to another data set"
        )


def _push_card(
    dataset: "_Dataset", card: bytes, digests: "_Digests", target: str
) -> tuple[str, ...]:
    """Send the card, unless it is there or people have written another."""
    new, there = _git_hash(card), dataset.there.get(CARD)
    if there is not None and there.blob_id == new:
        return ()
    if there is not None and there.blob_id not in digests.cards:
        return (
            f"{CARD} of {target} is not ours, and stays; remove it there to get the run's card",
        )
    digests.cards.append(new)
    digests.write()  # before it is sent: else, after a kill, it would pass for somebody else's
    dataset.commit({CARD: card}, "qwq-batch: the card")
    return ()


class _Dataset:
    """A data set on the hub. ``there``: its files, as huggingface_hub lists them, by path."""

    def __init__(self, repo: str, api: Any, is_new: bool, there: dict[str, Any]) -> None:
        self.repo, self.is_new, self.there = repo, is_new, there
        self._api = api

    @classmethod
    def open(cls, repo: str) -> "_Dataset":
        """The data set, made if need be."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        api = HfApi()
        try:
            api.repo_info(repo, repo_type="dataset")
            is_new = False
        except RepositoryNotFoundError:
            api.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
            is_new = True
        listed = api.list_repo_tree(repo, repo_type="dataset", recursive=True)
        return cls(repo, api, is_new, {f.path: f for f in listed if hasattr(f, "blob_id")})

    def has(self, path: str, info: FileInfo, digests: "_Digests") -> bool:
        """Whether the data set has the file at ``path``, with the same content."""
        file = self.there.get(path)
        if file is None or file.size != info.size:
            return False
        return digests.matches(info, file.blob_id if file.lfs is None else file.lfs.sha256)

    def commit(self, files: Mapping[str, str | bytes], title: str) -> dict[str, str]:
        """Commit files, local paths or bytes, by their paths here; returns their SHA-256."""
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path, data) for path, data in files.items()]
        self._api.create_commit(self.repo, operations, commit_message=title, repo_type="dataset")
        return {each.path_in_repo: each.upload_info.sha256.hex() for each in operations}


class _Digests:
    """The hashes of files that are known; and of the cards that were sent."""

    def __init__(self, store: Storage) -> None:
        self._store = store
        try:
            self._known: dict[str, list[Any]] = json.loads(store.read(DIGESTS))
        except (FileNotFoundError, ValueError):
            self._known = {}
        self.cards: list[str] = self._known.setdefault(CARDS, [])
        self._written = json.dumps(self._known)

    def matches(self, info: FileInfo, remote: str) -> bool:
        """Whether a file of the same size has the hash ``remote``: its SHA-256, or git's."""
        if self._known.get(info.name) == [info.size, info.tag, remote]:
            return True
        with self._store.open(info.name) as file:
            is_git = len(remote) == hashlib.sha1(usedforsecurity=False).digest_size * 2
            digest = _git_hash(file.read()) if is_git else _sha256(file)
        self.keep(info, digest)
        return digest == remote

    def keep(self, info: FileInfo, digest: str) -> None:
        """Note the hash of a file."""
        self._known[info.name] = [info.size, info.tag, digest]

    def write(self) -> None:
        """Keep what is known, if it has changed."""
        if (text := json.dumps(self._known)) != self._written:
            self._store.put(DIGESTS, text.encode())
            self._written = text


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _errors(target: str) -> Iterator[None]:
    """Errors of the hub as `StorageError`, without the addresses that it signed."""
    try:
        yield
    except (QwqBatchError, FileNotFoundError):
        raise
    except Exception as error:
        client = type(error).__module__.partition(".")[0]
        if client not in _CLIENTS and not isinstance(error, (OSError, RuntimeError, ValueError)):
            raise
        remedy = "the same command goes on"
        if getattr(getattr(error, "response", None), "status_code", None) in _REFUSED:
            organization = dataset_of(target).partition("/")[0]
            remedy = f"set HF_TOKEN to a token that may write to {organization}"
        message = re.sub(r"\?\S*", "", first_line(error))
        raise StorageError(f"can't push to {target}: {message}; {remedy}") from None
