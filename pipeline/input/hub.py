"""Data sets on the Hugging Face hub: one revision, one configuration, one split.

``hf://datasets/ORG/NAME`` names a data set, ``@REVISION`` after it a branch, tag or commit. Which
files a split has is in the data set's card, or else in the names of the files.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

import pyarrow as pa
import yaml
from fsspec.utils import glob_translate

from pipeline.errors import InputError, OutputError, first_line
from pipeline.input.converted import Format
from pipeline.input.files import InputFiles, format_of, list_input, named, of_one_format
from pipeline.local_disk import FileInfo
from pipeline.storage import Storage

HUB = "hf://"
CARD = "README.md"
READ_BYTES = 2**20
_URL = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(?P<path>/.*)?")
_FRONT_MATTER = re.compile(r"\A\ufeff?---[ \t]*\n(.*?)\n---", re.DOTALL)
# The names of splits in file names, as `datasets` looks for them.
_SPLITS = {
    "train": "train|training", "validation": "validation|valid|val|dev",
    "test": "test|testing|eval",
}  # fmt: skip


class DataSet(NamedTuple):
    """A data set on the hub at one commit, or some of its files."""

    repo: str
    revision: str
    path: str

    @property
    def url(self) -> str:
        """Its URL, with the commit."""
        return f"{HUB}datasets/{self.repo}@{self.revision}{self.path}"


def pinned(url: str, revision: str | None = None) -> DataSet:
    """The data set at ``url`` as it is now, or at the commit ``revision`` that a run began with.

    Raises `InputError` if there is none, or the hub does not show it, and `OutputError` if ``url``
    asks for another commit than ``revision``.
    """
    found = _URL.fullmatch(url.rstrip("/"))
    if found is None:
        raise InputError(
            f"input.path {url}: a data set on the hub is hf://datasets/ORG/NAME, with @REVISION or "
            "the path of a file after it if need be"
        )
    repo, path = found["repo"], found["path"] or ""
    if revision is not None and found["revision"] in (None, revision):
        return DataSet(repo, revision, path)
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    wanted = (found["revision"] or "main").replace("%2F", "/")
    try:
        info = HfApi(endpoint=constants.ENDPOINT).dataset_info(repo, revision=wanted)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"input.path {url}: {constants.ENDPOINT} does not show that data set "
            f"({first_line(error)}); check its name and revision, and HF_TOKEN if it is private or "
            "gated"
        ) from None
    now = DataSet(repo, str(info.sha), path)
    if revision not in (None, now.revision):
        raise OutputError(
            f"input.path {url} is now at commit {now.revision}, and the run began with {revision}; "
            f"to go on, set it to {now._replace(revision=str(revision)).url}, else choose another "
            "output.path"
        )
    return now


def pinned_revision(url: str) -> str:
    """The commit in the URL of a `DataSet`."""
    found = _URL.fullmatch(url)
    assert found is not None
    return str(found["revision"])


def list_data_set(data: DataSet, subset: str | None, split: str | None) -> InputFiles:
    """The files of a split of ``data``.

    ``subset``: the configuration, as its card calls it. Both are needed only where there is a
    choice. Raises `InputError` that names what there is.
    """
    if data.path:
        if subset or split:
            raise InputError(
                f"input.path {data.url} names files; leave out input.subset and input.split"
            )
        return list_input(data.url)
    store = Storage(data.url)
    files = [i for i in store.files() if not i.name.startswith((".", "_"))]
    splits = _of_card(data, store, subset) or _of_names(data, files, subset)
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        said = "" if split is None else f"no split {split}, "
        raise InputError(
            f"input.path {data.url} has {said}{'but' if said else 'the splits'} "
            f"{', '.join(splits)}; choose one with input.split"
        )
    matches = [re.compile(glob_translate(pattern)).match for pattern in splits[split]]
    taken = [i for i in files if any(match(i.name) for match in matches)]
    if not taken:
        raise InputError(
            f"input.path {data.url}: no file is named {', '.join(splits[split])}, as its "
            f"card says; it has {named([i.name for i in files])}"
        )
    return of_one_format(InputFiles(data.url, store, "", taken), is_folder=False)


def _of_card(data: DataSet, store: Storage, subset: str | None) -> dict[str, list[str]]:
    """The patterns of the files of each split of ``subset``, by the card; empty if it has none."""
    try:
        text = store.read(CARD).decode(errors="replace")
    except FileNotFoundError:
        return {}
    header = _FRONT_MATTER.search(text)
    try:
        card = yaml.safe_load(header[1]) if header else None
    except yaml.YAMLError:
        card = None
    configs = card.get("configs") if isinstance(card, dict) else None
    by_name = {
        str(c["config_name"]): c for c in configs or () if "config_name" in c and "data_files" in c
    }
    if not by_name:
        return {}
    if subset is None:
        first = [name for name, c in by_name.items() if c.get("default") or name == "default"]
        subset = next(iter(by_name)) if len(by_name) == 1 else next(iter(first), None)
    if subset not in by_name:
        raise InputError(
            f"input.path {data.url} has the subsets {', '.join(by_name)}; choose one with "
            "input.subset"
        )
    return dict(_patterns(by_name[subset]))


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    folder = f"{config['data_dir'].strip('/')}/" if config.get("data_dir") else ""
    given = config["data_files"]
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        given = [{"split": "train", "path": given}]
    for each in given:
        paths = each["path"] if isinstance(each["path"], list) else [each["path"]]
        yield str(each.get("split", "train")), [f"{folder}{path}" for path in paths]


def _of_names(data: DataSet, files: Iterable[FileInfo], subset: str | None) -> dict[str, list[str]]:
    """The files of each split by what is in their names; all are of one split if nothing is."""
    names = [i.name for i in files if format_of(i.name)]
    if subset is not None:
        names = [name for name in names if name.startswith(f"{subset}/")]
    if not names:
        below = "" if subset is None else f" in {subset}/"
        raise InputError(
            f"input.path {data.url}: no Parquet, JSON lines, CSV or Arrow files there{below}"
        )
    splits = dict[str, list[str]]()
    for name in names:
        found = next((s for s, words in _SPLITS.items() if _has_word(name, words)), "train")
        splits.setdefault(found, []).append(_literal(name))
    return splits


def _has_word(name: str, words: str) -> bool:
    return bool(re.search(rf"(^|[^a-z])({words})([^a-z]|$)", name, re.IGNORECASE))


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


class Copies(Format):
    """Parquet files that become shards as they are."""

    def write(
        self,
        store: Storage,
        name: str,
        schema: pa.Schema | None,
        shard: IO[bytes],
    ) -> None:
        """Copy the file ``name``; see `converted.Format`."""
        with store.open(name) as file:
            while data := file.read(READ_BYTES):
                shard.write(data)
