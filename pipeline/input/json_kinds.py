"""The types of JSON values, learned from all of them; no I/O.

JSON tells the type of each value, so nothing is guessed. Values of a column go together if one
Arrow type holds them: whole numbers beside fractions, objects with different keys, anything beside
null. A value that does not go with those before it is a `MisfitError`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

LARGEST_INT, LARGEST_EXACT = 2**63 - 1, 2**53
MOST_KEYS = 500
NAMES = {
    bool: "true or false", int: "a whole number", float: "a fraction", str: "text", list: "a list",
    dict: "an object",
}  # fmt: skip
_SCALARS = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
# The types that `input.types` can give a column.
TOLD = {"string": str, "int64": int, "float64": float, "bool": bool}
TOLD_TYPES = {name: _SCALARS[kind] for name, kind in TOLD.items()}


class MisfitError(ValueError):
    """A value that does not go with those before it; ``path``: where in the row it is."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path = list[str]()


@dataclass
class Kind:
    """What the values of a column, or of a place in it, have been so far.

    ``of``: their Python type, None for nothing but null. ``keys``: of objects; ``items``: of lists.
    ``is_told``: the user has given the type, and text is made of what is none.
    """

    of: type | None = None
    keys: "dict[str, Kind]" = field(default_factory=dict)
    items: "Kind | None" = None
    is_told: bool = False

    @classmethod
    def told(cls, name: str) -> "Kind":
        """Of a column for which `input.types` gives a type of `TOLD`."""
        return cls(TOLD[name], is_told=True)

    @classmethod
    def holding(cls, type_: Any) -> "Kind":
        """Of values that are in a column of the Arrow type ``type_``, as `type` made it."""
        if pa.types.is_struct(type_):
            return cls(dict, {each.name: cls.holding(each.type) for each in type_.fields})
        if pa.types.is_list(type_):
            return cls(list, items=cls.holding(type_.value_type))
        return cls(next((kind for kind, scalar in _SCALARS.items() if scalar == type_), None))

    def value(self, value: Any) -> Any:
        """``value`` as the column holds it: as JSON text, if it is told to be text and is none."""
        if not self.is_told or self.of is not str or value is None or isinstance(value, str):
            return value
        return json.dumps(value, ensure_ascii=False)

    def add(self, value: Any, is_fixed: bool) -> None:
        """Take ``value`` in; raises `MisfitError`, with ``is_fixed`` also if the type would change.

        ``value``: as `json.loads` returns it.
        """
        if value is None:
            return
        kind = type(value)
        if kind is not self.of:
            self._become(kind, is_fixed or self.is_told)
        if kind is int and abs(value) > (LARGEST_INT if self.of is int else LARGEST_EXACT):
            raise MisfitError(
                f"{value} is too large for {'int64' if self.of is int else 'float64'}"
            )
        if kind is list:
            self._add_items(value, is_fixed)
        elif kind is dict:
            self._add_keys(value, is_fixed)

    def _become(self, kind: type, is_fixed: bool) -> None:
        numbers = {self.of, kind} == {int, float}
        if numbers and self.of is float:
            return
        if is_fixed or not (numbers or self.of is None):
            if self.is_told and self.of is not None:
                raise MisfitError(f"is {NAMES[kind]}, and input.types says {NAMES[self.of]}")
            before = "null in all files so far" if self.of is None else f"{NAMES[self.of]} before"
            raise MisfitError(f"is {NAMES[kind]}, and {before}")
        self.of = kind

    def _add_items(self, values: list[Any], is_fixed: bool) -> None:
        self.items = self.items or Kind()
        try:
            for value in values:
                self.items.add(value, is_fixed)
        except MisfitError as error:
            error.path.insert(0, "[]")
            raise

    def _add_keys(self, values: Mapping[str, Any], is_fixed: bool) -> None:
        for key, value in values.items():
            kind = self.keys.get(key)
            if kind is None:
                if is_fixed:
                    raise MisfitError(f"has a key {key}, which no object had so far")
                if len(self.keys) == MOST_KEYS:
                    raise MisfitError(f"has more than {MOST_KEYS} keys over all rows")
                kind = self.keys[key] = Kind()
            try:
                kind.add(value, is_fixed)
            except MisfitError as error:
                error.path.insert(0, f".{key}")
                raise

    @property
    def type(self) -> pa.DataType:
        """The Arrow type; raises `MisfitError` for objects that never have a key."""
        if self.of is None:
            return pa.null()
        if self.of is list:
            return pa.list_((self.items or Kind()).type)
        if self.of is dict:
            if not self.keys:
                raise MisfitError("is an object without a key, wherever it is one")
            return pa.struct([(key, kind.type) for key, kind in self.keys.items()])
        return _SCALARS[self.of]
