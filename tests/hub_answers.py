"""What the stub of the hub (`tests.hub`) answers: its data sets, and each request that clients make."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    from tests.hub import Hub

TOKEN = "hf_" + "S" * 34
LFS = (".parquet", ".arrow", ".gz", ".zst", ".bin")
MAIN = "main"
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class Blob:
    """A file of a commit, with the ids that git and LFS give it."""

    data: bytes
    is_lfs: bool

    @property
    def sha256(self) -> str:
        """The id of the content in LFS."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The id of the content in git; of a large file, that of its pointer."""
        size = len(self.data)
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n"
        )
        data = pointer.encode() if self.is_lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def info(self, path: str) -> dict[str, Any]:
        """The file in a listing."""
        found = {"type": "file", "path": path, "size": len(self.data), "oid": self.oid}
        if not self.is_lfs:
            return found
        return found | {"lfs": {"oid": self.sha256, "size": len(self.data), "pointerSize": 134}}


@dataclass(frozen=True)
class Commit:
    """All files after one commit, and the paths that it added or replaced."""

    oid: str
    title: str
    files: Mapping[str, Blob]
    added: tuple[str, ...] = ()


class Refusal(Exception):  # noqa: N818
    """An answer with an error."""

    def __init__(self, status: int, message: str, code: str = "", **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


def commit_of(
    before: list[Commit], files: Mapping[str, Blob], title: str, added: tuple[str, ...] = ()
) -> Commit:
    content = [title, str(len(before)), *(f"{path} {files[path].oid}" for path in sorted(files))]
    oid = hashlib.sha1("\n".join(content).encode()).hexdigest()
    return Commit(oid, title, dict(files), added)


@dataclass
class HubRequest:
    """One request: ``result`` is what is answered as JSON, or status, headers and bytes."""

    hub: "Hub"
    method: str
    headers: dict[str, str]
    query: dict[str, str]
    body: bytes

    def result(self, path: str) -> Any:
        for pattern, method, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.method in method:
                parts = {name: unquote(value) for name, value in found.groupdict("").items()}
                if "repo" in parts:
                    self._require_access(parts["repo"])
                return answer(self, **parts)
        raise Refusal(404, f"the stub has no {self.method} {path}")

    @property
    def _json(self) -> Any:
        return json.loads(self.body)

    @property
    def _has_token(self) -> bool:
        given = {name.lower(): value for name, value in self.headers.items()}.get("authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return given is not None

    def _require_access(self, repo: str) -> None:
        if repo not in self.hub.repos or (repo in self.hub.private and not self._has_token):
            raise Refusal(404 if self._has_token else 401, "Repository not found", "RepoNotFound")

    def _require_writer(self) -> None:
        if not self._has_token:
            raise Refusal(401, "Invalid username or password.")

    def _at(self, repo: str, revision: str) -> Commit:
        for commit in reversed(self.hub.repos[repo]):
            if revision in ("", MAIN, commit.oid) or revision == commit.oid[:7]:
                return commit
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # Reading

    def info(self, repo: str, revision: str) -> Any:
        commit = self._at(repo, revision)
        siblings = [
            {
                "rfilename": path,
                **({"size": len(b.data), "blobId": b.oid} if "blobs" in self.query else {}),
            }
            for path, b in sorted(commit.files.items())
        ]
        named = {
            "id": repo,
            "author": repo.partition("/")[0],
            "sha": commit.oid,
            "lastModified": DATE,
        }
        return {
            **named, "private": repo in self.hub.private, "gated": False, "disabled": False,
            "downloads": 0, "likes": 0, "tags": [], "createdAt": DATE, "siblings": siblings,
        }  # fmt: skip

    def refs(self, repo: str) -> Any:
        head = self._at(repo, MAIN).oid
        branch = {"name": MAIN, "ref": f"refs/heads/{MAIN}", "targetCommit": head}
        return {"branches": [branch], "converts": [], "tags": [], "pullRequests": []}

    def commits(self, repo: str, revision: str) -> Any:
        self._at(repo, revision)
        return [
            {
                "id": each.oid,
                "title": each.title,
                "message": "",
                "date": DATE,
                "authors": [{"user": "tester"}],
            }
            for each in reversed(self.hub.repos[repo])
        ]

    def tree(self, repo: str, revision: str, folder: str) -> Any:
        files = self._at(repo, revision).files
        begin = f"{folder}/" if folder else ""
        below = {path: blob for path, blob in files.items() if path.startswith(begin)}
        if folder and not below:
            raise Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        is_deep = self.query.get("recursive", "").lower() == "true"
        names = {path.removeprefix(begin) for path in below}
        folders = {name[:i] for name in names for i in range(len(name)) if name[i] == "/"}
        listed = [_folder(begin + name) for name in sorted(folders) if is_deep or "/" not in name]
        return listed + [
            below[begin + name].info(begin + name)
            for name in sorted(names)
            if is_deep or "/" not in name
        ]

    def paths_info(self, repo: str, revision: str) -> Any:
        files = self._at(repo, revision).files
        given = self.headers.get("Content-Type", "").startswith("application/json")
        paths = self._json["paths"] if given else parse_qs(self.body.decode()).get("paths", [])
        listed = list[Any]()
        for path in paths:
            if path in files:
                listed.append(files[path].info(path))
            elif any(name.startswith(f"{path}/") for name in files):
                listed.append(_folder(path))
        return listed

    def resolve(self, repo: str, revision: str, path: str) -> Any:
        commit = self._at(repo, revision)
        if (blob := commit.files.get(path)) is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if not blob.is_lfs:
            return self._ranged(blob.data, headers | {"ETag": f'"{blob.oid}"'})
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.data))}
        # Another host, as the hub's CDN is: clients keep the headers of this answer.
        headers["Location"] = f"http://localhost:{self.hub.port}/cdn/{blob.sha256}"
        return 302, headers, b""

    def content(self, oid: str) -> Any:
        return self._ranged(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _ranged(self, data: bytes, headers: dict[str, str]) -> Any:
        wanted = {name.lower(): value for name, value in self.headers.items()}.get("range")
        if wanted is None:
            return 200, headers, data
        start, _, end = wanted.removeprefix("bytes=").partition("-")
        first = int(start) if start else max(0, len(data) - int(end))
        last = min(int(end), len(data) - 1) if start and end else len(data) - 1
        if first >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return 206, headers, data[first : last + 1]

    # Writing

    def create(self) -> Any:
        self._require_writer()
        wanted = self._json
        if wanted.get("type") != "dataset":
            raise Refusal(400, "the stub has data sets only")
        repo = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
        url = f"{self.hub.url}/datasets/{repo}"
        if repo in self.hub.repos:
            raise Refusal(409, "You already created this dataset repo", url=url)
        self.hub.repos[repo] = [commit_of([], {}, "initial commit")]
        if wanted.get("visibility") == "private" or wanted.get("private"):
            self.hub.private.add(repo)
        return {"url": url, "name": repo, "id": "0"}

    def validate_yaml(self) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, repo: str, revision: str) -> Any:
        self._require_writer()
        files = self._at(repo, revision).files
        return {
            "files": [_upload_mode(each, files.get(each["path"])) for each in self._json["files"]]
        }

    def batch(self, repo: str) -> Any:
        self._require_writer()
        return {
            "transfer": "basic",
            "objects": [self._action(each) for each in self._json["objects"]],
        }

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.hub.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}

    def upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content does not have this id")
        self.hub.objects[oid] = self.body
        self.hub.uploads.append(oid)
        return {}

    def commit(self, repo: str, revision: str) -> Any:
        self._require_writer()
        if revision != MAIN:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        before = self.hub.repos[repo]
        if header.get("parentCommit") not in (None, before[-1].oid):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files, added = dict(before[-1].files), list[str]()
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files, added)
        before.append(commit_of(before, files, header["summary"], tuple(added)))
        oid = before[-1].oid
        return {
            "success": True,
            "commitOid": oid,
            "commitUrl": f"{self.hub.url}/datasets/{repo}/commit/{oid}",
        }

    def _apply(
        self, key: str, value: dict[str, Any], files: dict[str, Blob], added: list[str]
    ) -> None:
        path = value["path"]
        if key == "deletedFile":
            del files[path]
        elif key == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise Refusal(400, f"LFS pointer of {path} points to a file that does not exist")
            files[path] = Blob(self.hub.objects[value["oid"]], True)
            added.append(path)
        elif key == "file":
            files[path] = Blob(base64.b64decode(value["content"]), False)
            added.append(path)
        else:
            raise Refusal(400, f"the stub has no operation {key}")


def _folder(path: str) -> dict[str, Any]:
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "size": 0, "oid": oid}


def _upload_mode(wanted: dict[str, Any], there: Blob | None) -> dict[str, Any]:
    is_lfs = wanted["path"].endswith(LFS) or wanted["size"] > 10 * 2**20
    result = {
        "path": wanted["path"],
        "uploadMode": "lfs" if is_lfs else "regular",
        "shouldIgnore": False,
    }
    if there is not None:
        result["oid"] = there.sha256 if there.is_lfs else there.oid
    return result


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_REV = r"(?P<revision>[^/]+)"
_ROUTES: tuple[tuple[str, tuple[str, ...], Callable[..., Any]], ...] = (
    (rf"/api/datasets/{_REPO}(/revision/{_REV})?", ("GET", "HEAD"), HubRequest.info),
    (rf"/api/datasets/{_REPO}/refs", ("GET",), HubRequest.refs),
    (rf"/api/datasets/{_REPO}/commits/{_REV}", ("GET",), HubRequest.commits),
    (rf"/api/datasets/{_REPO}/tree/{_REV}(/(?P<folder>.+))?", ("GET",), HubRequest.tree),
    (rf"/api/datasets/{_REPO}/paths-info/{_REV}", ("POST",), HubRequest.paths_info),
    (rf"/datasets/{_REPO}/resolve/{_REV}/(?P<path>.+)", ("GET", "HEAD"), HubRequest.resolve),
    (r"/cdn/(?P<oid>[0-9a-f]{64})", ("GET", "HEAD"), HubRequest.content),
    (r"/api/repos/create", ("POST",), HubRequest.create),
    (r"/api/validate-yaml", ("POST",), HubRequest.validate_yaml),
    (rf"/api/datasets/{_REPO}/preupload/{_REV}", ("POST",), HubRequest.preupload),
    (r"/datasets/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", ("POST",), HubRequest.batch),
    (r"/lfs/(?P<oid>[0-9a-f]{64})", ("PUT",), HubRequest.upload),
    (rf"/api/datasets/{_REPO}/commit/{_REV}", ("POST",), HubRequest.commit),
)  # fmt: skip
