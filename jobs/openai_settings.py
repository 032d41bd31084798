"""What the requests of a batch ask of the run: settings of all, and of each its own; no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.openai_lines import Request
from pipeline.errors import ConfigError, InputError
from pipeline.reasoning.row_settings import GREEDY, read_settings

# Samples of a request: the one setting of the policy that a run has one value of.
COUNT = "sampling.n"
MAX_ERRORS = 20  # printed at once


@dataclass
class Batch:
    """The requests of an input: the number and digest of each file's, and their settings.

    ``defaults``: the settings that requests decide, with the run's own values. A request that does
    not set one asks for that value. ``requested``: for each such setting the values that requests
    ask for (two at most), each with the first line that does; ``models``: the same of the models
    that they name. ``unusable``: lines with settings that a row can't have, each with the reason.
    """

    defaults: Mapping[str, Any]
    sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    requested: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)
    models: list[tuple[Any, str]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def add(self, request: Request, where: str) -> None:
        """Record the settings of ``request``, which is at ``where``."""
        for name, default in self.defaults.items():
            value, line = request.settings[name], where
            if value is None:
                value, line = default, f"{where} (which says none)"
            _note(self.requested.setdefault(name, []), value, line)
        if request.body.model is not None:
            _note(self.models, request.body.model, where)
        try:
            read_settings(request.own_settings(self._may_differ))
        except ValueError as error:
            self.unusable.append(f"  {where}: {error}")

    @property
    def by_row(self) -> list[str]:
        """The settings that each request has for itself.

        Those in which they differ, and what a row may have, but not a whole run.
        """
        return [
            name
            for name in self._may_differ
            if len(values := self.requested.get(name, [])) > 1
            or any(_is_greedy(name, value) for value, _ in values)
        ]

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What all requests ask for, by section and key.

        Raises `ConfigError` if they differ in what a run has one value of, `InputError` for lines
        whose own settings can't be used.
        """
        common = {"n": self.requested.get(COUNT, []), "model": self.models}
        differing = [
            f"  {name}: {_shown(one)} at {line}, {_shown(other)} at {other_line}"
            for name, values in common.items() if len(values) > 1
            for (one, line), (other, other_line) in [values]
        ]  # fmt: skip
        if differing:
            raise ConfigError(
                "the requests differ in settings that a run has one value of:\n"
                + "\n".join(differing)
                + "\nsplit the file and run each part to an output.path of its own, or set one "
                "number of samples for all: --set sampling.n=VALUE"
            )
        if self.by_row and self.unusable:
            raise InputError(wrong_lines(self.unusable[:MAX_ERRORS], len(self.unusable)))
        sections: dict[str, dict[str, Any]] = {"sampling": {}, "answer": {}}
        for name in self.requested.keys() - self.by_row:
            [(value, _)] = self.requested[name]
            section, _, key = name.partition(".")
            if value != self.defaults[name]:
                sections[section][key] = value
        if sections["answer"]:
            sections["answer"]["format"] = "json"
        return sections

    @property
    def _may_differ(self) -> list[str]:
        return [name for name in self.defaults if name != COUNT]


def _is_greedy(name: str, value: Any) -> bool:
    key = name.partition(".")[2]
    return key in GREEDY and value == GREEDY[key]


def _note(values: list[tuple[Any, str]], value: Any, line: str) -> None:
    """Keep a value that is not among ``values``, of which two are enough."""
    if len(values) < 2 and all(value != other for other, _ in values):
        values.append((value, line))


def wrong_lines(errors: Sequence[str], wrong: int) -> str:
    """The message for ``wrong`` lines, the first of which are ``errors``."""
    more = f"\n  and {wrong - len(errors):,} more" if wrong > len(errors) else ""
    return (
        f"{wrong:,} lines of the batch can't be run, so nothing was started:\n"
        + "\n".join(errors)
        + more
    )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
