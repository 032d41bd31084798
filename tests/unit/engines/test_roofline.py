"""The roofline model beside published figures, and the slots and layouts that follow from it."""

import pytest

from jobs.bench.kv_cache import QWQ
from pipeline.config.sections import EngineConfig
from pipeline.engines.memory import MemoryNeed
from pipeline.engines.roofline import LARGEST_GRAPH, Gpu, Speed, gpu_of, layouts, slots_for
from pipeline.engines.vllm_arguments import memory_need

GIB = 2**30


def need() -> MemoryNeed:
    found = memory_need(EngineConfig(), QWQ)
    assert found is not None
    return found


def gpu(name: str) -> Gpu:
    found = gpu_of(name)
    assert found is not None
    return found


def speed(name: str, ranks: int) -> Speed:
    return Speed(gpu(name), ranks, need(), QWQ)


@pytest.mark.parametrize(("sequences", "published"), [(8, 475), (16, 827), (32, 1294), (64, 2079)])
def test_two_h100_with_a_32b_model_are_as_fast_as_published(sequences: int, published: int) -> None:
    """Contexts of 5,000 tokens, as outputs for GPQA have on average while they run."""
    found = speed("H100", 2).tokens_per_second(sequences, 5000)
    assert found == pytest.approx(published, rel=0.05)


def test_prefill_counts_where_prompts_are_long() -> None:
    """Published: 2,078 tokens/s a GPU on four H100 at 512 sequences, where texts are rephrased.

    The lengths are not published; here a prompt of 1,000 tokens has an answer of half of that.
    """
    of = speed("H100", 4)
    seconds = of.step_seconds(512, 1250) + of.prefill_seconds(2 * 512)
    assert 512 / seconds / 4 == pytest.approx(2078, rel=0.2)
    assert of.tokens_per_second(512, 1250) / 4 > 1.5 * 2078, "without it, the model is far off"


def test_fewer_gpus_for_each_engine_pay_for_short_traces_only() -> None:
    """As many as the cache holds: two engines of 2 H200 beat one of 4 at 1,200 tokens."""
    one, two = speed("H200", 4), speed("H200", 2)
    assert 2 * two.tokens_per_second(256, 1200) > one.tokens_per_second(512, 1200)
    assert 2 * two.tokens_per_second(40, 9000) < one.tokens_per_second(160, 9000)


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", None),
    ],
)
def test_gpu_is_known_by_what_nvidia_smi_shows(shown: str, name: str | None) -> None:
    found = gpu_of(shown)
    assert (None if found is None else found.name) == name


@pytest.mark.parametrize(
    ("kv_tokens", "context", "slots"),
    [
        (902_000, 6000, 144), (379_000, 6000, 56), (902_000, 1200, LARGEST_GRAPH),
        (45_000, 6000, 7), (1000, 6000, 1), (1000, 0, LARGEST_GRAPH),
        (1_600_000, 6000, 256), (1_630_000, 6000, 256), (1_640_000, 6000, 272),
    ],
)  # fmt: skip
def test_slots_fill_the_cache_in_sizes_that_have_a_graph(
    kv_tokens: float, context: float, slots: int
) -> None:
    assert slots_for(kv_tokens, context) == slots


def test_layouts_are_those_that_hold_a_trace() -> None:
    of_h100 = layouts([80 * GIB] * 8, gpu("H100"), need(), QWQ, 6000)
    found = {each.tensor_parallel: each for each in of_h100}
    assert [(n, of.replicas) for n, of in found.items()] == [(2, 4), (4, 2), (8, 1)]
    assert found[4].price(2.5) == pytest.approx(8 * 2.5 / 3600 / found[4].tokens_per_second * 1e6)
    assert list(layouts([24 * GIB] * 2, gpu("RTX 4090"), need(), QWQ, 6000)) == []
