"""The small YAML files of an output's bookkeeping."""

from collections.abc import Mapping
from typing import Any

import yaml

from pipeline.errors import OutputError
from pipeline.storage import Storage

# PyYAML's C parser and emitter, where installed, are ten times as fast.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def read_yaml(store: Storage, name: str) -> dict[str, Any] | None:
    """The mapping in the file ``name``, None if there is none; `OutputError` if it is damaged."""
    try:
        data = yaml.load(store.read(name), Loader=_Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise OutputError(f"{store.path(name)} is damaged: it is not YAML") from None
    if not isinstance(data, dict):
        raise OutputError(f"{store.path(name)} is damaged: it is not a mapping")
    return data


def to_yaml(data: Mapping[str, Any], flow: bool | None = False) -> bytes:
    """``data`` as YAML; ``flow``: as PyYAML's ``default_flow_style``."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=flow, allow_unicode=True
    )
    return text.encode()
