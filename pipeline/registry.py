"""Named parts that a configuration chooses: built-in ones by name, others by import path; no I/O.

    ENGINES = Registry[EngineType]("engine.kind", {"vllm": "pipeline.engines.vllm:VLLM"})
    ENGINES["vllm"]                      # imported at its first use
    ENGINES["my_package.my_module:MINE"] # anybody's, without a registration

Entries are import paths, so that a process (such as a Ray worker) needs nothing but the name.
"""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind by name. ``setting``: the configuration key that holds the name."""

    def __init__(self, setting: str, entries: Mapping[str, str]) -> None:
        self.setting = setting
        self._entries = dict(entries)

    @property
    def names(self) -> tuple[str, ...]:
        """The built-in names."""
        return tuple(self._entries)

    def __getitem__(self, name: str) -> T:
        """The object called ``name``; raises `ValueError` if there is none or its import fails."""
        path = self._entries.get(name, name)
        if ":" not in path:
            raise ValueError(
                f"{self.setting}: {did_you_mean(name, self._entries)}; or name one of your own as "
                "package.module:OBJECT"
            )
        found: T = load_object(path)
        return found


@cache
def load_object(path: str) -> Any:
    """The object that ``package.module:NAME`` names; raises `ValueError` if it can't be loaded."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # a user's module can raise anything
        raise ValueError(
            f"{path} can't be loaded: {error} (the package must be installed, or on PYTHONPATH, "
            "on every node)"
        ) from None


def did_you_mean(name: str, accepted: Iterable[str], what: str = "name") -> str:
    """What to say of a ``name`` that is not among ``accepted``: a close one, and all of them."""
    accepted = list(accepted)
    close = difflib.get_close_matches(name, accepted, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown {what} {name}{hint} (accepted: {', '.join(accepted)})"
