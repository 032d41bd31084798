"""Folder names such as ``lang=de`` as columns; no I/O.

The columns are categories of text, the type that Arrow itself gives them. So a folder of such files
can be read whether the column is in its name, in the files, or in both.

Whole numbers such as ``year=2026`` are whole numbers in conditions, and are not carried: whatever
type a column had in the files, pandas and Arrow would refuse it beside what they read in the name.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from urllib.parse import unquote

import pyarrow as pa

TEXT, WHOLE = pa.dictionary(pa.int32(), pa.string()), pa.int64()
_WHOLE = re.compile(r"-?[0-9]{1,18}")  # an int64 holds all of these
NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_values(name: str) -> dict[str, str | None]:
    """The value of each key in the folders of the file ``name``."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {
        unquote(key): None if value == NULL else unquote(value)
        for key, equals, value in pairs
        if equals and key
    }


def folder_types(names: Iterable[str]) -> dict[str, pa.DataType]:
    """The types of the keys that some of the files ``names`` have: `TEXT`, or `WHOLE`."""
    values = dict[str, set[str]]()
    for name in names:
        for key, value in folder_values(name).items():
            values.setdefault(key, set()).update([] if value is None else [value])
    return {
        key: WHOLE if all(map(_WHOLE.fullmatch, found)) else TEXT
        for key, found in values.items()
        if found
    }


def with_folder_columns(
    schema: pa.Schema, name: str, types: Mapping[str, pa.DataType]
) -> pa.Schema:
    """The ``schema`` of the file ``name`` with those of ``types`` that only its folders have."""
    values = folder_values(name)
    new = [(k, t) for k, t in types.items() if k in values and k not in schema.names]
    return pa.schema([*schema, *(pa.field(key, type_) for key, type_ in new)])


def folder_columns(name: str, wanted: Collection[str]) -> dict[str, str | None]:
    """The values of the columns ``wanted`` that the folders of the file ``name`` have."""
    return {key: value for key, value in folder_values(name).items() if key in wanted}
