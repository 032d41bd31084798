"""The command line: arguments, exit codes, what each command loads, and configs to start from."""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from jobs.judge import JudgeJob
from jobs.label import LabelJob
from jobs.synthesize_config import Synthesis
from pipeline import RunConfig
from pipeline.cli import main, qwq_batch
from pipeline.config.load import load_as
from pipeline.starters import STARTERS
from tests.conftest import write_shards

ROOT = Path(__file__).parents[2]
HEAVY = ("ray", "torch", "transformers", "vllm", "pyarrow", "pydantic")
KINDS: dict[str, type[RunConfig]] = {
    "label": LabelJob, "judge": JudgeJob, "synthesize": Synthesis, "run": RunConfig,
}  # fmt: skip
CONFIGS = {"label": "label", "judge": "judge", "synthesize": "synthesize", "run": "demo"}
COMMENTED = re.compile(r"^( *)# (\w+: .*)$", re.MULTILINE)


def run(*arguments: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command."),
        (["bogus"], "No such command 'bogus'."),
        (["run"], "Missing argument 'CONFIG'."),
        (["run", "a.yaml", "--bogus"], "No such option"),
        (["run", "a.yaml", "--set"], "Option '--set' requires an argument."),
        (["plan", "a.yaml", "--prompts", "0"], "Invalid value for '--prompts': 0 is not in the range"),
        (["estimate", "a.yaml", "--rows", "many"], "Invalid value for '--rows': 'many' is not a valid"),
        (["show", "out", "--rows", "-1"], "Invalid value for '--rows': -1 is not in the range"),
        (["retry", "a.yaml", "--foreign", "1"], "Invalid value for '--foreign': 1.0 is not in the range"),
        (["init", "bogus", "folder"], "'bogus' is not one of 'label', 'judge', 'synthesize', 'run'."),
        (["evaluate", "out"], "Missing option '--reference'."),
    ],
)  # fmt: skip
def test_arguments_that_can_not_be_used_end_with_2_and_an_error_line(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    *usage, error = capsys.readouterr().err.splitlines()
    assert all(line.startswith("Usage: qwq-batch") for line in usage)
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    "command", ["run", "retry", "plan", "doctor", "estimate", "label", "judge", "synthesize",
                "nightly", "openai-batch"]
)  # fmt: skip
def test_every_command_on_a_config_takes_settings(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("input: {path: a}\noutput: {path: b}\nmodel: {path: c}\n")
    settings = ("--set", "sampling.n=2", "--set", "sampling.bogus=1")
    assert run(command, str(config), *settings) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "sampling.bogus: " in captured.err


def test_an_output_that_is_none_ends_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status"], ["show"], ["report"], ["evaluate", "--reference", "answer"]):
        assert run(*command, str(tmp_path)) == 2
        assert "is not the output of a run" in capsys.readouterr().err


def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.insight.preview.trace_lines", interrupted)
    assert run("show", "out") == 130
    assert "the same command resumes" in capsys.readouterr().err


def test_all_states_of_a_retry_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("input: {path: a}\noutput: {path: b}\nmodel: {path: c}\n")
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr("pipeline.console.retry_and_report", lambda *call: calls.append(call[1:]))
    assert run("retry", str(config), "--state", "failed,looped", "--foreign", "0.2") == 0
    assert run("retry", str(config)) == 0
    assert calls == [(["failed", "looped"], 0.2), ([], None)]


@pytest.mark.parametrize("share", ["nan", "1", "-0.1", "much"])
def test_share_outside_its_range_is_refused(share: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("retry", "a.yaml", "--foreign", share) == 2
    assert "error: Invalid value for '--foreign'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "job", ["label", "judge", "synthesize", "nightly", "openai_batch", "evaluate"]
)
def test_a_job_is_the_same_command_as_a_module(
    job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"jobs/{job}.py", "--help"])
    monkeypatch.delitem(sys.modules, f"jobs.{job}", raising=False)  # as in a new process
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{job}", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"Usage: qwq-batch {job.replace('_', '-')} ")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert re.fullmatch(r"qwq-batch \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["run", "--help"], {}),
        (["init", "run", "{tmp_path}"], {}),
        ([], {"_QWQ_BATCH_COMPLETE": "bash_complete", "COMP_WORDS": "qwq-batch la", "COMP_CWORD": "1"}),
    ],
    ids=["help", "version", "help of a command", "init", "completion"],
)  # fmt: skip
def test_start_is_quick_where_nothing_runs(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(sorted(set({HEAVY!r}) & set(sys.modules))))\n"
        "from pipeline.cli import main\nmain()"
    )
    done = python("-c", code, *(a.format(tmp_path=tmp_path) for a in arguments), **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    if environment:
        assert done.stdout.startswith("plain,label\n")


def test_every_command_has_a_line_of_help() -> None:
    assert {name for name, command in qwq_batch.commands.items() if not command.help} == set()


@pytest.mark.parametrize("kind", STARTERS)
def test_init_writes_what_configs_have(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The starters are copies of configs/: neither may get out of step with the other."""
    monkeypatch.chdir(tmp_path)
    assert run("init", kind, "mine") == 0
    config, model = (
        load_as(KINDS[kind], path).model_dump(exclude_unset=True)
        for path in (f"mine/{kind}.yaml", ROOT / f"configs/{CONFIGS[kind]}.yaml")
    )
    assert config.pop("output")["path"] == "mine/out"
    model.pop("output")
    folder, shards = config.pop("input")["path"], model.pop("input")["path"]
    assert config == model
    for path in Path(folder).iterdir():
        assert path.read_bytes() == (ROOT / shards / path.name).read_bytes()


def test_run_that_init_wrote_can_be_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "with space, and: more #1"
    assert run("init", "run", str(folder)) == 0
    assert run("plan", str(folder / "run.yaml")) == 0
    printed = capsys.readouterr().out
    assert "1 shards, 60 rows" in printed
    assert "<|im_start|>user\nHow many" in printed


def test_jobs_that_init_wrote_pass_their_checks(tmp_path: Path) -> None:
    for kind in ("label", "judge", "synthesize"):
        assert run("init", kind, str(tmp_path / kind)) == 0
    labeling = load_as(LabelJob, tmp_path / "label/label.yaml")
    labeling.check_output()
    labeling.check()
    assert labeling.run.prompt.template is not None
    judging = load_as(JudgeJob, tmp_path / "judge/judge.yaml")
    judging.check_output()
    judging.check()
    synthesis = load_as(Synthesis, tmp_path / "synthesize/synthesize.yaml")
    synthesis.check_output()
    assert synthesis.run.input.path == synthesis.below("prompts")


def test_settings_in_comments_of_the_starter_are_valid(tmp_path: Path) -> None:
    assert run("init", "run", str(tmp_path)) == 0
    path = tmp_path / "run.yaml"
    text, count = COMMENTED.subn(r"\1\2", path.read_text())
    assert count > 5
    path.write_text(text)
    assert load_as(RunConfig, path).engine.replicas == 2


@pytest.mark.parametrize("kind", ["label", "judge", "synthesize"])
def test_engine_in_comments_of_the_starter_is_valid(kind: str, tmp_path: Path) -> None:
    assert run("init", kind, str(tmp_path)) == 0
    path = tmp_path / f"{kind}.yaml"
    [engine] = re.findall(r"^# +(\{tensor_parallel: .*\}) ", path.read_text(), re.MULTILINE)
    data = {**yaml.safe_load(path.read_text()), "engine": yaml.safe_load(engine)}
    path.write_text(yaml.safe_dump(data))
    assert load_as(KINDS[kind], path).engine.tensor_parallel == 4


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("mine")
    assert run("init", "run", str(tmp_path)) == 2
    assert "choose another folder, or move that file away" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]
    assert (tmp_path / "run.yaml").read_text() == "mine"
    assert run("init", "run", "s3://bucket/folder") == 2
    assert run("init", "run", str(tmp_path / "run.yaml")) == 2
    assert "error: " in capsys.readouterr().err


def test_plan_prints_prompts_as_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(tmp_path / "in", [3])
    config = tmp_path / "a.yaml"
    config.write_text(
        f"input: {{path: {tmp_path}/in}}\noutput: {{path: {tmp_path}/out}}\n"
        "model: {path: qwq-nano}\nengine: {kind: simulated, device: cpu}\n"
        "answer: {format: boxed}\n"
    )
    assert run("plan", str(config), "--prompts", "2") == 0
    captured = capsys.readouterr()
    assert [set(yaml.safe_load(line)) for line in captured.out.splitlines()] == [
        {"prompt", "prompt_tokens"}
    ] * 2
    assert captured.err.startswith("warning: answer.format is boxed")
