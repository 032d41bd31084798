"""Where a model's files are, its config.json and its tokenizer."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from pipeline.errors import ModelError

BUILT_IN = Path(__file__).parents[1] / "models"
TOKENIZER_FILES = ("token", "vocab", "merges", "chat_template", "special_tokens", "added_tokens")


def resolve_model(path: str) -> str:
    """The folder of a built-in model (``qwq-nano``, ``qwq-nano-preview``), or ``path`` itself.

    A path that looks like a local folder and is none raises `ModelError`.
    """
    built_in = BUILT_IN / path
    if "/" not in path and (built_in / "config.json").is_file():
        return str(built_in)
    if path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path {path} is not a model folder: it has no config.json")
        return str(folder.resolve())
    if Path(path, "config.json").is_file():
        return str(Path(path).resolve())
    if "/" not in path:
        names = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/config.json")))
        raise ModelError(
            f"model.path {path} is neither built in ({names}) nor a folder; a Hugging Face model "
            "has the form Qwen/QwQ-32B"
        )
    return path


def load_model_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a model folder, hub name or object-store URL."""
    from transformers.utils.hub import cached_file

    source = resolve_model(path)
    try:
        if "://" in source:
            with fsspec.open(f"{source}/config.json") as remote:
                data = remote.read()
        else:
            file = cached_file(source, "config.json", revision=revision or "main")
            data = Path(str(file)).read_bytes()
        found: dict[str, Any] = json.loads(data)
    except Exception as error:  # the hub and the object stores' clients raise all kinds
        raise ModelError(
            f"can't read the config.json of model.path {path}: {_reason(error)}"
        ) from None
    return found


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The fast Hugging Face tokenizer of a model folder, hub name or object-store URL.

    Raises `ModelError` if it can't be loaded or has no chat template.
    """
    # Not AutoTokenizer: to find the class it imports PyTorch, five seconds of each process. What a
    # class adds to tokenizer.json is nothing for Qwen2: the ids are the same.
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = resolve_model(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if "://" in source:
                source = _download_tokenizer(source, folder)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, revision=revision or "main")
    except Exception as error:  # the hub and the tokenizer's code raise all kinds
        raise ModelError(
            f"can't load the tokenizer.json of model.path {path}: {_reason(error)}"
        ) from None
    if tokenizer.chat_template is None:
        raise ModelError(f"the tokenizer of {path} has no chat template")
    return tokenizer


def _reason(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _download_tokenizer(url: str, folder: str) -> str:
    """Copy the tokenizer's files from an object store into ``folder``."""
    fs, root = fsspec.core.url_to_fs(url)
    for file in fs.ls(root, detail=False):
        name = file.rsplit("/", 1)[-1]
        if name == "config.json" or name.startswith(TOKENIZER_FILES):
            fs.get_file(file, f"{folder}/{name}")
    return folder
