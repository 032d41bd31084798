"""Commands that start no engine, as a user runs them: mistakes, and a plan."""

import json
import re
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.storage import Storage
from tests.e2e.command import ROOT, qwq_batch
from tests.s3 import S3Server


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "configs/demo.yaml", "--set", "input.path=s3://nowhere/x"], "s3://nowhere does not exist"),
        (["run", "configs/none.yaml"], "can't read the config"),
        (["plan", "configs/demo.yaml", "--set", "output.path=configs"], "is not empty and not the output"),
        (["plan", "configs/demo.yaml", "--set", "input.prompt_column=text"], "has only the columns id"),
        (["plan", "configs/demo.yaml", "--set", "engine.context=auto"],
         "engine.vllm has max_model_len, which engine.context=auto sets"),
        (["show", "configs"], "is not the output of a run"),
    ],
)  # fmt: skip
def test_user_error_is_one_clear_message(
    s3: S3Server, arguments: list[str], message: str, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_wrong_credentials_are_one_clear_message(s3: S3Server) -> None:
    s3.filesystem().makedirs("private", exist_ok=True)
    output = ["--set", "output.path=s3://private/out"]
    done = qwq_batch("run", "configs/demo.yaml", *output, AWS_SECRET_ACCESS_KEY="planted-wrong")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: can't \w+ s3://private/out: .*check the credentials.*\n", done.stderr
    )
    assert "planted" not in done.stderr
    assert Storage("s3://private/out").files() == []


def test_plan_prints_prompts_as_json_lines(tmp_path: Path) -> None:
    output = ["--set", f"output.path={tmp_path / 'out'}"]
    done = qwq_batch("plan", "configs/demo.yaml", "--prompts", "3", *output)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 3
    assert lines[0] == {
        "prompt": '<|im_start|>user\nHow many r\'s are in the word "strawberry"?<|im_end|>\n'
        "<|im_start|>assistant\n<think>\n",
        "prompt_tokens": 63,
    }
