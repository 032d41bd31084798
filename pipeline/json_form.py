"""The form of JSON answers: a schema, wherever it comes from, and what it allows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel


@dataclass(frozen=True)
class JsonForm:
    """The form of JSON answers: a JSON Schema and, where it was made from one, a pydantic model."""

    schema: Mapping[str, Any]
    model: type[BaseModel] | None = None

    def parse(self, text: str) -> str | None:
        """The JSON value that ``text`` is, as `canonical` writes it; None if it is not valid."""
        import jsonschema

        try:
            value = json.loads(text, parse_constant=_refuse)
            jsonschema.validate(value, self.schema)
            if self.model is not None:
                self.model.model_validate_json(text)
        except (ValueError, RecursionError, jsonschema.ValidationError):
            return None
        return canonical(value)


def canonical(value: Any) -> str:
    """One JSON text for all spellings of a value: keys in order, 2.0 as 2."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def load_form(source: Mapping[str, Any] | str) -> JsonForm:
    """The form of JSON answers that ``source`` is or names; `ValueError` if there is none."""
    if isinstance(source, Mapping):
        return JsonForm(source)
    module, colon, name = source.partition(":")
    if colon and not module.endswith((".json", ".yaml")):
        try:
            model = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"json_schema {source}: {error}") from None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise ValueError(f"json_schema {source} is not a pydantic model")
        return JsonForm(model.model_json_schema(), model)
    try:
        found = yaml.safe_load(Path(source).read_text(encoding="utf-8"))  # JSON is YAML
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"json_schema {source} can't be read: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"json_schema {source} must hold a mapping")  # noqa: TRY004 (pydantic's)
    return JsonForm(found)


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raise `ValueError` if ``schema`` is not a JSON Schema."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"json_schema is not a JSON Schema: {error.message}") from None
