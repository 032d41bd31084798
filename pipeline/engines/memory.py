"""The memory that a model takes, from its config.json; no I/O."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Bytes of a quantized weight, its share of the scales included.
QUANTIZED = {"awq": 0.56, "awq_marlin": 0.56, "gptq": 0.56, "gptq_marlin": 0.56, "fp8": 1.03}
# Of models with experts, whose weights are not counted here.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# What of a config.json is needed here; models of several parts have it one level deeper.
KEYS = (
    "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads",
    "num_hidden_layers", "vocab_size",
)  # fmt: skip


@dataclass(frozen=True)
class MemoryNeed:
    """What one engine takes of its GPUs' memory, in bytes.

    ``weights``: on all its GPUs together; ``overhead``: on each, besides weights and KV cache;
    ``token``: the KV cache of one token; ``context``: tokens of the longest trace; ``gpu_share``:
    the part of a GPU's memory that the engine uses; ``is_exact``: whether the size of the weights
    is known; ``context_setting``: the setting that shortens the context.
    """

    weights: float
    overhead: float
    token: float
    context: int
    gpu_share: float
    is_exact: bool
    context_setting: str

    @property
    def trace(self) -> float:
        """Bytes of the KV cache for one trace of full length."""
        return self.context * self.token

    def kv_cache(self, gpu: float, ranks: int) -> float:
        """Bytes left for the KV cache on ``ranks`` GPUs of ``gpu`` bytes; negative: too few."""
        return ranks * (gpu * self.gpu_share - self.overhead) - self.weights


def parameters(model: Mapping[str, Any]) -> tuple[int, int]:
    """The parameters of a Qwen2-like model: in its layers' matrices, and in its embeddings."""
    hidden, inner = int(model["hidden_size"]), int(model["intermediate_size"])
    heads = int(model["num_attention_heads"])
    head = int(model.get("head_dim") or hidden // heads)
    kv = int(model.get("num_key_value_heads") or heads) * head
    attention = 2 * hidden * heads * head + 2 * hidden * kv
    layers = int(model["num_hidden_layers"]) * (attention + 3 * hidden * inner)
    tables = 1 if model.get("tie_word_embeddings") else 2
    return layers, tables * int(model["vocab_size"]) * hidden


def is_known(model: Mapping[str, Any], quantization: str | None = None) -> bool:
    """Whether the weights are dense, and not quantized or by a method in `QUANTIZED`."""
    if any(name in model for name in EXPERTS):
        return False
    stored = (model.get("quantization_config") or {}).get("quant_method")
    return (quantization or stored) in (None, *QUANTIZED)


def weight_bytes(model: Mapping[str, Any], quantization: str | None = None) -> float:
    """The bytes of the weights, as stored or as ``quantization`` (vLLM's name) makes them."""
    layers, tables = parameters(model)
    each = BYTES.get(str(model.get("dtype") or model.get("torch_dtype")), 2.0)
    stored = (model.get("quantization_config") or {}).get("quant_method")
    return layers * QUANTIZED.get(str(quantization or stored), each) + tables * each


def kv_bytes_a_token(model: Mapping[str, Any]) -> float:
    """The bytes of the KV cache for one token: keys and values of all layers, in 16 bits."""
    heads = int(model["num_attention_heads"])
    head = int(model.get("head_dim") or int(model["hidden_size"]) // heads)
    kv = int(model.get("num_key_value_heads") or heads)
    return 2.0 * int(model["num_hidden_layers"]) * kv * head * 2
