"""A batch file for the OpenAI API, run with the simulated engine: results, restart, a failed row."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from pipeline.cli import main
from tests.unit.jobs.test_openai_batch import FORM, json_format, line

ENGINE = {
    "kind": "simulated",
    "device": "cpu",
    "block_rows": 4,
    "simulated": {"tokens_median": 20, "seconds_per_token": 0},
}


def run(tmp_path: Path, *arguments: str) -> int:
    config = {
        "input": {"path": str(tmp_path / "in.jsonl")},
        "output": {"path": str(tmp_path / "out"), "rows_per_part": 2, "rename": {"answer": "said"}},
        "model": {"path": "qwq-nano"},
        "engine": ENGINE,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(SystemExit) as caught:
        main(["openai-batch", str(tmp_path / "config.yaml"), *arguments])
    return int(caught.value.code or 0)


def results(tmp_path: Path, name: str = "results.jsonl") -> list[dict[str, Any]]:
    return [json.loads(text) for text in (tmp_path / "out" / name).read_text().splitlines()]


def test_a_batch_file_comes_back_as_the_api_gives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [{"role": "user", "content": "x" * 50_000}]
    lines = [line(str(i), n=2) for i in range(5)] + [line("long", long, n=2), line("last", n=2)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert "14 of 14 traces" in said
    assert "status 200          6 requests   results.jsonl" in said
    assert "status 400          1 requests   errors.jsonl" in said
    assert "for example 0:\n  reasoning  Step 0" in said
    found = results(tmp_path)
    assert [result["custom_id"] for result in found] == ["0", "1", "2", "3", "4", "last"]
    for result in found:
        completion = ChatCompletion.model_validate(result["response"]["body"])
        assert completion.model == "qwq-nano"
        assert [choice.index for choice in completion.choices] == [0, 1]
        one, two = (choice.message.content or "" for choice in completion.choices)
        assert "boxed" in one
        assert one != two
    (failed,) = results(tmp_path, "errors.jsonl")
    assert failed["custom_id"] == "long"
    assert failed["response"]["status_code"] == 400
    assert failed["response"]["body"]["error"]["code"] == "context_length_exceeded"
    before = (tmp_path / "out/results.jsonl").read_bytes()
    (tmp_path / "out/results.jsonl").unlink()
    part = next((tmp_path / "out/traces").glob("in.00001.parquet"))
    part.unlink()
    assert run(tmp_path) == 0
    assert (tmp_path / "out/results.jsonl").read_bytes() == before
    assert part.exists()
    (tmp_path / "in.jsonl").write_text(line("0", n=2))
    assert run(tmp_path) == 2
    assert "in.jsonl has changed since" in capsys.readouterr().err
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    for name in ("requests/mine.parquet", "requests/notes.txt"):
        (tmp_path / "out" / name).write_text("mine")
        assert run(tmp_path) == 2
        assert (
            f"has not written, where it would replace or remove them: {name};"
            in capsys.readouterr().err
        )
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out/__qwq/files.txt").unlink()  # as earlier versions left it
    assert run(tmp_path) == 0


def test_results_of_others_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text(line("0"))
    (tmp_path / "out").mkdir()
    for name in ("results.jsonl", "errors.jsonl"):
        (tmp_path / "out" / name).write_text("mine")
    assert run(tmp_path) == 2
    assert "them: errors.jsonl, results.jsonl; move them, or" in capsys.readouterr().err
    assert (tmp_path / "out/results.jsonl").read_text() == "mine"
    assert not (tmp_path / "out/requests").exists()


def test_requests_for_json_are_answered_in_it_and_retried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body: dict[str, Any] = {"response_format": json_format(FORM), "max_tokens": 5}
    (tmp_path / "in.jsonl").write_text("\n".join(line(str(i), **body) for i in range(3)))
    assert run(tmp_path, "--set", "thinking.answer_tokens=1") == 0
    ended = [result["response"]["body"]["choices"][0] for result in results(tmp_path)]
    assert {choice["finish_reason"] for choice in ended} == {"length"}
    assert {choice["state"] for choice in ended} == {"truncated"}
    assert run(tmp_path, "--retry", "truncated", "--set", "sampling.max_tokens=2000") == 0
    for result in results(tmp_path):
        completion = ChatCompletion.model_validate(result["response"]["body"])
        assert json.loads(completion.choices[0].message.content or "").keys() == {"a"}
    assert not (tmp_path / "out/errors.jsonl").exists()
