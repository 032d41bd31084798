"""The doctor on nodes with GPUs, from descriptions of such nodes: what fails, how full, how fast."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.kv_cache import QWQ
from pipeline.execution import nodes
from pipeline.execution.nodes import MIB, Node, NodeGpu, gpus_here, installed_version
from pipeline.insight import gpu_checks
from pipeline.insight.findings import GIB, Finding
from tests.conftest import MakeConfig

# As nvidia-smi shows them.
H100 = NodeGpu("NVIDIA H100 80GB HBM3", 81_559 * MIB, 4 * MIB, "580.95.05")
L40S = NodeGpu("NVIDIA L40S", 46_068 * MIB, 4 * MIB, "580.95.05")
RTX_4090 = NodeGpu("NVIDIA GeForce RTX 4090", 24_564 * MIB, 4 * MIB, "580.95.05")
PACKAGES = ("qwq-batch", "ray", "torch", "transformers")


def node(*gpus: NodeGpu, **given: Any) -> Node:
    versions = {name: installed_version(name) for name in PACKAGES} | given.pop("versions", {})
    return Node("node-1", gpus, 64 * GIB, versions=versions, **given)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, make_config: MakeConfig) -> Any:
    """The findings for a QwQ-32B on these nodes; other arguments are settings of ``engine``."""

    def findings(
        nodes: list[Node], prices: dict[str, Any] | None = None, **engine: Any
    ) -> list[Finding]:
        monkeypatch.setattr(gpu_checks, "load_model_config", lambda *_: QWQ)
        monkeypatch.setattr(gpu_checks, "_nodes", lambda _: nodes)
        config = make_config(
            engine={"kind": "vllm", "device": "gpu", **engine}, prices=prices or {},
            sampling={"max_tokens": 32_768},
        )  # fmt: skip
        return list(gpu_checks.check_gpus(config))

    return findings


def told(findings: list[Finding], level: str) -> list[str]:
    return [f"{finding}" for finding in findings if finding.level == level]


def test_eight_h100_are_described_filled_and_divided(check: Any) -> None:
    found = check(
        [node(*[H100] * 8)], {"gpu_hour": 2.5}, replicas=2, tensor_parallel=4,
        vllm={"max_model_len": 40_960},
    )  # fmt: skip
    assert told(found, "error") == told(found, "warning") == []
    text = "\n".join(map(str, found))
    assert "node-1: 8 x NVIDIA H100 80GB HBM3, 80 GiB, driver 580.95.05" in text
    assert "an engine's KV cache holds 901,436 tokens: 22 traces of full length (40,960)" in text
    assert "engines get 144 slots, for traces that hold 6,000 tokens on average" in text
    lines = str(found[-1]).splitlines()
    assert lines[0].startswith("ok        8 x H100 could be used so (by a roofline model, not")
    assert [line.split()[:4] for line in lines[1:]] == [
        ["4", "x", "tensor_parallel", "2,"],
        ["2", "x", "tensor_parallel", "4,"],
        ["1", "x", "tensor_parallel", "8,"],
    ]
    assert ["<- this config" in line for line in lines[1:]] == [False, True, False]
    assert "for a million tokens" in lines[1]


@pytest.mark.parametrize(
    ("gpu", "count", "ranks", "slots"), [(L40S, 4, 4, 56), (RTX_4090, 8, 8, 56)]
)
def test_small_cards_hold_few_traces(
    check: Any, gpu: NodeGpu, count: int, ranks: int, slots: int
) -> None:
    found = check([node(*[gpu] * count)], replicas=1, tensor_parallel=ranks)
    assert told(found, "error") == []
    assert any(f"engines get {slots} slots" in str(finding) for finding in found)
    [warning] = told(
        check([node(*[gpu] * count)], replicas=1, tensor_parallel=ranks,
              vllm={"max_num_seqs": 128}),
        "warning",
    )  # fmt: skip
    assert "128 slots with traces that hold 6,000 tokens on average fill 20" in warning
    assert f"set {slots} slots" in warning


def test_too_few_slots_are_warned_of_with_the_speed_that_is_left(check: Any) -> None:
    [warning] = told(
        check([node(*[H100] * 8)], replicas=2, tensor_parallel=4, vllm={"max_num_seqs": 64}),
        "warning",
    )
    assert "64 slots with traces that hold 6,000 tokens on average fill 43%" in warning
    assert "set 144 slots, or none: from 3,225 to 4,334 tokens/s by a model" in warning


def test_model_that_does_not_fit_is_told_with_the_parallelism_it_needs(check: Any) -> None:
    def of(memory: int, count: int = 1, **engine: Any) -> Finding:
        gpu = NodeGpu("Some GPU", memory * GIB, 0, "580.1")
        found: Finding = check([node(*[gpu] * count)], **engine)[1]
        return found

    assert "6 traces of full length (40,960)" in of(140).what
    assert of(80).level == "error"  # by half a GiB
    assert of(80).advice == "set engine.tensor_parallel=2 or a lower engine.vllm.max_model_len"
    assert of(80, vllm={"max_model_len": 32_768}).level == "ok"
    assert of(24, 8).advice == "set engine.tensor_parallel=4 or a lower engine.vllm.max_model_len"
    assert of(24, 8, tensor_parallel=4).level == "ok"
    assert of(48, vllm={"quantization": "bitsandbytes"}).level == "warning"
    assert of(48, vllm={"quantization": "awq"}).level == "ok"


def test_too_few_gpus(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = check([node(*[H100] * 2)], replicas=2, tensor_parallel=2)
    assert "2 engines of 2 GPUs need 4, and there are 2" in told(found, "error")[0]
    [none] = check([node()])
    assert none.level == "error"
    assert "engine.device=cpu" in (none.advice or "")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # where nodes may come later
    [none] = check([])
    assert none.level == "warning"


@pytest.mark.parametrize(
    ("broken", "level", "message"),
    [
        (
            node(NodeGpu(H100.name, H100.memory, 0, "550.54"),
                 versions={"nvidia-cuda-runtime": "13.0.96"}),
            "error", "driver 550.54 is too old for CUDA 13.0.96",
        ),
        (node(H100, environment={"VLLM_USE_FLASHINFER_SAMPLER": "1"}), "error", "no nvcc"),
        (node(NodeGpu(H100.name, H100.memory, 30 * GIB, "580")), "warning", "30.0 GiB of a NVIDIA"),
        (node(H100, versions={"ray": "2.59.0"}), "error", "node-1 has ray 2.59.0, and the driver"),
        (node(H100, versions={"torch": None}), "warning", "has torch (none)"),
        (Node("node-1", (H100,), GIB // 2), "warning", "node-1: /dev/shm has 0.50 GiB"),
        (node(H100, counted=2), "warning", "node-1: Ray counts 2 GPUs, and nvidia-smi shows 1"),
        (Node("node-1", problem="task died"), "error", "node-1 can't be looked at: task died"),
    ],
)  # fmt: skip
def test_what_is_wrong_on_a_node_is_told_with_its_name(
    check: Any, broken: Node, level: str, message: str
) -> None:
    found = told(check([node(H100), broken], tensor_parallel=2), level)
    assert [text for text in found if message in text]


def test_driver_that_is_new_enough_is_no_error(check: Any) -> None:
    runtime = {"nvidia-cuda-runtime-cu12": "12.8.90"}
    old = NodeGpu(H100.name, H100.memory, 0, "550.54")
    assert told(check([node(old, old, versions=runtime)], tensor_parallel=2), "error") == []


def test_gpus_are_those_that_nvidia_smi_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "nvidia-smi"
    line = "NVIDIA H200, 143771, 17, 580.95.05"
    command.write_text(f"#!/bin/sh\necho '{line}'\necho '{line}'\necho 'Some text'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert gpus_here() == (NodeGpu("NVIDIA H200", 143_771 * MIB, 17 * MIB, "580.95.05"),) * 2
    command.write_text("#!/bin/sh\nexec sleep 60\n")  # as on a GPU that hangs
    monkeypatch.setattr(nodes, "SMI_SECONDS", 0.2)
    assert gpus_here() == ()
    command.write_text("no program")
    assert gpus_here() == ()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert gpus_here() == ()


def test_range_of_engines_needs_gpus_for_the_least_only(check: Any) -> None:
    found = check([node(*[H100] * 4)], replicas=[2, 8], tensor_parallel=2)
    assert told(found, "error") == []
    assert "2 engines of 2 to 8 have GPUs at present" in "\n".join(told(found, "ok"))
    found = check([node(*[H100] * 4)], replicas=[3, 8], tensor_parallel=2)
    assert "3 engines of 2 GPUs need 6, and there are 4" in told(found, "error")[0]
