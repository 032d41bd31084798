"""How fast GPUs generate, by a roofline model; no I/O.

No figure here was measured by this project. A step reads the weights and the running sequences' KV
cache, and sums up across GPUs after each attention and each feed-forward layer. The constants fit
published figures: Qwen3-32B in BF16 on two H100 makes 475, 827, 1,294 and 2,079 tokens/s with 8,
16, 32 and 64 sequences. `tests/unit/engines/test_roofline.py` states how far off the model is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.engines.memory import MemoryNeed, parameters

GB, TB, TERA, GIB = 1e9, 1e12, 1e12, 2**30
# The share of a GPU's published bandwidth and arithmetic that vLLM reaches.
BANDWIDTH_SHARE, ARITHMETIC_SHARE = 0.8, 0.5
# Per step: launching and scheduling; and for each sequence: sampling and bookkeeping.
STEP_SECONDS, SEQUENCE_SECONDS = 2.0e-3, 14e-6
# A sum across GPUs takes a latency, and the time of its bytes. GeForce cards can't reach each other
# but through the host's memory.
NVLINK, PCIE, HOST = (8e-6, 300 * GB), (30e-6, 20 * GB), (60e-6, 10 * GB)
# vLLM captures CUDA graphs up to so many sequences; larger batches run without.
LARGEST_GRAPH = 512
# Batch sizes that vLLM captures are multiples of it.
GRAPH_STEP = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU: bytes of memory and, as its maker states, bytes and dense BF16 operations a second.

    ``link``: see `NVLINK`.
    """

    name: str
    memory: float
    bandwidth: float
    arithmetic: float
    link: tuple[float, float]


# By a part of the name that nvidia-smi shows; the first that fits.
GPUS: Mapping[str, Gpu] = {
    "B200": Gpu("B200", 180 * GB, 8.0 * TB, 2250 * TERA, NVLINK),
    "H200": Gpu("H200", 140 * GIB, 4.8 * TB, 989 * TERA, NVLINK),
    "H100 PCIe": Gpu("H100 PCIe", 80 * GB, 2.0 * TB, 756 * TERA, PCIE),
    "H100": Gpu("H100", 80 * GIB, 3.35 * TB, 989 * TERA, NVLINK),
    "A100-SXM4-40": Gpu("A100 40 GB", 40 * GIB, 1.56 * TB, 312 * TERA, NVLINK),
    "A100": Gpu("A100", 80 * GIB, 2.04 * TB, 312 * TERA, NVLINK),
    "L40S": Gpu("L40S", 45 * GIB, 0.864 * TB, 362 * TERA, PCIE),
    "RTX 4090": Gpu("RTX 4090", 24 * GIB, 1.01 * TB, 165 * TERA, HOST),
}


def gpu_of(name: str) -> Gpu | None:
    """The GPU that nvidia-smi calls ``name``; None if it is not in `GPUS`."""
    return next((gpu for part, gpu in GPUS.items() if part in name), None)


@dataclass(frozen=True)
class Speed:
    """An engine of ``ranks`` GPUs with this model: how long its steps take."""

    gpu: Gpu
    ranks: int
    need: MemoryNeed
    model: Mapping[str, Any]

    def step_seconds(self, sequences: float, context: float) -> float:
        """A step of so many sequences with ``context`` tokens each, on average."""
        read = self.need.weights + sequences * context * self.need.token
        return (
            STEP_SECONDS
            + sequences * SEQUENCE_SECONDS
            + read / (self.ranks * self.gpu.bandwidth * BANDWIDTH_SHARE)
            + self._sums_seconds(sequences)
        )

    def prefill_seconds(self, tokens: float) -> float:
        """Reading ``tokens`` of prompts; two operations for each weight and token."""
        operations = 2 * parameters(self.model)[0] * tokens
        return operations / (self.ranks * self.gpu.arithmetic * ARITHMETIC_SHARE)

    def tokens_per_second(self, sequences: float, context: float) -> float:
        """Tokens that are generated a second."""
        return sequences / self.step_seconds(sequences, context)

    def _sums_seconds(self, sequences: float) -> float:
        if self.ranks == 1:
            return 0.0
        latency, bandwidth = self.gpu.link
        sums = 2 * int(self.model["num_hidden_layers"])
        sent = sequences * int(self.model["hidden_size"]) * 2 * 2 * (self.ranks - 1) / self.ranks
        return sums * (latency + sent / bandwidth)


def slots_for(kv_tokens: float, context: float) -> int:
    """How many sequences of ``context`` tokens, on average, a KV cache holds.

    A multiple of `GRAPH_STEP` up to `LARGEST_GRAPH`, where it is above one. More would be faster by
    a few percent, and compute a tenth of the tokens again (`python -m jobs.bench kv-cache`).
    """
    fitting = int(kv_tokens / max(1.0, context))
    return max(1, min(LARGEST_GRAPH, fitting - fitting % GRAPH_STEP or fitting))


@dataclass(frozen=True)
class Layout:
    """A way to use a node's GPUs: engines of ``tensor_parallel`` GPUs, ``slots`` in each.

    ``tokens_per_second``: of all engines, predicted.
    """

    tensor_parallel: int
    replicas: int
    slots: int
    tokens_per_second: float

    def price(self, gpu_hour: float) -> float:
        """The price of a million tokens."""
        gpus = self.tensor_parallel * self.replicas
        return gpu_hour * gpus / 3600 / self.tokens_per_second * 1e6


def layouts(
    gpu: Gpu, gpus: int, need: MemoryNeed, model: Mapping[str, Any], context: float
) -> Iterator[Layout]:
    """All ways to divide ``gpus`` GPUs of a node that hold at least one trace of full length."""
    ranks = 1
    while ranks <= gpus:
        kv_tokens = need.kv_cache(gpu.memory, ranks) / need.token
        if kv_tokens >= need.context and int(model["num_attention_heads"]) % ranks == 0:
            slots, replicas = slots_for(kv_tokens, context), gpus // ranks
            speed = Speed(gpu, ranks, need, model).tokens_per_second(slots, context)
            yield Layout(ranks, replicas, slots, replicas * speed)
        ranks *= 2
