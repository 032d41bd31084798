"""The form of JSON answers: a schema, wherever it comes from, and what it allows."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
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
        try:
            value = json.loads(text, parse_constant=_refuse)
            self._validator.validate(value)
            if self.model is not None:
                self.model.model_validate_json(text)
            found = canonical(value)
            found.encode()
        except Exception:  # a model's own validators raise anything, and so do odd numbers and text
            return None
        return found

    @property
    def text(self) -> str:
        """The schema as compact JSON text."""
        return _compact(self.schema)

    @property
    def only_property(self) -> tuple[str, str] | None:
        """Name and schema, as text, of the one property that an object of this form must have.

        None for other forms, and where the property's schema does not stand by itself.
        """
        properties = self.schema.get("properties")
        if self.schema.get("type") != "object" or not isinstance(properties, Mapping):
            return None
        if len(properties) != 1 or list(self.schema.get("required", ())) != list(properties):
            return None
        [(name, schema)] = properties.items()
        is_whole = isinstance(schema, Mapping) and not any(_references(schema))
        return (name, _compact(schema)) if is_whole else None

    @property
    def only_texts(self) -> tuple[str, ...]:
        """The texts that the `only_property` can be; none if it can be anything else."""
        if self.only_property is None:
            return ()
        [schema] = self.schema["properties"].values()
        texts = schema.get("enum", ())
        if schema.keys() - {"enum", "type", "title", "description"}:
            return ()
        return tuple(dict.fromkeys(texts)) if all(isinstance(t, str) for t in texts) else ()

    @cached_property
    def _validator(self) -> Any:
        import jsonschema
        from referencing import Registry

        # An empty registry: nothing is fetched for a reference.
        return jsonschema.validators.validator_for(self.schema)(self.schema, registry=Registry())

    def check(self) -> None:
        """Raise `ValueError` if this is not a JSON Schema that stands by itself."""
        import jsonschema
        from referencing import Registry, Resource
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import DRAFT202012

        try:
            jsonschema.validators.validator_for(self.schema).check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"json_schema is not a JSON Schema: {error.message}") from None
        whole = Resource.from_contents(dict(self.schema), default_specification=DRAFT202012)
        resolver = Registry().resolver_with_root(whole)
        for reference in _references(self.schema):
            try:
                resolver.lookup(reference)
            except Unresolvable:
                raise ValueError(f"json_schema: $ref {reference} is not in the schema") from None


def _compact(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """One JSON text for all spellings of a value: keys in order, 2.0 as 2."""
    return json.dumps(_plain(value), ensure_ascii=False, sort_keys=True, allow_nan=False)


def without_nulls(value: Any) -> Any:
    """Drop null entries of objects: what Arrow adds to make a column's objects alike."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference
    values = schema.values() if isinstance(schema, Mapping) else schema
    for value in values if isinstance(schema, (Mapping, list)) else ():
        yield from _references(value)


def form_of(source: Mapping[str, Any] | str) -> JsonForm:
    """The form of JSON answers that ``source`` is or names; `ValueError` if there is none."""
    return _named(source) if isinstance(source, str) else _made(source)


@cache
def _named(source: str) -> JsonForm:
    module, colon, name = source.partition(":")
    if colon and not source.endswith((".json", ".yaml", ".yml")):
        try:
            model = getattr(import_module(module), name)
            if not (isinstance(model, type) and issubclass(model, BaseModel)):
                raise TypeError("it is not a pydantic model")
            return _made(model.model_json_schema(), model)
        except Exception as error:  # the user's module and model can raise anything
            raise ValueError(
                f"json_schema {source}: {error} (a pydantic model is named package.module:Class, "
                "and the package must be installed, or on PYTHONPATH, on every node)"
            ) from None
    try:
        text = Path(source).read_text(encoding="utf-8")
        found = json.loads(text) if source.endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"json_schema {source} can't be read: {error}") from None
    return _made(found)


def _made(schema: Any, model: type[BaseModel] | None = None) -> JsonForm:
    try:
        plain = json.loads(json.dumps(schema))
    except TypeError as error:  # YAML has dates
        raise ValueError(f"json_schema is not JSON: {error}; put quotes around it") from None
    if not isinstance(plain, dict):
        raise ValueError("json_schema must be a mapping")  # noqa: TRY004 (pydantic's)
    return JsonForm(plain, model)
