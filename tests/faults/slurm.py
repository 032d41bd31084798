"""A Slurm cluster on this machine: a controller and three nodes, each with a slurmd of its own."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.faults.harness import wait_until

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
NODES = ("n1", "n2", "n3")
GPUS = 8
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"}
CONF = """
ClusterName=qwq
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=10
KillWait=10
FirstJobId={first_job}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,bf_interval=2
PartitionName=all Nodes=ALL Default=YES PriorityTier=2
PartitionName=preemptible Nodes=ALL PriorityTier=1 GraceTime=120
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs=64 RealMemory=400000 Gres=gpu:{gpus}\n"
)


class Slurm:
    """Munge, slurmctld and slurmds; what they start is known by their ``SLURM_CONF``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._conf = folder, folder / "slurm.conf"
        self._servers: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))},
            "PATH": PATH,
            "SLURM_CONF": str(self._conf),
        }
        first_job = secrets.randbelow(10**6) + 1
        self._numbers = range(first_job, first_job + 100)  # of its jobs: no other cluster's
        self._write_settings()

    def _write_settings(self) -> None:
        folder, host = self._folder, socket.gethostname()
        with contextlib.ExitStack() as stack:
            port, *ports = [_free_port(stack) for _ in range(1 + len(NODES))]
        text = CONF.format(host=host, port=port, folder=folder, first_job=self._numbers[0])
        for name, port in zip(NODES, ports, strict=True):
            text += NODE.format(name=name, host=host, port=port, gpus=GPUS)
        self._conf.write_text(text)
        for number in range(GPUS):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")

    def start(self) -> None:
        """Start all of it and wait until the nodes are idle."""
        key, unix = self._folder / "munge.key", self._folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self._serve(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={unix}",
            *(f"--{name}-file={self._folder}/munge.{name}" for name in ("pid", "log", "seed")),
        )  # fmt: skip
        wait_until(unix.exists, "munged", self.told)
        self._serve("slurmctld", "-D")
        for name in NODES:
            self._serve("slurmd", "-D", "-N", name)
        wait_until(self._is_ready, "the nodes", self.told)

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints; nothing if it fails."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def tell(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """Run one of Slurm's commands, which must not fail; what it prints."""
        variables = self.environment | environment
        return subprocess.check_output(command, env=variables, text=True, cwd=cwd).strip()

    def submit(self, folder: Path, *arguments: str | Path, path: str = PATH) -> "Job":
        """``sbatch`` from ``folder`` and with ``path`` for the job; its log will be there."""
        command = ["sbatch", "--parsable", "--output=%j.log", *map(str, arguments)]
        number = self.tell(*command, cwd=folder, PATH=path)
        return Job(self, number, folder / f"{number}.log")

    def submit_array(self, folder: Path, tasks: int, *arguments: str | Path) -> list["Job"]:
        """The same for an array; its tasks."""
        first = self.submit(folder, f"--array=1-{tasks}", "--output=%A_%a.log", *arguments)
        numbers = [f"{first.number}_{task}" for task in range(1, tasks + 1)]
        return [Job(self, number, folder / f"{number}.log") for number in numbers]

    def lose(self, node: str) -> None:
        """Kill a node's slurmd and all that runs on it by SIGKILL, as when a machine is lost.

        Slurm's own processes first, which must not live to tell of the others' end.
        """
        mine = self._processes()
        tasks = [p for p, variables in mine.items() if variables.get("SLURMD_NODENAME") == node]
        above = {parent for task in tasks for parent in task.parents()}
        _kill(p for p in mine if f"slurmd -D -N {node}" in _title(p))
        _kill(p for p in above if self._is_step(p))
        _kill(tasks)

    def close(self) -> None:
        """Kill everything, and remove what jobs have left in /tmp."""
        while mine := self._processes():
            _kill(mine)
        for server in self._servers:
            server.wait()
        for number in self._numbers:
            for left in Path("/tmp").glob(f"qwq-{number}-n?"):
                shutil.rmtree(left, ignore_errors=True)

    def told(self) -> str:
        """The end of what its processes printed."""
        return (self._folder / "printed.log").read_text(errors="replace")[-4000:]

    def _serve(self, *command: str) -> None:
        with (self._folder / "printed.log").open("ab") as out:
            self._servers.append(
                subprocess.Popen(
                    command, env=self.environment, stdout=out, stderr=out, start_new_session=True
                )
            )

    def _is_ready(self) -> bool:
        assert all(server.poll() is None for server in self._servers), self.told()
        return self.ask("sinfo", "-hp", "all", "-o", "%t %D") == f"idle {len(NODES)}"

    def _processes(self) -> dict[psutil.Process, dict[str, str]]:
        """All processes of this cluster that live, with their variables."""
        found = {process: _variables(process) for process in psutil.process_iter()}
        return {
            process: variables
            for process, variables in found.items()
            if variables.get("SLURM_CONF") == str(self._conf) or self._is_step(process)
        }

    def _is_step(self, process: psutil.Process) -> bool:
        """Whether it is a slurmstepd of a job here; its title has taken its variables' place."""
        found = re.match(r"slurmstepd: \[(\d+)\.", _title(process))
        return found is not None and int(found[1]) in self._numbers


@dataclass(frozen=True)
class Job:
    """A job, and what it prints."""

    slurm: Slurm
    number: str
    log: Path

    @property
    def now(self) -> dict[str, str]:
        """What the controller knows of it."""
        words = self.slurm.ask("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        """Slurm's word for its state."""
        return self.now.get("JobState", "")

    @property
    def printed(self) -> str:
        """All that its starts have printed."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def must_reach(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for ``condition``; fail if the job ends before."""
        wait_until(lambda: condition() or self.state in ENDED, what, self.told)
        if not condition():
            pytest.fail(f"the job ended before {what}\n{self.told()}")

    def must_complete(self) -> None:
        """Wait until it has ended with exit code 0."""
        self.must_reach(lambda: self.state == "COMPLETED", "the end of the run")
        assert self.now["ExitCode"] == "0:0", self.told()

    def must_start_again(self, restarts: int) -> None:
        """Wait until it is in the queue so often again, and let it start soon.

        (Slurm would let it wait for two minutes. In the second of its end it must not start: nodes
        refuse credentials that are not newer than that.)
        """

        def queued() -> bool:
            now = self.now
            return now["Restarts"] == str(restarts) and now["JobState"] != "COMPLETING"

        self.must_reach(queued, f"the queue, for the {restarts}. time")
        if self.state == "PENDING":
            self.slurm.ask("scontrol", "update", f"JobId={self.number}", "StartTime=now+3")

    def told(self) -> str:
        """All that may say what is wrong."""
        return f"{self.now}\n{self.printed[-6000:]}\n{self.slurm.told()}"


@contextlib.contextmanager
def slurm_cluster() -> Iterator[Slurm]:
    """A cluster while the body runs."""
    folder = Path(tempfile.mkdtemp(prefix="qwq-slurm-"))
    slurm = Slurm(folder)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.close()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port(stack: contextlib.ExitStack) -> int:
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", 0))
    port: int = probe.getsockname()[1]
    return port


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _variables(process: psutil.Process) -> dict[str, str]:
    """Its variables; none if it has ended or is another's."""
    try:
        return dict(process.environ())
    except (psutil.Error, OSError):
        return {}


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
