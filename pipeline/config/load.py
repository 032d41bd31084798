"""The configuration of a run: frozen, checked when built, unknown keys refused.

    config = load_config("configs/demo.yaml", ["sampling.n=4"])

Its sections are in `pipeline.config.sections`. No I/O but reading the one YAML file.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from pipeline.config.run_config import RunConfig
from pipeline.config.yaml_text import override_value, parse_yaml
from pipeline.errors import ConfigError
from pipeline.registry import did_you_mean

Config = TypeVar("Config", bound="RunConfig")
# Nothing below it is shown: a key that is written wrong may be the URL itself.
NOT_SHOWN = "notify"
_KEY = re.compile(r"[\w.-]*")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The run that a YAML file describes, see `load_as`."""
    return load_as(RunConfig, path, overrides)


def load_as(kind: type[Config], path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides with dotted keys, see `override_value`.

    ``kind``: `RunConfig`, or a job's with sections of its own besides. Raises `ConfigError` with
    one line for each thing that is wrong.
    """
    return parse_overridden(kind, read_yaml(path), overrides, str(path))


def parse_overridden(
    kind: type[Config], data: dict[str, Any], overrides: Iterable[str], source: str
) -> Config:
    """As `load_as`, from ``data`` of the file ``source``; changes ``data``."""
    for override in overrides:
        apply_override(data, override, kind)
    return parse_as(kind, data, source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; raises `ConfigError` if it holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"can't read the config {path}: {error}") from None
    try:
        data = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping with input, output and model")
    return data


def parse_config(data: Mapping[str, Any], source: str = "config") -> RunConfig:
    """The run that ``data`` describes, see `parse_as`."""
    return parse_as(RunConfig, data, source)


def parse_as(kind: type[Config], data: Mapping[str, Any], source: str) -> Config:
    """Build a ``kind``, or raise `ConfigError` naming every wrong key and value."""
    lines = [
        f"  {name}: must be a number; yes, no, on and off are true or false in YAML (got {value})"
        for name, value in _booleans(data, kind)
    ]
    try:
        if not lines:
            return kind.model_validate(data)
    except ValidationError as error:
        lines = [f"  {_explain(dict(e), kind)}" for e in error.errors()]
    raise ConfigError("\n".join([f"{source} is not a valid run:", *lines]))


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """A short hash of a mapping of plain values, independent of key order."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


def apply_override(data: dict[str, Any], override: str, kind: type[RunConfig]) -> None:
    """Set in ``data`` what ``key=value`` says; ``kind``: what ``data`` is to be."""
    key, equals, value = override.partition("=")
    if not equals or not key:  # the text is not repeated: it may be a secret
        start = _KEY.match(override)[0]  # type: ignore[index]
        raise ConfigError(
            "--set takes key=value with a dotted key, but there is no "
            + (f"= after {start}" if start else "key")
        )
    *parents, leaf = names = key.strip().split(".")
    target = data
    for parent in parents:
        if target.get(parent) is None:
            target[parent] = {}
        target = target[parent]
        if not isinstance(target, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
    try:
        target[leaf] = override_value(value, is_text=_is_text(_annotation(kind, names)))
    except ValueError as error:
        raise ConfigError(f"--set {key}: {error}") from None


def _annotation(kind: type[BaseModel], names: Sequence[str]) -> Any:
    """The type of the setting ``names``; None if there is no such setting, or it has no type."""
    annotation: Any = kind
    for name in names:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(name)
            annotation = None if field is None else field.annotation
        elif get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        else:
            return None
        annotation = _without_none(annotation)
    return annotation


def _booleans(
    data: Mapping[str, Any], kind: type[BaseModel], above: Sequence[str] = ()
) -> Iterator[tuple[str, bool]]:
    """The settings of ``kind`` that are numbers, but true or false in ``data``.

    Pydantic takes these for 1 and 0.
    """
    for key, value in data.items():
        names = [*above, str(key)]
        if isinstance(value, Mapping):
            yield from _booleans(value, kind, names)
        elif isinstance(value, bool) and _annotation(kind, names) in (int, float):
            yield ".".join(names), value


def _without_none(annotation: Any) -> Any:
    """The one type beside None in ``annotation``, without its constraints; else as it is."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [each for each in get_args(annotation) if each is not NoneType]
        return _without_none(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _is_text(annotation: Any) -> bool:
    return annotation is str or get_origin(annotation) is Literal


def _explain(error: Mapping[str, Any], kind: type[RunConfig]) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["loc"][:1] == (NOT_SHOWN,):
        return _explain_unseen(error, _accepted(kind, (NOT_SHOWN,)))
    if error["type"] == "extra_forbidden":
        *section, name = error["loc"]
        return f"{path}: {did_you_mean(str(name), _accepted(kind, tuple(section)), 'key')}"
    if error["type"] == "missing":
        return f"{path}: is required"
    if error["type"] == "credentials":  # are not repeated
        return f"{path}: {error['msg']}"
    if error["type"] == "string_type":
        return f"{path}: must be text (in YAML, put quotes around it), got {error['input']!r}"
    message: str = error["msg"].removeprefix("Value error, ").removeprefix(f"{path}: ")
    if isinstance(error["input"], Mapping):  # all of a section would be no help
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {error['input']!r})"


def _explain_unseen(error: Mapping[str, Any], accepted: Sequence[str]) -> str:
    """As `_explain`, without any value or key that the user has written."""
    _, *below = error["loc"]
    if below and below[0] in accepted:
        return f"{NOT_SHOWN}.{below[0]}: {error['msg']}"
    names = ", ".join(accepted)
    if not below:
        return f"{NOT_SHOWN}: must be a mapping with {names}"
    return f"{NOT_SHOWN}: has an unknown key, not shown as it may be secret (accepted: {names})"


def _accepted(kind: type[RunConfig], section: tuple[str | int, ...]) -> list[str]:
    model: Any = kind
    for name in section:
        annotation = model.model_fields[name].annotation
        model = next(iter(get_args(annotation)), annotation)  # a section, or one or None
    return list(model.model_fields)
