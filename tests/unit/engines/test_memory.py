"""What models take, against the published figures."""

import pytest

from pipeline.engines.memory import kv_bytes_a_token, parameters, weight_bytes

# Qwen/QwQ-32B's config.json at the Hugging Face hub.
QWQ_32B = {
    "hidden_size": 5120, "intermediate_size": 27_648, "num_hidden_layers": 64,
    "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152_064,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_qwq_is_as_large_as_its_model_card_says() -> None:
    """32.5 billion parameters, 31.0 of them not in embeddings."""
    layers, tables = parameters(QWQ_32B)
    assert layers + tables == pytest.approx(32.5e9, rel=0.01)
    assert layers == pytest.approx(31.0e9, rel=0.01)
    assert weight_bytes(QWQ_32B) == pytest.approx(65e9, rel=0.01)


def test_quantized_weights_are_smaller() -> None:
    """The files of Qwen/QwQ-32B-AWQ are 19.3 GB."""
    assert weight_bytes(QWQ_32B, "awq") == pytest.approx(19.3e9, rel=0.1)
    stored = {**QWQ_32B, "quantization_config": {"quant_method": "awq"}}
    assert weight_bytes(stored) == weight_bytes(QWQ_32B, "awq")


def test_kv_cache_of_a_token_is_a_quarter_of_a_mebibyte() -> None:
    assert kv_bytes_a_token(QWQ_32B) == 256 * 1024
