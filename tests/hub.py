"""A stub of the Hugging Face hub: a real HTTP server that huggingface_hub and `datasets` talk to.

It has data sets only, the branch main and its commits, and speaks the LFS protocol; Xet it does not,
so clients need ``HF_HUB_DISABLE_XET=1`` (in `Hub.environment`). It checks what the hub checks: tokens of
writers, that large files were uploaded before they are committed, parent commits. What it holds survives a
kill: `Hub.start` goes on at the same port.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub_answers import LFS, TOKEN, Blob, Commit, HubRequest, Refusal, commit_of


@dataclass
class Hub:
    """A server on loopback. ``repos``: the commits of each data set, oldest first.

    ``requests``: method and path of all so far. ``uploads``: the LFS ids that clients sent, each time.
    ``dies_at``: the server kills itself when this says so of a request ("PUT /lfs/…"): the connection
    breaks without an answer, and no other is taken until `start`. ``dies_after``: the same once the
    request has been carried out, so that only its answer is lost. ``fails``: answers 503 as often.
    """

    repos: dict[str, list[Commit]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    dies_at: Callable[[str], bool] | None = None
    dies_after: Callable[[str], bool] | None = None
    fails: int = 0
    is_dead: bool = False
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _lock: Any = field(default_factory=threading.RLock)
    _life: Any = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """Its address, for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make huggingface_hub use this server."""
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}

    def start(self) -> None:
        """Start it, unless it runs."""
        with self._life:
            if self._server is not None:
                return
            self.dies_at, self.dies_after, self.is_dead = None, None, False
            handler = type("Handler", (_Handler,), {"hub": self})
            self._server = _Server(("127.0.0.1", self.port), handler)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def kill(self) -> None:
        """End it, with all connections; what it holds stays."""
        with self._life:
            server, self._server = self._server, None
            if server is not None:
                server.shutdown()
                server.server_close()

    def add(self, repo: str, files: Mapping[str, bytes], title: str = "add files") -> str:
        """Commit ``files`` to a data set, which is made if need be; returns the commit's id."""
        with self._lock:
            added = {path: Blob(data, path.endswith(LFS)) for path, data in files.items()}
            self.objects |= {blob.sha256: blob.data for blob in added.values() if blob.is_lfs}
            before = self.repos.setdefault(repo, [commit_of([], {}, "initial commit")])
            before.append(commit_of(before, {**before[-1].files, **added}, title, tuple(added)))
            return before[-1].oid

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of a data set as they are now."""
        return {path: blob.data for path, blob in self.repos[repo][-1].files.items()}


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub while the body runs."""
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.kill()


class _Server(ThreadingHTTPServer):
    """A server that closes its connections when it ends, as a killed process does."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        self.connections = set[socket.socket]()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here on purpose."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Tests are quiet."""

    def _answer(self) -> None:
        body = self._body()
        line = f"{self.command} {self.path}"
        self.hub.requests.append(line)
        with self.hub._lock:  # from the moment of its death on, it does nothing more
            dies = self.hub.is_dead or (self.hub.dies_at is not None and self.hub.dies_at(line))
            if not dies:
                status, headers, data = self._carried_out(body)
                dies = self.hub.dies_after is not None and self.hub.dies_after(line)
            self.hub.is_dead = dies
        if dies:
            self._die()
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _die(self) -> None:
        self.close_connection = True
        self.hub.kill()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _carried_out(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        as_json = {"Content-Type": "application/json"}
        try:
            if self.hub.fails:
                self.hub.fails -= 1
                raise Refusal(503, "Service Unavailable")
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            result = HubRequest(self.hub, self.command, dict(self.headers), query, body).result(
                url.path
            )
        except Refusal as refusal:
            as_json["X-Error-Message"] = str(refusal)
            if refusal.code:
                as_json["X-Error-Code"] = refusal.code
            return (
                refusal.status,
                as_json,
                json.dumps({"error": str(refusal), **refusal.more}).encode(),
            )
        if isinstance(result, tuple):
            return result
        return 200, as_json, json.dumps(result).encode()
