"""A Ray cluster whose nodes can be lost: each node is a ``ray start`` of its own."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from tests.faults.harness import PIPELINE, wait_until

WORKER_CPUS = 12  # logical ones: each engine, and each of Ray Data's operators, wants one
WORKER_GPUS = 2  # there are none; Ray counts what it is told
OBJECT_STORE_BYTES = 2**30
START_TRIES = 3
NODE_ID = "--node_id="
RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Node:
    """``ray start`` and the processes below it: the raylet, and the workers below that."""

    def __init__(self, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self._log, self._environment = log, environment
        self._command = [
            *RAY, "start", "--block", f"--object-store-memory={OBJECT_STORE_BYTES}",
            "--dashboard-agent-listen-port=0", *arguments,
        ]  # fmt: skip
        self._tries, self._process = 1, self._start()
        try:
            wait_until(self._is_ready, "a Ray node", log.read_text)
        except BaseException:
            self.kill()
            raise

    def engines(self) -> list[int]:
        """The process ids of the engine actors on this node."""
        return [process.pid for process in self._tree() if "EngineActor" in _title(process)]

    @property
    def id(self) -> str:
        """The id that Ray has given it."""
        words = (word for process in self._tree() for word in _title(process).split())
        return next(word for word in words if word.startswith(NODE_ID)).removeprefix(NODE_ID)

    def kill(self) -> None:
        """End all its processes at once by SIGKILL, as when a machine is lost."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as out:
            return subprocess.Popen(
                self._command, env=self._environment, stdout=out, stderr=out, start_new_session=True
            )

    def _is_ready(self) -> bool:
        """Whether it is; where the machine was too busy for the 30 s that Ray leaves, once more."""
        text = self._log.read_text()
        if self._process.poll() is not None:
            assert self._tries < START_TRIES, f"the Ray node ended:\n{text}"
            self._tries, self._process = self._tries + 1, self._start()
        return "Ray runtime started" in text

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class RayCluster:
    """A head without CPUs, so that all work is on workers, which can come and go."""

    def __init__(self, folder: Path) -> None:
        self.workers: list[Node] = []
        self._folder = folder
        self._nodes = 0
        port, dashboard, client = _free_ports(3)
        self._address = f"127.0.0.1:{port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.environment = {
            **os.environ,
            "RAY_ADDRESS": self._address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
        }
        self._head = self._start(
            "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={client}",
        )  # fmt: skip

    def add_worker(self, **environment: str) -> Node:
        """Start a worker and wait until it has joined; its processes have ``environment`` too."""
        size = (f"--num-cpus={WORKER_CPUS}", f"--num-gpus={WORKER_GPUS}")
        self.workers.append(self._start(f"--address={self._address}", *size, **environment))
        return self.workers[-1]

    def lose(self, worker: Node) -> None:
        """Kill a worker with all that runs on it."""
        worker.kill()
        self.workers.remove(worker)

    def drain(self, worker: Node) -> None:
        """Announce the end of a worker, as an autoscaler does on a spot notice."""
        drain = [
            *RAY, "drain-node", "--address", self._address, "--node-id", worker.id,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice",
            "--deadline-remaining-seconds", "120",
        ]  # fmt: skip
        subprocess.run(drain, env=self.environment, check=True, capture_output=True)

    def engines(self) -> list[int]:
        """The process ids of all engine actors."""
        return [pid for worker in self.workers for pid in worker.engines()]

    def placement_groups(self) -> dict[str, set[str]]:
        """The placement groups that hold something or wait to: the nodes of each, by its id."""
        headers = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        url = f"{self.dashboard}/api/v0/placement_groups?detail=1"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            groups: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return {
            group["placement_group_id"]: {bundle["node_id"] for bundle in group["bundles"]}
            for group in groups
            if group["state"] != "REMOVED"
        }

    def job_command(self, name: str) -> list[str]:
        """The command that has the pipeline run as a job, with what it is to do behind."""
        submit = (*RAY, "job", "submit", "--address", self.dashboard, "--submission-id", name)
        return [*submit, "--", *PIPELINE]

    def stop_job(self, name: str) -> None:
        """Tell a job to end, and wait until it has."""
        stop = [*RAY, "job", "stop", "--address", self.dashboard, name]
        subprocess.run(stop, env=self.environment, check=True, capture_output=True)

    def close(self) -> None:
        """Kill all nodes."""
        for node in [*self.workers, self._head]:
            node.kill()

    def _start(self, *arguments: str, **environment: str) -> Node:
        self._nodes += 1
        log = self._folder / f"node-{self._nodes}.log"
        return Node(log, {**self.environment, **environment}, *arguments)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """A cluster of one worker; its folder has a short name, because sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="qwq-ray-"))
    cluster = None
    try:
        cluster = RayCluster(folder)
        cluster.add_worker()
        yield cluster
    finally:
        if cluster is not None:
            cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
