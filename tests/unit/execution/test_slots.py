"""Slots that follow from the KV cache and from the lengths of earlier traces."""

from typing import Any

import pytest

from jobs.bench.kv_cache import QWQ
from pipeline.execution import slots
from pipeline.execution.nodes import MIB, Node, NodeGpu
from pipeline.execution.slots import USUAL_CONTEXT, expected_context, with_slots
from pipeline.monitor.figures import Figures, length_bin
from tests.conftest import MakeConfig

H100 = NodeGpu("NVIDIA H100 80GB HBM3", 81_559 * MIB, 4 * MIB, "580.95.05")
L40S = NodeGpu("NVIDIA L40S", 46_068 * MIB, 4 * MIB, "580.95.05")


def of_length(tokens: int, count: int, prompt: int = 0) -> list[Figures]:
    figures = Figures(
        "", 0, 0, 0, think_lengths={length_bin(tokens): count}, tokens={"prompt": prompt * count}
    )
    return [Figures("", 0, 0, 0), figures]


def test_expected_context_is_half_of_a_trace_beside_its_prompt(make_config: MakeConfig) -> None:
    config = make_config(sampling={"max_tokens": 32_768})
    found = expected_context(config, [of_length(4000, 50, 300)])
    assert found == pytest.approx(300 + 2000, rel=0.2)  # to within a bin
    mixed = expected_context(config, [of_length(1000, 49), of_length(32_000, 1)])
    assert mixed > 5000, "a long trace holds its place for long"


def test_without_earlier_traces_the_policy_tells(make_config: MakeConfig) -> None:
    assert expected_context(make_config(sampling={"max_tokens": 32_768}), []) == USUAL_CONTEXT
    short = make_config(sampling={"max_tokens": 4096})
    assert expected_context(short, [of_length(100, 3)]) == 2048


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    nodes = [Node("a", (H100,) * 4), Node("b", (H100,) * 4)]
    monkeypatch.setattr(slots, "load_model_config", lambda *_: QWQ)
    monkeypatch.setattr(slots, "look_at_gpu_nodes", lambda _: nodes)
    return nodes


ENGINE: dict[str, Any] = {"kind": "vllm", "device": "gpu", "tensor_parallel": 4}


def test_slots_follow_from_the_smallest_gpu(make_config: MakeConfig, cluster: list[Node]) -> None:
    config = make_config(engine=ENGINE, sampling={"max_tokens": 32_768})
    assert with_slots(config).engine.vllm == {"max_num_seqs": 144}
    cluster.append(Node("c", (L40S,) * 4))
    assert with_slots(config).engine.vllm == {"max_num_seqs": 56}


@pytest.mark.parametrize(
    "engine",
    [
        {**ENGINE, "vllm": {"max_num_seqs": 16}},
        {**ENGINE, "device": "cpu"},
        {**ENGINE, "kind": "simulated"},
        {**ENGINE, "kind": "tests.toy_engine:TOY", "options": {"answer": "1"}},
    ],
)
def test_slots_stay_where_they_are_set_or_no_memory_tells_them(
    make_config: MakeConfig, cluster: list[Node], engine: dict[str, Any]
) -> None:
    config = make_config(engine=engine)
    assert with_slots(config) == config


def test_slots_stay_where_no_gpu_is_there_yet(make_config: MakeConfig, cluster: list[Node]) -> None:
    cluster.clear()
    config = make_config(engine=ENGINE)
    assert with_slots(config) == config
