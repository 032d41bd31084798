"""The files of a nano checkpoint: tokenizer, chat template, config, weights."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config

HERE = Path(__file__).parent
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
END_OF_TEXT, IM_END = 256, 258
CONTEXT_TOKENS = 40960  # as in QwQ-32B's config.json


def think_tags(name: str) -> tuple[str, ...]:
    """The think tags in the vocabulary of checkpoint ``name``; none for the Preview format."""
    return () if name.endswith("preview") else THINK


def build_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: ids 0-255 are the bytes, the special and think tokens follow."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(_alphabet())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in think_tags(name)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
        chat_template=(HERE / f"{name}.jinja").read_text(),
    )


def _alphabet() -> list[str]:
    """The byte-level alphabet in byte order: printable Latin-1 unchanged, the rest from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(b if b in printable else next(others)) for b in range(256)]


def build_config(name: str) -> Qwen2Config:
    """1.6 M parameters: 4 layers, hidden size 192, 6 query and 2 key-value heads of size 32."""
    return Qwen2Config(
        vocab_size=256 + len(SPECIAL) + len(think_tags(name)),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=IM_END,
        pad_token_id=END_OF_TEXT,
        dtype="bfloat16",
    )


def write_checkpoint(model: Any, name: str, folder: Path) -> None:
    """Write the Qwen2 ``model`` as a bf16 checkpoint with QwQ's sampling defaults.

    Converts ``model`` itself to bf16.
    """
    import torch

    model.to(torch.bfloat16).save_pretrained(folder)
    build_tokenizer(name).save_pretrained(folder)
    defaults = {
        "do_sample": True,
        "eos_token_id": [IM_END, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.95,
    }
    (folder / "generation_config.json").write_text(json.dumps(defaults, indent=2) + "\n")
