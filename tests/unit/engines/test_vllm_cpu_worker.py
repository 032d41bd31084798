"""Workers of vLLM on CPUs ask for the tile registers of AMX before anything else runs."""

import importlib
from pydoc import locate
from typing import Any

import pytest
import torch

from pipeline.config.load import parse_config
from pipeline.engines import vllm_cpu_worker
from pipeline.engines.vllm_arguments import engine_arguments


def arguments(**engine: Any) -> dict[str, Any]:
    sections = {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"}}
    return engine_arguments(parse_config({**sections, "engine": engine}))


def test_workers_on_cpus_load_the_module_and_others_do_not() -> None:
    named = arguments(device="cpu")["worker_extension_cls"]
    assert locate(named) is vllm_cpu_worker.CpuWorker
    assert "worker_extension_cls" not in arguments(device="gpu")
    own = arguments(device="cpu", vllm={"worker_extension_cls": "my.Worker"})
    assert own["worker_extension_cls"] == "my.Worker"


def test_loading_it_asks_for_the_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[bool]()
    assert isinstance(torch.cpu._init_amx(), bool)  # a private name of PyTorch
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: asked.append(True))
    importlib.reload(vllm_cpu_worker)
    assert asked
