"""How fast GPUs generate, by a roofline model; no I/O.

No figure here was measured by this project. A step reads the weights and the running sequences' KV
cache, and sums up across GPUs after each attention and each feed-forward layer. The constants fit
published figures: Qwen3-32B in BF16 on two H100 makes 475, 827, 1,294 and 2,079 tokens/s with 8,
16, 32 and 64 sequences. `tests/unit/engines/test_roofline.py` states how far off the model is.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.engines.memory import MemoryNeed, parameters

GB, TB, TERA = 1e9, 1e12, 1e12
# The share of a GPU's published bandwidth and arithmetic that vLLM reaches.
BANDWIDTH_SHARE, ARITHMETIC_SHARE = 0.8, 0.5
# Per step: launching and scheduling; and for each sequence: sampling and bookkeeping.
STEP_SECONDS, SEQUENCE_SECONDS = 2.0e-3, 14e-6
# A sum across GPUs takes a latency, and the time of its bytes. GeForce cards can't reach each other
# but through the host's memory.
NVLINK, PCIE, HOST = (8e-6, 300 * GB), (30e-6, 20 * GB), (60e-6, 10 * GB)
# vLLM captures CUDA graphs for multiples of 8 sequences up to 256, and of 16 up to 512 (on newer
# GPUs up to 1,024); larger batches run without.
GRAPH_STEP, FINE_GRAPHS, LARGEST_GRAPH = 8, 256, 512


@dataclass(frozen=True)
class Gpu:
    """A GPU: as its maker states, bytes of memory and dense BF16 operations a second.

    ``link``: see `NVLINK`.
    """

    name: str
    bandwidth: float
    arithmetic: float
    link: tuple[float, float]


# By a pattern in the name that nvidia-smi shows; the first that fits. Makers' data sheets.
GPUS: Mapping[str, Gpu] = {
    r"\bB200\b": Gpu("B200", 8.0 * TB, 2250 * TERA, NVLINK),
    r"\bGH200\b": Gpu("GH200", 4.0 * TB, 989 * TERA, NVLINK),
    r"\bH200\b": Gpu("H200", 4.8 * TB, 989 * TERA, NVLINK),
    r"\bH100 NVL\b": Gpu("H100 NVL", 3.9 * TB, 835 * TERA, PCIE),
    r"\bH100 PCIe\b": Gpu("H100 PCIe", 2.0 * TB, 756 * TERA, PCIE),
    r"\bH100\b": Gpu("H100", 3.35 * TB, 989 * TERA, NVLINK),
    r"\bA100.*PCIe?\b.*40GB": Gpu("A100 PCIe 40 GB", 1.56 * TB, 312 * TERA, PCIE),
    r"\bA100.*PCIe?\b": Gpu("A100 PCIe", 1.94 * TB, 312 * TERA, PCIE),
    r"\bA100.*40GB": Gpu("A100 40 GB", 1.56 * TB, 312 * TERA, NVLINK),
    r"\bA100\b": Gpu("A100", 2.04 * TB, 312 * TERA, NVLINK),
    r"\bL40S\b": Gpu("L40S", 0.864 * TB, 362 * TERA, PCIE),
    r"\bRTX 4090$": Gpu("RTX 4090", 1.01 * TB, 165 * TERA, HOST),
}


def gpu_of(name: str) -> Gpu | None:
    """The GPU that nvidia-smi calls ``name``; None if it is not in `GPUS`."""
    found = (gpu for pattern, gpu in GPUS.items() if re.search(pattern, name, re.IGNORECASE))
    return next(found, None)


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

    A size for which vLLM captures a CUDA graph, where it is not below all of them. More would be up
    to a tenth faster, and compute a tenth of the tokens again (`python -m jobs.bench kv-cache`).
    """
    fitting = min(LARGEST_GRAPH, int(kv_tokens / max(1.0, context)))
    step = GRAPH_STEP if fitting <= FINE_GRAPHS else 2 * GRAPH_STEP
    return max(1, fitting - fitting % step or fitting)


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
    gpus: Sequence[float], gpu: Gpu, need: MemoryNeed, model: Mapping[str, Any], context: float
) -> Iterator[Layout]:
    """All ways to divide a node's GPUs that hold at least one trace of full length.

    ``gpus``: bytes of each GPU's memory.
    """
    ranks = 1
    while ranks <= len(gpus):
        kv_tokens = need.kv_cache(min(gpus), ranks) / need.token
        if kv_tokens >= need.context and int(model["num_attention_heads"]) % ranks == 0:
            slots, replicas = slots_for(kv_tokens, context), len(gpus) // ranks
            speed = Speed(gpu, ranks, need, model).tokens_per_second(slots, context)
            yield Layout(ranks, replicas, slots, replicas * speed)
        ranks *= 2
