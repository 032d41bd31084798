"""Slots that follow from the KV cache and from the lengths of earlier traces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.kv_cache import QWQ
from pipeline.config.run_config import RunConfig
from pipeline.execution import slots
from pipeline.execution.nodes import MIB, Node, NodeGpu
from pipeline.execution.prepare import prepare
from pipeline.execution.slots import USUAL_CONTEXT, expected_context, with_slots
from pipeline.monitor.figures import Figures, length_bin
from tests.conftest import MakeConfig, write_shards

H100 = NodeGpu("NVIDIA H100 80GB HBM3", 81_559 * MIB, 4 * MIB, "580.95.05")
L40S = NodeGpu("NVIDIA L40S", 46_068 * MIB, 4 * MIB, "580.95.05")


def of_length(length: int, count: int, prompt: int = 0, **given: Any) -> list[Figures]:
    spent = {"prompt": prompt * count, "output": length * count}
    figures = Figures("", 0, 9, 9, think_lengths={length_bin(length): count}, tokens=spent)
    return [Figures("", 0, 0, 9), replace(figures, **given)]


def test_expected_context_is_half_of_a_trace_beside_its_prompt(make_config: MakeConfig) -> None:
    config = make_config(sampling={"max_tokens": 32_768})
    found = expected_context(config, [of_length(4000, 50, 300)])
    assert found == pytest.approx(300 + 2000, rel=0.2)  # to within a bin
    mixed = expected_context(config, [of_length(1000, 49), of_length(32_000, 1)])
    assert mixed > 5000, "a long trace holds its place for long"
    answers = of_length(0, 50, 300, tokens={"prompt": 15_000, "output": 100_000})
    assert expected_context(config, [answers]) == pytest.approx(300 + 1000, rel=0.01)


def test_without_finished_runs_of_this_tier_policy_and_prompts_tell(
    make_config: MakeConfig,
) -> None:
    config = make_config(sampling={"max_tokens": 32_768})
    assert expected_context(config, []) == USUAL_CONTEXT
    assert expected_context(config, [of_length(500, 99, rows=3)]) == USUAL_CONTEXT
    assert expected_context(config, [of_length(500, 99)], 100, "YaRN") == USUAL_CONTEXT + 100
    short = make_config(sampling={"max_tokens": 4096})
    assert expected_context(short, [of_length(100, 3)], 20_000) == 22_048


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    nodes = [Node("a", (H100,) * 4), Node("b", (H100,) * 4)]
    monkeypatch.setattr(slots, "load_model_config", lambda *_: QWQ)
    monkeypatch.setattr(slots, "look_at_gpu_nodes", lambda _: nodes)
    return nodes


ENGINE: dict[str, Any] = {"kind": "vllm", "device": "gpu", "tensor_parallel": 4}


@pytest.fixture
def sized(tmp_path: Path, make_config: MakeConfig) -> Callable[..., RunConfig]:
    """The configuration of a run with these settings of ``engine``, before and after."""
    write_shards(tmp_path / "in", [40])

    def size(**engine: Any) -> RunConfig:
        config = make_config(
            engine={**ENGINE, **engine},
            sampling={"max_tokens": 32_768},
            model={"preset": "qwq-32b"},
        )
        prepared = prepare(config)
        after = with_slots(config, prepared, "", prepared.plan.todo)
        return config.model_copy(update={"engine": after.engine})

    return size


def test_slots_follow_from_the_smallest_gpu(
    sized: Callable[..., RunConfig], cluster: list[Node]
) -> None:
    """Prompts of some 60 tokens beside the 6,000."""
    assert sized().engine.vllm == {"max_num_seqs": 144}
    cluster.append(Node("c", (L40S,) * 4))
    assert sized().engine.vllm == {"max_num_seqs": 56}


@pytest.mark.parametrize(
    "engine",
    [
        {"vllm": {"max_num_seqs": 16}},
        {"vllm": {"quantization": "compressed-tensors"}},  # how large are its weights?
        {"vllm": {"gpu_memory_utilization": 0.2}},  # no room for a trace
        {"device": "cpu"},
        {"kind": "simulated"},
        {"kind": "tests.toy_engine:TOY", "options": {"answer": "1"}},
    ],
)
def test_slots_stay_where_they_are_set_or_no_memory_tells_them(
    sized: Callable[..., RunConfig], cluster: list[Node], engine: dict[str, Any]
) -> None:
    assert sized(**engine).engine.vllm == engine.get("vllm", {})


@pytest.mark.parametrize("model", [{**QWQ, "num_experts": 128}, {"text_config": QWQ}])
def test_slots_stay_for_models_whose_memory_is_not_known(
    sized: Callable[..., RunConfig], cluster: list[Node], model: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(slots, "load_model_config", lambda *_: model)
    assert sized().engine.vllm == {}


def test_slots_stay_where_no_gpu_is_there_yet(
    sized: Callable[..., RunConfig], cluster: list[Node]
) -> None:
    cluster.clear()
    assert sized().engine.vllm == {}
