"""What the servers of object stores for tests have in common: processes on loopback, clients, buckets."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

START_SECONDS = 90
# Below the ports that outgoing connections get, so that a restarted server finds its own free.
PORTS = range(20_000, 22_768)


def free_ports(count: int) -> list[int]:
    """Ports that are free, and so is each port + 10000, which SeaweedFS takes for gRPC."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for port in random.sample(PORTS, 1000):
            if all(_binds(stack, number) for number in (port, port + 10_000)):
                ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"{count} free ports were not found in {PORTS}")


@dataclass
class ObjectServer(ABC):
    """A server with its data in ``folder``; after a kill it starts on the same ports and data."""

    scheme: ClassVar[str]
    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(4))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL at which it answers."""
        return f"http://127.0.0.1:{self.ports[-1]}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make the pipeline use this server."""
        return self.environment_at(self.endpoint)

    @abstractmethod
    def environment_at(self, endpoint: str) -> dict[str, str]:
        """As ``environment``, with a proxy at ``endpoint``."""

    @abstractmethod
    def filesystem(self) -> Any:
        """A client with the right credentials, that caches no listings."""

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it in the foreground."""

    def prepare(self) -> None:
        """Make its folder, and write what it reads as it starts."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def bucket(self, name: str) -> str:
        """The URL of the bucket ``name``, which exists from now on."""
        fs = self.filesystem()
        if not fs.exists(name):
            fs.mkdir(name)
        return f"{self.scheme}://{name}"

    def start(self) -> None:
        """Start it, unless it runs, and wait until it takes and gives files."""
        if self._process is not None:
            return
        self.prepare()
        log = self.folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self.command(), stdout=out, stderr=out, start_new_session=True
            )
        self._wait_until_ready(self._process, log)

    def kill(self) -> None:
        """End it by SIGKILL (SIGTERM can take it over ten seconds); its data stay."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports[-1]), 1).close()
                self.bucket("ready-check")
                fs = self.filesystem()
                fs.pipe_file("ready-check/x", b"x")
                fs.rm_file("ready-check/x")
                return
            time.sleep(0.5)
        raise TimeoutError(f"the server did not start: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def serve(server: ObjectServer) -> Iterator[Any]:
    """Run ``server`` while the body runs."""
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _binds(stack: contextlib.ExitStack, port: int) -> bool:
    probe = stack.enter_context(socket.socket())
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
