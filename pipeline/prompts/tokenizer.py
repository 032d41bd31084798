"""Find a model's files; load its config.json and its tokenizer."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, first_line
from pipeline.storage import Storage

BUILT_IN = Path(__file__).parents[1] / "models"
TOKENIZER_FILES = ("token", "vocab", "merges", "chat_template", "special_tokens", "added_tokens")


def resolve_model(path: str) -> str:
    """The folder of a built-in or local model; a hub name or URL is returned unchanged.

    ``path``: a built-in name (``qwq-nano``, ``qwq-nano-preview``), a folder, a hub name or a URL.
    Raises `ModelError` for a local path without a config.json and for an unknown name.
    """
    built_in = BUILT_IN / path
    if "/" not in path and (built_in / "config.json").is_file():
        return str(built_in)
    if path.startswith((".", "/", "~")):
        folder = Path(path).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.path {path} is not a model folder (it has no config.json); correct the path"
            )
        return str(folder.resolve())
    if Path(path, "config.json").is_file():
        return str(Path(path).resolve())
    if "/" not in path:
        names = ", ".join(sorted(p.parent.name for p in BUILT_IN.glob("*/config.json")))
        raise ModelError(
            f"model.path {path} is neither a built-in model ({names}) nor a folder; name a Hugging "
            "Face model in the form Qwen/QwQ-32B"
        )
    return path


def load_model_config(path: str, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a model folder, hub name or object-store URL.

    ``revision``: of a hub model; None is ``main``. Raises `ModelError` if it can't be read.
    """
    from transformers.utils.hub import cached_file

    source = resolve_model(path)
    try:
        if "://" in source:
            data = Storage(source).read("config.json")
        else:
            file = cached_file(source, "config.json", revision=revision or "main")
            data = Path(str(file)).read_bytes()
        config: dict[str, Any] = json.loads(data)
    except Exception as error:  # hub and object-store clients raise errors of any type
        raise ModelError(
            f"can't read the config.json of model.path {path}: {first_line(error)}"
        ) from None
    return config


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """The fast Hugging Face tokenizer of a model folder, hub name or object-store URL.

    ``revision``: of a hub model; None is ``main``. Raises `ModelError` if it can't be loaded or has
    no chat template.
    """
    # AutoTokenizer imports PyTorch to find the class, which takes five seconds per process. The
    # Qwen2 class adds nothing to tokenizer.json: the token ids are the same.
    from transformers import PreTrainedTokenizerFast

    logging.getLogger("transformers").setLevel(logging.ERROR)
    source = resolve_model(path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if "://" in source:
                source = _download_tokenizer(source, folder)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(source, revision=revision or "main")
    except Exception as error:  # the hub client and the tokenizer raise errors of any type
        raise ModelError(
            f"can't load the tokenizer.json of model.path {path}: {first_line(error)}"
        ) from None
    if tokenizer.chat_template is None:
        raise ModelError(
            f"the tokenizer of model.path {path} has no chat template; choose a chat model"
        )
    return tokenizer


def _download_tokenizer(url: str, folder: str) -> str:
    """Copy the tokenizer's files from an object store into ``folder``, and return ``folder``."""
    store = Storage(url)
    for name in (info.name for info in store.files()):
        if "/" not in name and (name == "config.json" or name.startswith(TOKENIZER_FILES)):
            store.copy_to(name, Path(folder) / name)
    return folder
