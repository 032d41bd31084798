"""Two real servers of vLLM in place of an engine, one of which is killed in the middle.

It starts vLLM three times, so it takes three minutes on two cores.
"""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

from pipeline.prompts.tokenizer import resolve_model
from tests.conftest import write_shards
from tests.e2e.command import free_port
from tests.faults.conftest import reporter_of
from tests.faults.harness import PIPELINE, Case, Output, wait_until

ROWS = 40
# As `vllm serve`, which asks for the version of a package `vllm` that the CPU build is not.
SERVE = (
    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model("qwq-nano"),
    "--served-model-name", "qwq-nano", "--host", "127.0.0.1", "--enforce-eager",
    "--max-model-len", "4096", "--max-num-seqs", "16", "--block-size", "32",
    # On CPU, a seeded request whose prompt is cut in chunks ends the engine.
    "--no-enable-chunked-prefill",
    "--worker-extension-cls", "pipeline.engines.vllm_cpu_worker.CpuWorker",
)  # fmt: skip
OWN_ENGINE = (
    "engine.kind=vllm", "engine.endpoint=null",
    "engine.vllm={enforce_eager: true, max_num_seqs: 32, max_model_len: 4096, block_size: 32}",
)  # fmt: skip


class VllmServer:
    """`vllm serve` with the small model on one core, in a process group of its own."""

    def __init__(self, folder: Path, core: int) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self._log = folder / f"server-{port}.log"
        environment = {
            **os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
        }  # fmt: skip
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [*SERVE, "--port", str(port)], env=environment, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        wait_until(self._is_up, "a server", self._log.read_text)

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def running(self) -> float:
        """The sequences that it runs now."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=120) as answer:
            text = answer.read().decode()
        return sum(
            map(float, re.findall(r"^vllm:num_requests_running\{.*\} (\S+)", text, re.MULTILINE))
        )

    def kill(self) -> None:
        """End all its processes by SIGKILL."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[VllmServer]]:
    cores = sorted(os.sched_getaffinity(0))
    running = [VllmServer(tmp_path, cores[i % len(cores)]) for i in range(2)]
    try:
        for server in running:
            server.wait()
        yield running
    finally:
        for server in running:
            server.kill()


@pytest.fixture
def case(
    servers: list[VllmServer], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Case]:
    case = case_of(tmp_path / "case", request, [server.url for server in servers])
    yield case
    for driver in case.drivers:
        driver.kill()


def case_of(folder: Path, request: pytest.FixtureRequest, urls: list[str]) -> Case:
    """Rows that count down from a hundred and more, so that a lost token would be seen."""
    write_shards(folder / "in", [ROWS], prompt="Count down from 1{:02}.")
    case = Case(
        "one `vllm serve` of two SIGKILLed, as `engine.kind: endpoint`",
        folder,
        Output(str(folder / "out"), fsspec.filesystem("file")),
        [ROWS],
        1,
        {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        {
            "sampling": {"max_tokens": 2048},
            "thinking": {"detect_loops": False, "answer_tokens": 64},
            "engine": {
                "kind": "endpoint", "replicas": 1, "block_rows": 1, "vllm": {},
                "endpoint": {"urls": urls, "slots": 12},
            },
        },
    )  # fmt: skip
    case.report = reporter_of(request)
    return case


@pytest.mark.long
def test_server_that_is_killed_loses_no_trace_and_no_token(
    servers: list[VllmServer], case: Case, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    driver = case.start()
    driver.must_reach(lambda: case.remember() >= 4, "four rows")
    killed = servers[0]
    assert killed.running > 0, "the killed server did nothing, so the case shows nothing"
    killed.kill()
    case.finish(driver)
    case.check(states=("finished", "rescued", "truncated"))
    counted = dict(_counted(case.output))
    assert sum(counted.values()) >= 0.75 * ROWS, "the counts have gaps where the server was killed"
    servers[1].kill()

    own = Output(str(tmp_path / "own"), case.output._fs)
    again = case.start(PIPELINE, [*OWN_ENGINE, f"output.path={own.url}"])
    case.finish(again)
    mine, theirs = ({t.key: t.text for t in out.traces()} for out in (own, case.output))
    same = sum(theirs[key] == text for key, text in mine.items())
    request.node.user_properties.append(("same", same))
    # Traces that went on elsewhere have other seeds from there on, and counts have one right text.
    assert same >= 0.5 * ROWS, f"{same} of {ROWS} traces are those of an engine of our own"


def _counted(output: Output) -> Iterator[tuple[int, bool]]:
    """Whether each row counts down without a gap."""
    for trace in output.traces():
        think = trace.text.rpartition("\n\n")[0]
        yield trace.key[0], think == "\n".join(str(n) for n in range(100 + trace.key[0], -1, -1))
