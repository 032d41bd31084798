"""Divides an export into training and validation; no I/O."""

import hashlib
import json
from collections.abc import Container, Mapping
from typing import Any

from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.template import columns_of

TRAIN, VALIDATION = "train", "validation"
SPLITS = (TRAIN, VALIDATION)


def split_of(
    row: Mapping[str, Any], columns: PromptColumns, expanded: Container[str], share: float | None
) -> str:
    """The split of a row, by a hash of its seed: a ``share`` of all seeds is for validation.

    The seed is what makes the prompt, without the columns ``expanded`` and apart from white space.
    So all prompts of a seed, and seeds that are equal, are on the same side, in every run.
    """
    if share is None:
        return TRAIN
    names = [columns.prompt or columns.messages]
    if columns.template is not None:
        used = columns_of(columns.template)
        names = [name for name in used if name not in expanded] or list(used)
    seed = "\x1f".join(_text(row[name]) for name in names if name)
    digest = hashlib.blake2b(seed.encode(errors="surrogatepass"), digest_size=8).digest()
    return VALIDATION if int.from_bytes(digest) < share * 2**64 else TRAIN


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return " ".join(text.split())
