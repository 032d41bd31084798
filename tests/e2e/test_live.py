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
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from pipeline.monitor.history import all_figures
from pipeline.storage import Storage
from tests.conftest import write_shards
from tests.e2e.command import ROOT, free_port, qwq_batch


def config_of(folder: Path, rows: int = 300) -> Path:
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


@contextmanager
def scraped(url: str) -> Iterator[set[str]]:
    """The names of all metrics that are there at some time while the body runs."""
    names, over = set[str](), threading.Event()

    def look() -> None:
        while not over.wait(0.5):
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    names.update(re.findall(r"^(\w+)\{", answer.read().decode(), re.MULTILINE))
            except OSError:
                continue  # it is starting, or has ended

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield names
    finally:
        over.set()
        thread.join()


def test_terminal_shows_the_run_and_status_tells_it_from_elsewhere(tmp_path: Path) -> None:
    path, output = config_of(tmp_path), str(tmp_path / "out")
    terminal = Terminal(sys.executable, "-m", "pipeline", "run", str(path))
    try:
        assert reached(lambda: "ETA 0:" in terminal.text), terminal.text[-2000:]
        assert re.search(r"rows +[━╺╸ ]+ \d+/300", terminal.text)
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
        assert found["rows"] == 300
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
    assert lines[-1]["engine_pool"] == {"replicas": 2, "gpus": 1, "slots": 8, "gpu_hour": None}
    assert lines[-1]["rows"] == lines[-1]["rows_to_do"] == 40
    assert lines[-1]["eta_seconds"] == 0
    assert "\x1b" not in done.stderr + done.stdout


def test_status_of_what_is_no_output(tmp_path: Path) -> None:
    done = qwq_batch("status", str(tmp_path))
    assert done.returncode == 2
    assert "is not the output of a run" in done.stderr


def test_demo_is_estimated_looked_at_and_reported(tmp_path: Path) -> None:
    """Each command on the demo's own config, with the real engine."""
    out = f"output.path={tmp_path}/out"
    doctor = qwq_batch("doctor", "configs/demo.yaml", "--set", out)
    assert doctor.returncode == 0, doctor.stdout
    port = free_port()
    with scraped(f"http://127.0.0.1:{port}/metrics") as metrics:
        estimate = qwq_batch(
            "estimate", "configs/demo.yaml", "--rows", "40", "--set", out, "--set",
            "prices={gpu_hour: 2.5, million_input_tokens: 0.12, million_output_tokens: 0.18}",
            "--set", f"ray.metrics_port={port}", "--set", "engine.vllm.disable_log_stats=false",
            RAY_metrics_report_interval_ms="1000",
        )  # fmt: skip
    assert estimate.returncode == 0, estimate.stderr
    # vLLM's own metrics come through Ray's endpoint, and its KV cache is in the record.
    assert "ray_vllm_generation_tokens_total" in metrics
    assert "ray_vllm_kv_cache_usage_perc" in metrics
    runs = all_figures(Storage(f"{tmp_path}/out"))
    assert any(engine.kv_usage for run in runs for f in run for engine in f.engines)
    for told in ("40 rows", "P95", "tokens/s", "the whole run: 240 rows", "still to do: 200 rows",
                 "cost", "API"):  # fmt: skip
        assert told in estimate.stdout
    status = qwq_batch("status", f"{tmp_path}/out")
    assert "40 of 240 are durable" in status.stdout
    report = qwq_batch("report", f"{tmp_path}/out", "--to", f"{tmp_path}/report.html")
    assert report.returncode == 0, report.stderr
    assert "tokens/s" in (tmp_path / "report.html").read_text()
