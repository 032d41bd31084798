"""Untrusted text on the terminal: it is shown, and nothing of it acts."""

import json
import logging
import unicodedata
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jobs.accept import SampleCounts
from jobs.export import Exported
from jobs.openai_batch import Results
from jobs.openai_lines import ResultLines
from jobs.synthesize_report import report_lines
from pipeline import console
from pipeline.cli import main
from pipeline.config.load import parse_config
from pipeline.monitor.figures import Figures
from pipeline.monitor.terminal import panel
from pipeline.printing import PrintableFormatter, json_text, printable
from tests.outputs import finish

# Sets the window's title, clears the screen, reverses what follows, colours it by one C1 byte.
EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r\u2028"
ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def acting(text: str) -> set[str]:
    return {c for c in text if unicodedata.category(c) in ACTING and c not in "\n\t\u200c\u200d"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\tb\n", "a\\x1b[31m\tb\n"),
        ("a\u202eb\u2028\x9b\r\x7f", "a\\u202eb\\u2028\\x9b\\r\\x7f"),
        ("\ud800\U000e0001", "\\ud800\\U000e0001"),
        ("é 中 👩\u200d👧 می\u200cخواهم\u00a0\u3000½ $\\frac{1}{2}$", None),
    ],
)
def test_what_a_terminal_obeys_is_shown(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)


@given(st.text())
def test_json_stays_the_same_value(text: str) -> None:
    line = json_text({"a": text})
    assert printable(line) == line
    assert json.loads(line) == {"a": text}


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command; returns what it has printed, of which nothing may act."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(arguments)
        captured = capsys.readouterr()
        assert acting(captured.out + captured.err) == set()
        return captured.out + captured.err

    return run


def world(folder: Path, shard: str = "s", **columns: Any) -> str:
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({name: [value] for name, value in columns.items()}),
        folder / "in" / f"{shard}.parquet",
    )
    config = {
        "input": {"path": str(folder / "in")}, "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"}, "engine": {"kind": "simulated", "device": "cpu"},
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "c.yaml")


def test_plan_and_doctor_show_prompts_columns_and_roles(
    tmp_path: Path, command: Callable[..., str]
) -> None:
    config = world(tmp_path, **{"prompt": f"hi {EVIL}", f"column{EVIL}": "x"})
    for name in ("plan", "doctor"):
        assert "column\\x1b]0;owned\\x07" in command(name, config)
    first = json.loads(command("plan", config, "--prompts", "1"))
    assert f"hi {EVIL}" in first["prompt"]
    assert "\\x1b" in command("run", config, "--set", f"input.prompt_column=no{EVIL}")
    assert "\\x1b" in command("run", config, "--set", f"nosuch{EVIL}=1")
    (tmp_path / "in/s.parquet").unlink()
    config = world(tmp_path, messages=[{"role": f"x{EVIL}", "content": "a"}])
    assert "role is" in command("plan", config)


def test_names_of_shards_are_shown(tmp_path: Path, command: Callable[..., str]) -> None:
    config = world(tmp_path, prompt="hi")
    broken = tmp_path / "in" / f"{EVIL.replace('/', '')}.parquet"
    broken.write_bytes(b"broken")
    assert "\\x1b]0;owned" in command("plan", config)


def test_show_and_status_show_traces_and_names(tmp_path: Path, command: Callable[..., str]) -> None:
    config = world(tmp_path, shard=f"s{EVIL}", **{"prompt": "p", f"column{EVIL}": f"v{EVIL}"})
    run = parse_config(yaml.safe_load(Path(config).read_text()))
    finish(run, lambda *_: {"think": f"t{EVIL}", "answer": f"a{EVIL}", "error": EVIL})
    shown = command("show", run.output.path)
    assert all(f"{name}\\x1b]0;owned\\x07" in shown for name in ("s", "t", "a", "v", "column"))
    command("status", run.output.path)
    command("report", run.output.path, "--to", str(tmp_path / f"r{EVIL}.html"))
    world(tmp_path, shard=f"s{EVIL}", prompt="q", other="x" * 50)
    command("run", config)


def test_reports_of_jobs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    trace = {
        "tools": None, "think": f"t{EVIL}", "answer": f"a{EVIL}", "state": "finished",
        "finish_reason": "stop", "prompt_tokens": 1, "think_tokens": 1, "answer_tokens": 1,
        "sample": 0, "error": None,
    }  # fmt: skip
    answers = ResultLines("r", "m", 1)
    results = Results("x", answers, example=answers.line(f"id{EVIL}", [trace]))
    console.print_lines(results.report("out"))
    chat = {"id": "i", "messages": [{"role": "user", "content": f"p{EVIL}"}]}
    exported = Exported(example=chat, files={"f"})
    console.print_lines(report_lines("s", "e", SampleCounts(1, 1, 1), exported))
    out = capsys.readouterr().out
    assert acting(out) == set()
    assert all(f"{name}\\x1b]0;owned" in out for name in ("t", "a", "id", "p"))


def test_log_lines_errors_and_faults_of_ours_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        logging.getLogger("x").warning("a file %s", f"f{EVIL}")
        raise ValueError(EVIL)

    with pytest.raises(SystemExit) as caught:
        console.exit_with(fails)
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert acting(told) == set()
    assert "ValueError: \\x1b]0;owned" in told
    formatted = PrintableFormatter("%(message)s").format(
        logging.LogRecord("x", logging.WARNING, "", 1, "a file %s", (EVIL,), None)
    )
    assert acting(formatted) == set()


def test_the_live_figures_are_shown() -> None:
    figures = Figures(
        at="2026-01-01T00:00:00+00:00", seconds=1.0, rows=1, rows_to_do=2, ready_seconds=1.0,
        tier=f"t{EVIL}", states={f"s{EVIL}": 1},
    )  # fmt: skip
    file = StringIO()
    Console(file=file, width=200, force_terminal=False).print(panel(figures))
    assert acting(file.getvalue()) == set()
    assert "s\\x1b]0;owned" in file.getvalue()
