"""A list of stages: what each gets from the file, and what is refused by name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from jobs.label import LabelJob
from jobs.stages import is_list_of_stages, listed_traces, load_stages
from pipeline.cli import main
from pipeline.config.load import read_yaml
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.execution.prepare import prepare
from tests.conftest import write_shards
from tests.outputs import finish

FILE: dict[str, Any] = {
    "folder": "out/recipe",
    "settings": {"model": {"path": "qwq-nano"}, "sampling": {"n": 4, "top_k": 20}},
    "stages": [
        {"name": "samples", "command": "run", "input": {"path": "seeds"}},
        {
            "name": "labeled", "command": "label", "input": {"path": "stage:samples"},
            "sampling": {"n": 2},
            "label": {"guideline": "Say which.", "labels": ["a", "b"]},
        },
        {
            "name": "again", "command": "run", "input": {"path": "stage:labeled"},
            "prompt": {"template": "{text}"},
        },
    ],
}  # fmt: skip


def write(folder: Path, data: dict[str, Any]) -> str:
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


def changed(number: int, **keys: Any) -> dict[str, Any]:
    """The file, with other keys in one stage."""
    stages = [dict(stage) for stage in FILE["stages"]]
    stages[number].update(keys)
    return {**FILE, "stages": stages}


def test_each_stage_has_the_common_settings_and_its_own_and_reads_the_results_before_it(
    tmp_path: Path,
) -> None:
    samples, labeled, again = load_stages(write(tmp_path, FILE)).stages
    assert (samples.run.input.path, samples.run.output.path) == ("seeds", "out/recipe/samples")
    assert (samples.run.sampling.n, samples.run.sampling.top_k) == (4, 20)
    assert isinstance(labeled.config, LabelJob)
    assert (labeled.config.sampling.n, labeled.config.sampling.top_k) == (2, 20)
    assert labeled.config.input.path == samples.results == "out/recipe/samples"
    assert labeled.run.output.path == "out/recipe/labeled/traces"
    assert again.config.input.path == labeled.results == "out/recipe/labeled/labels"
    assert samples.waits_for is None
    assert labeled.waits_for == "results of stage samples"


def test_stage_that_resumes_another_has_its_folder_and_its_settings(tmp_path: Path) -> None:
    more = {"name": "more", "command": "run", "resumes": "samples", "sampling": {"n": 6}}
    data = {**FILE, "stages": [*FILE["stages"], more]}
    samples, *_, again = load_stages(write(tmp_path, data)).stages
    assert again.config.output.path == samples.config.output.path
    assert again.config.input.path == "seeds"
    assert (again.config.sampling.n, again.config.sampling.top_k) == (6, 20)
    assert (samples.resumes, again.resumes) == (None, samples)


def _synthesis(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """A stage that generates, and one that goes on with it or reads its results."""
    chain = (
        {"input": {"path": "stage:samples"}}
        if second.pop("reads", False)
        else {"resumes": "samples"}
    )
    return {
        **FILE,
        "stages": [
            {"name": "samples", "command": "synthesize", "input": {"path": "seeds"}, "synthesize": first},
            {"name": "data", "command": "synthesize", **chain, "synthesize": second},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"benchmarks": ["no.jsonl"]}, {}, "stage samples: .*no.jsonl"),
        ({}, {"accepted": 5}, "stage data: synthesize.accepted can't be added by a stage that res"),
        ({}, {"reads": True, "accepted": 5}, "stage data: synthesize.accepted makes prompts from"),
    ],
)
def test_what_synthesize_would_refuse_at_its_turn_is_refused_before_the_first_stage(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        load_stages(write(tmp_path, _synthesis(first, second)))


def test_settings_are_overridden_for_all_or_for_one_stage(tmp_path: Path) -> None:
    path = write(tmp_path, FILE)
    overrides = ["folder=out/other", "settings.sampling.n=8", "labeled.sampling.top_k=30"]
    samples, labeled, again = load_stages(path, overrides).stages
    assert samples.run.output.path == "out/other/samples"
    assert [s.run.sampling.n for s in (samples, labeled, again)] == [8, 2, 8]
    assert [s.run.sampling.top_k for s in (samples, labeled, again)] == [20, 30, 20]
    with pytest.raises(ConfigError, match=r"lable.*did you mean labeled"):
        load_stages(path, ["lable.sampling.n=1"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            changed(1, input={"path": "stage:sample"}),
            "stage labeled: unknown earlier stage sample; did you mean samples",
        ),
        (
            changed(0, input={"path": "stage:labeled"}),
            "stage samples: unknown earlier stage labeled",
        ),
        (changed(2, resumes="sample"), "stage again: unknown earlier stage sample; did you mean"),
        (changed(1, command="lable"), "stage labeled: command: unknown name lable; did you mean"),
        (changed(1, name="samples"), "each stage needs a name of its own"),
        (changed(1, name="settings"), "each stage needs a name of its own"),
        (changed(1, name="../x"), r"stages.1.name: String should match"),
        (changed(2, smapling={"n": 1}), "stage again: it is not a valid run:\n  smapling: unknown key"),
        (changed(0, input=None), "stage samples: it is not a valid run:\n  input: is required"),
        ({"folder": "x", "stages": []}, "stages: List should have at least 1"),
        ({**FILE, "stage": []}, "stage: Extra inputs"),
        ({**FILE, "folder": " "}, "folder: "),
        (changed(1, command="json:dumps"), "stage labeled: command json:dumps is a function; it"),
        (changed(2, command="label", resumes="samples"), "command is label, but it resumes samples"),
        (changed(1, output={"path": "mine"}), "stage labeled: output.path: the folder of a stage is"),
        (changed(1, input={"path": "stage:samples/x"}), "unknown earlier stage samples/x"),
        (changed(1, engine={"vllm": {"max_modle_len": 5}}), "stage labeled: .*max_modle_len"),
        (changed(1, engine={"kind": "endpont"}), "stage labeled: engine.kind: unknown name endpont"),
        (
            changed(1, engine={"kind": "endpoint", "device": "cpu"}),
            "stage labeled: engine.endpoint.urls is empty",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_stage(
    tmp_path: Path, data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_stages(write(tmp_path, data))


def test_wrong_condition_is_shown_before_anything_starts(tmp_path: Path) -> None:
    data = changed(2, input={"path": "stage:labeled", "where": "state == = 'x'"})
    with pytest.raises(InputError, match=r'stage again: input.where: syntax error at or near "="'):
        load_stages(write(tmp_path, data))


def test_only_the_name_of_a_stage_stands_for_its_results(tmp_path: Path) -> None:
    data = changed(2, prompt={"template": "stage: {text}"})
    assert load_stages(write(tmp_path, data)).stages[2].run.prompt.template == "stage: {text}"
    columns = {"path": "stage:labeled", "columns": ["stage:samples", "text"]}
    [*_, again] = load_stages(write(tmp_path, changed(2, input=columns))).stages
    assert again.config.input.columns == ["out/recipe/samples", "text"]
    assert {stage.name for stage in again.reads} == {"labeled", "samples"}
    with pytest.raises(ConfigError, match="folder: "):
        load_stages(write(tmp_path, FILE), ["folder="])


def test_stage_waits_until_the_one_before_has_a_part(ready: str) -> None:
    samples, labeled, _ = load_stages(ready).stages
    prepare(samples.run).open_output()
    assert labeled.waits_for == "results of stage samples"
    finish(samples.run)
    assert labeled.waits_for is None


def test_traces_are_listed_from_any_folder_with_all_runs_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "in", [2])
    compared = {
        "name": "compared", "command": "judge", "input": {"path": "in"},
        "judge": {"rubric": "R", "answer_column": "prompt", "against_column": "id"},
    }  # fmt: skip
    simulated = {"kind": "simulated", "device": "cpu"}
    settings = {"model": {"path": "qwq-nano"}, "engine": simulated}
    stages = [{"name": "samples", "command": "run", "input": {"path": "in"}}, compared]
    monkeypatch.chdir(tmp_path)
    loaded = load_stages(write(tmp_path, {"folder": "out", "settings": settings, "stages": stages}))
    loaded._write_list()
    finish(loaded.stages[0].run)
    for run in loaded.stages[1].runs:
        prepare(run).open_output()
    monkeypatch.chdir("/")
    assert listed_traces(str(tmp_path / "out")) == {
        "samples": f"{tmp_path}/out/samples",
        "compared": f"{tmp_path}/out/compared/traces",
        "compared/traces-swapped": f"{tmp_path}/out/compared/traces-swapped",
    }


def test_files_of_one_run_are_no_lists(tmp_path: Path) -> None:
    assert is_list_of_stages(read_yaml(write(tmp_path, FILE)))
    assert not is_list_of_stages(read_yaml("configs/demo.yaml"))


def test_folder_of_stages_is_no_output_of_a_run(tmp_path: Path) -> None:
    from pipeline.output.layout import MANIFEST
    from pipeline.storage import Storage

    stages = load_stages(write(tmp_path, FILE), [f"folder={tmp_path}/out"])
    stages._write_list()
    assert listed_traces(f"{tmp_path}/out") == {}  # none has begun
    Storage(f"{tmp_path}/out").put(MANIFEST, b'{"settings": {}}')
    with pytest.raises(OutputError, match="is the output of a run"):
        stages._write_list()
    assert listed_traces(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run"], "run it with qwq-batch stages"),
        (["retry", "--state", "failed"], "run it with qwq-batch stages"),
        (["plan", "--prompts", "1"], "--prompts is for the configuration of one run"),
    ],
)
def test_commands_of_one_run_say_what_to_do_with_a_list(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command[0], write(tmp_path, FILE), *command[1:]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def ready(tmp_path: Path) -> str:
    """A list whose first stage has its input, on the simulated engine."""
    write_shards(tmp_path / "in", [2, 1])
    settings = {**FILE["settings"], "engine": {"kind": "simulated", "device": "cpu"}}
    data = {**changed(0, input={"path": str(tmp_path / "in")}), "settings": settings}
    return write(tmp_path, {**data, "folder": str(tmp_path / "out")})


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_a_list_is_read_once(ready: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, read_text = list[Path](), Path.read_text

    def read(path: Path, *arguments: Any, **named: Any) -> str:
        reads.append(path)
        return read_text(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", read)
    assert exit_code(command, ready) == 0
    assert reads.count(Path(ready)) == 1


def test_doctor_checks_each_stage_but_no_input_that_is_not_there_yet(
    ready: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("doctor", ready) == 0
    _, samples, labeled, again = capsys.readouterr().out.split("== stage ")
    assert "2 shards, 3 rows" in samples
    assert "not checked" not in samples
    for stage, before in ((labeled, "samples"), (again, "labeled")):
        assert "qwq-nano is a qwen2 of" in stage
        assert f"its input is not checked: it waits for results of stage {before}\n" in stage
    assert exit_code("doctor", ready, "--set", "labeled.model.path=/nowhere") == 2
    _, samples, labeled, again = capsys.readouterr().out.split("== stage ")
    assert "/nowhere is not a model folder" in labeled
    assert "/nowhere" not in samples + again


def test_json_of_stages_names_the_stage_of_each_line(
    ready: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(run: Any, *_: Any) -> Any:
        path = run if isinstance(run, str) else run.output.path
        return SimpleNamespace(to_json=lambda: {"path": path})

    monkeypatch.setattr("pipeline.estimate", result)
    monkeypatch.setattr("pipeline.status", result)
    monkeypatch.setattr(
        "jobs.stages.listed_traces", lambda folder: {"a": "1", "b": "2"} if folder == "two" else {}
    )
    printed = []
    for command in (
        ("estimate", ready),
        ("estimate", "configs/demo.yaml"),
        ("status", "two"),
        ("status", "one"),
    ):
        assert exit_code(*command, "--json") == 0
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    folder = load_stages(ready).folder
    assert printed == [
        [{"stage": "samples", "path": f"{folder}/samples"}],  # the others wait
        [{"path": "out/demo"}],
        [{"stage": "a", "path": "1"}, {"stage": "b", "path": "2"}],
        [{"path": "one"}],
    ]
