"""A run as one sees it: live on a terminal, as lines in a log, from elsewhere."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.conftest import write_shards
from tests.e2e.command import ROOT, qwq_batch


def config_of(folder: Path, rows: int = 150) -> Path:
    write_shards(folder / "in", [rows])
    config = {
        "input": {"path": str(folder / "in")}, "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"},
        "engine": {
            "kind": "simulated", "device": "cpu", "replicas": 2, "vllm": {"max_num_seqs": 8},
            "simulated": {"tokens_median": 300, "seconds_per_token": 0.004},
        },
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def reached(what: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.3)
    return False


class Terminal:
    """A command on a terminal of its own, and all that it has written there."""

    def __init__(self, *command: str) -> None:
        ours, its = pty.openpty()
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=its, stdout=its, stderr=its, env=environment,
            start_new_session=True,
        )  # fmt: skip
        os.close(its)
        self._ours, self._seen = ours, b""
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self._ours, 65_536):
                self._seen += data
        except OSError:
            return  # it has ended

    @property
    def text(self) -> str:
        """Without what moves the cursor and paints."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._seen.decode(errors="replace"))


def test_terminal_shows_the_run_and_status_tells_it_from_elsewhere(tmp_path: Path) -> None:
    path, output = config_of(tmp_path), str(tmp_path / "out")
    terminal = Terminal(sys.executable, "-m", "pipeline", "run", str(path))
    try:
        assert reached(lambda: "ETA 0:" in terminal.text), terminal.text[-2000:]
        assert re.search(r"rows +[━╺╸ ]+ \d+/150", terminal.text)
        assert re.search(r"engine +[\d,]+ tokens/s, 8 running, \d+ waiting", terminal.text)
        assert re.search(r"thinking +[▁▂▃▄▅▆▇█ ]+ half below [\d,]+ tokens", terminal.text)
        assert re.search(r"states +\d+ finished", terminal.text)
        record = tmp_path / "out" / "__qwq" / "record"
        assert reached(lambda: any(record.glob("*")))

        told = qwq_batch("status", output).stdout
        assert f"running: process {terminal.process.pid} on " in told
        assert "tokens/s" in told
        found = json.loads(qwq_batch("status", output, "--json").stdout)
        assert found["running"] is True
        assert found["rows"] == 150
        assert len(found["figures"]["engines"]) == 2

        os.killpg(terminal.process.pid, signal.SIGKILL)
        terminal.process.wait(30)
        assert "gave its last sign" in qwq_batch("status", output).stdout
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
    done = qwq_batch("run", str(path))
    assert done.returncode == 0, done.stderr
    assert "has ended" in qwq_batch("status", output).stdout


def test_log_has_lines_of_json(tmp_path: Path) -> None:
    done = qwq_batch("run", str(config_of(tmp_path, rows=40)))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert lines[-1]["fleet"] == {"replicas": 2, "gpus": 1, "slots": 8, "gpu_hour": None}
    assert lines[-1]["rows"] == lines[-1]["rows_to_do"] == 40
    assert lines[-1]["eta_seconds"] == 0
    assert "\x1b" not in done.stderr + done.stdout


def test_status_of_what_is_no_output(tmp_path: Path) -> None:
    done = qwq_batch("status", str(tmp_path))
    assert done.returncode == 2
    assert "is not the output of a run" in done.stderr
