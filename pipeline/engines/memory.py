"""What a model takes of memory, from its config.json; pure, no I/O."""

from collections.abc import Mapping
from typing import Any

BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Of weights quantized to so many bits, with their scales: bytes for each.
QUANTIZED = {"awq": 0.56, "awq_marlin": 0.56, "gptq": 0.56, "gptq_marlin": 0.56, "fp8": 1.03}


def parameters(model: Mapping[str, Any]) -> tuple[int, int]:
    """The parameters of a Qwen2-like model: in the layers' matrices, and in the embeddings."""
    hidden, inner = int(model["hidden_size"]), int(model["intermediate_size"])
    heads = int(model["num_attention_heads"])
    head = int(model.get("head_dim") or hidden // heads)
    kv = int(model.get("num_key_value_heads") or heads) * head
    attention = 2 * hidden * heads * head + 2 * hidden * kv
    layers = int(model["num_hidden_layers"]) * (attention + 3 * hidden * inner)
    tables = 1 if model.get("tie_word_embeddings") else 2
    return layers, tables * int(model["vocab_size"]) * hidden


def is_known(model: Mapping[str, Any], quantization: str | None = None) -> bool:
    """Whether the weights are not quantized, or in a way of which the size is known here."""
    stored = (model.get("quantization_config") or {}).get("quant_method")
    return (quantization or stored) in (None, *QUANTIZED)


def weight_bytes(model: Mapping[str, Any], quantization: str | None = None) -> float:
    """The bytes of the weights, as stored or as ``quantization`` (vLLM's name) makes them."""
    layers, tables = parameters(model)
    each = BYTES.get(str(model.get("dtype") or model.get("torch_dtype")), 2.0)
    stored = (model.get("quantization_config") or {}).get("quant_method")
    return layers * QUANTIZED.get(str(quantization or stored), each) + tables * each


def kv_bytes_a_token(model: Mapping[str, Any]) -> float:
    """The bytes of the KV cache for a token, keys and values of all layers, in 16 bits."""
    heads = int(model["num_attention_heads"])
    head = int(model.get("head_dim") or int(model["hidden_size"]) // heads)
    kv = int(model.get("num_key_value_heads") or heads)
    return 2.0 * int(model["num_hidden_layers"]) * kv * head * 2
