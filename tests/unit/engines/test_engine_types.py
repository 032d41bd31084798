"""Kinds of engines: found by name or import path; settings that a kind does not know are refused."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline.config.load import parse_config
from pipeline.config.sections import EngineConfig
from pipeline.engines import ENGINES, EngineType, build_engine, engine_type
from pipeline.engines.none import NO_ENGINE
from pipeline.errors import ConfigError
from pipeline.prompts.tokenizer import load_tokenizer
from tests.toy_engine import TOY

ROOT = Path(pipeline.__file__).parent
# The names of vLLM's arguments. Whatever else reads them belongs to the engine's own file.
VLLM_WORDS = (
    "max_num_seqs", "max_model_len", "hf_overrides", "distributed_executor_backend",
    "quantization", "kv_cache_dtype", "gpu_memory_utilization", "trust_remote_code",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("vllm", {}), ("simulated", {}), ("endpoint", {"endpoint": {"urls": ["http://host:8000"]}}),
        ("tests.toy_engine:TOY", {"options": {"answer": "1"}}),
        ("pipeline.engines.none:NO_ENGINE", {"options": {"context_tokens": 9}}),
    ],
)  # fmt: skip
def test_every_kind_answers_what_the_pipeline_asks(kind: str, settings: dict[str, Any]) -> None:
    engine = EngineConfig(kind=kind, device="cpu", **settings)
    found = engine_type(engine)
    found.check(engine)
    assert found.slots(engine) >= 1
    assert found.spans_nodes(engine) is False
    assert found.yarn_factor(engine) is None
    assert found.runs_model_code(engine) is False
    assert all(name.startswith("engine.") for name in found.result_settings(engine))


def test_kind_is_found_by_name_and_by_import_path() -> None:
    assert isinstance(ENGINES["vllm"], EngineType)
    assert engine_type(EngineConfig(kind="tests.toy_engine:TOY")) is TOY
    assert engine_type(EngineConfig(kind="pipeline.engines.none:NO_ENGINE")) is NO_ENGINE


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "vlm",
            r"engine.kind: unknown name vlm; did you mean vllm\? \(accepted: vllm, endpoint, sim",
        ),
        ("none", "engine.kind: unknown name none"),
        ("no_such_package:TOY", "no_such_package:TOY can't be loaded: .* on every node"),
        ("tests.toy_engine:NOT_AN_ENGINE", "is a str; it must be an object of a class derived"),
    ],
)
def test_unknown_kind_is_refused(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_type(EngineConfig(kind=kind))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("vllm", {"x": 1}, r"engine\.options\.x: engine\.kind vllm has no options"),
        ("simulated", {"x": 1}, r"engine\.options\.x: engine\.kind simulated has no options"),
        ("tests.toy_engine:TOY", {}, r"engine\.options\.answer: Field required"),
        (
            "tests.toy_engine:TOY", {"answer": "1", "slots": 0},
            r"engine\.options\.slots: Input should be greater than or equal to 1",
        ),
        ("tests.toy_engine:TOY", {"anser": "1"}, "unknown key anser; did you mean answer?"),
    ],
)  # fmt: skip
def test_options_that_a_kind_does_not_know_are_refused(
    kind: str, options: dict[str, Any], message: str
) -> None:
    engine = EngineConfig(kind=kind, options=options)
    with pytest.raises(ConfigError, match=message):
        engine_type(engine).check(engine)


def test_kind_without_longer_contexts_refuses_them() -> None:
    engine = EngineConfig(kind="some.where:KIND", context="auto")
    with pytest.raises(ConfigError, match=r"some.where:KIND can't .*set engine.context=native"):
        NO_ENGINE.with_context(engine, 65_536, None)


def test_options_of_an_unknown_kind_all_identify_the_run() -> None:
    engine = EngineConfig(options={"a": 1, "b": 2})
    settings = NO_ENGINE.result_settings(engine)
    assert settings == {"engine.options.a": 1, "engine.options.b": 2}


def test_environment_of_a_kind_is_set_where_an_engine_is_built_unless_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_NO_USAGE_STATS": "0"})
    config = parse_config(
        {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
         "engine": {"kind": "simulated"}}
    )  # fmt: skip
    build_engine(config, load_tokenizer("qwq-nano"))
    assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0", "the user's own wins"


def test_only_vllms_own_files_name_its_arguments() -> None:
    """What an engine needs comes with its file: a second one must not touch eleven."""
    allowed = {
        "engines/vllm.py", "engines/vllm_arguments.py", "engines/vllm_startup.py",
        "engines/endpoint.py", "engines/endpoint_client.py", "config/sections.py",
    }  # fmt: skip
    # Memory of weights by method; the name is that of the field, not of vLLM's argument alone.
    also = {"engines/memory.py": {"quantization"}}
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name in allowed:
            continue
        text = path.read_text()
        words = {word for word in VLLM_WORDS if word in text} - also.get(name, set())
        assert not words, f"{name} names {', '.join(sorted(words))}"
        reads = [
            node for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("engine.vllm")
        ]  # fmt: skip
        assert not reads, f"{name} reads engine.vllm"


def test_range_of_engines_is_refused_where_they_could_not_come_and_go() -> None:
    on_cpus = EngineConfig(kind="simulated", device="cpu", replicas=(1, 2))
    with pytest.raises(ConfigError, match=r"engine\.replicas: a range needs engine\.device gpu"):
        engine_type(on_cpus).check(on_cpus)
    servers = EngineConfig(kind="endpoint", device="cpu", replicas=(1, 2))
    with pytest.raises(ConfigError, match=r"one engine drives all servers .* engine\.replicas=1"):
        engine_type(servers).check(servers)
    on_gpus = EngineConfig(kind="simulated", device="gpu", replicas=(1, 2))
    engine_type(on_gpus).check(on_gpus)
