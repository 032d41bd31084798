"""Folder names such as ``lang=de`` as columns; no I/O.

The columns are categories of text, the type that Arrow itself gives them. So a folder of such files
can be read whether the column is in its name, in the files, or in both.
"""

from collections.abc import Collection, Iterable
from urllib.parse import unquote

import pyarrow as pa

TYPE = pa.dictionary(pa.int32(), pa.string())
NULL = "__HIVE_DEFAULT_PARTITION__"


def folder_values(name: str) -> dict[str, str | None]:
    """The value of each key in the folders of the file ``name``."""
    pairs = (folder.partition("=") for folder in name.split("/")[:-1])
    return {
        unquote(key): None if value == NULL else unquote(value)
        for key, equals, value in pairs
        if equals and key
    }


def text_keys(names: Iterable[str]) -> list[str]:
    """The keys that some of the files ``names`` have, except those with only whole numbers.

    Readers of a folder take those for numbers, which no column of text in the files may then be.
    """
    values = dict[str, set[str | None]]()
    for name in names:
        for key, value in folder_values(name).items():
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if not all(map(_is_whole, found - {None}))]


def _is_whole(value: str | None) -> bool:
    return value is not None and value.lstrip("-").isdecimal()


def with_folder_columns(schema: pa.Schema, name: str, keys: Iterable[str]) -> pa.Schema:
    """The ``schema`` of the file ``name`` with those of ``keys`` that only its folders have."""
    values = folder_values(name)
    fields = [pa.field(k, TYPE) for k in keys if k in values and k not in schema.names]
    return pa.schema([*schema, *fields])


def folder_columns(name: str, wanted: Collection[str]) -> dict[str, str | None]:
    """The values of the columns ``wanted`` that the folders of the file ``name`` have."""
    return {key: value for key, value in folder_values(name).items() if key in wanted}
