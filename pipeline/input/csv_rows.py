"""CSV files as Parquet shards: every column is text, unless the user gives its type."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.input.converted import write_tables
from pipeline.input.files import opened
from pipeline.input.json_kinds import NAMES, TOLD, TOLD_TYPES
from pipeline.local_disk import FileInfo
from pipeline.registry import did_you_mean
from pipeline.storage import Storage

ROWS_A_TABLE = 4096
# A field may be a whole document.
LONGEST_FIELD = 2**31 - 1
SEPARATORS = ",;\t"
TABS = re.compile(r"\.tsv(\.\w+)?$", re.IGNORECASE)
# Excel's own first line, which names the separator.
NAMED_SEPARATOR = re.compile(r'"?sep=(.)"?\s*$')
QUOTED = re.compile(r'"[^"]*"')


class CsvFiles:
    """Files with a header line; fields are separated by commas, or by what the header has.

    ``types``: of columns that are no text, by its name in `json_kinds.TOLD`. An empty field of
    those is null; one of a column of text is empty text.
    """

    def __init__(self, types: Mapping[str, str] | None = None) -> None:
        self._told = dict(types or {})

    def types(
        self, store: Storage, files: Iterable[FileInfo], fixed: pa.Schema | None
    ) -> pa.Schema:
        """The columns of ``files``, whose headers are read; see `converted.Format`."""
        names = dict.fromkeys(fixed.names) if fixed is not None else dict[str, None]()
        for info in files:
            with opened(store, info.name) as file:
                header, _, _ = _header(_text(file, info.name), info.name)
            more = [name for name in header if name not in names]
            if more and fixed is not None:
                raise InputError(
                    f"{info.name}:1: has a column {more[0]}, which the files that the run began "
                    "with lack; take it out, or choose another output.path"
                )
            names |= dict.fromkeys(header)
        for name in self._told:
            if name not in names:
                raise InputError(f"input.types: {did_you_mean(name, list(names), 'column')}")
        return pa.schema([(name, TOLD_TYPES[self._told.get(name, "string")]) for name in names])

    def write(self, store: Storage, name: str, schema: pa.Schema | None, shard: IO[bytes]) -> None:
        """Write the rows of the file ``name``; see `converted.Format`."""
        assert schema is not None
        write_tables(self._tables(store, name, schema), schema, shard)

    def _tables(self, store: Storage, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
        with opened(store, name) as file:
            text = _text(file, name)
            header, separator, begun = _header(text, name)
            places, rows = list[str](), list[list[str]]()
            for where, row in _records(text, name, separator, first=begun + 1):
                if len(row) != len(header):
                    raise InputError(
                        f"{where}: has {len(row)} fields, and the header has {len(header)}; put "
                        f"fields with a {_shown(separator)}, a quote or a line break in quotes"
                    )
                places.append(where)
                rows.append(row)
                if len(rows) == ROWS_A_TABLE:
                    yield _table(header, rows, places, schema)
                    places, rows = [], []
            if rows:
                yield _table(header, rows, places, schema)


def _text(file: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a file as text, with their ends."""
    for number, line in enumerate(file, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{name}:{number}: is not UTF-8; convert the file, for example with: iconv -f "
                "WINDOWS-1252 -t UTF-8"
            ) from None


def _header(text: Iterator[str], name: str) -> tuple[list[str], str, int]:
    """The columns that the first line of ``text`` names, what separates the fields, its number."""
    line, number = next(text, ""), 1
    told = NAMED_SEPARATOR.match(line)
    if told:
        line, number = next(text, ""), 2
    separator = told[1] if told else _separator(line, name)
    names = next((row for _, row in _records(iter([line]), name, separator)), [])
    if not names:
        raise InputError(f"{name} has no header line with the names of its columns; add one")
    for place, column in enumerate(names, 1):
        if not column.strip():
            raise InputError(
                f"{name}:{number}: column {place} has no name in the header; give it one"
            )
        if names.count(column) > 1:
            raise InputError(f"{name}:{number}: two columns are called {column}; rename one")
    return names, separator, number


def _separator(header: str, name: str) -> str:
    """What separates the fields: a tab in files named so, else what the header has most of."""
    if TABS.search(name):
        return "\t"
    bare = QUOTED.sub("", header)
    return max(SEPARATORS, key=bare.count)


def _records(
    text: Iterator[str], name: str, separator: str, first: int = 1
) -> Iterator[tuple[str, list[str]]]:
    """The rows that are not blank, each with its place; ``first``: the number of the first line."""
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(text, delimiter=separator, strict=True)
    line = first
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f'{name}:{line}: is not CSV: {error}; a quote within a quoted field is doubled ("")'
            ) from None
        if row is None:
            return
        if row:
            yield f"{name}:{line}", row
        line = reader.line_num + first


def _table(
    header: list[str], rows: list[list[str]], places: list[str], schema: pa.Schema
) -> pa.Table:
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return pa.table(
        [_column(columns[f.name], places, f) if f.name in columns
         else pa.nulls(len(rows), f.type) for f in schema],
        schema=schema,
    )  # fmt: skip


def _column(values: tuple[str, ...], places: list[str], field: pa.Field) -> Any:
    """``values`` with the type of ``field``; raises `InputError` for one that does not fit."""
    if field.type == pa.string():
        return pa.array(values, field.type)
    given = [value.strip() or None for value in values]
    try:
        return pa.array(given, pa.string()).cast(field.type)
    except pa.ArrowInvalid:
        for value, where in zip(given, places, strict=True):
            try:
                pa.scalar(value, pa.string()).cast(field.type)
            except pa.ArrowInvalid:
                kind = next(NAMES[TOLD[name]] for name, t in TOLD_TYPES.items() if t == field.type)
                raise InputError(
                    f"{where}: {field.name} is {value!r}, and input.types says {kind}; correct "
                    "the value, or leave the column text"
                ) from None
        raise


def _shown(separator: str) -> str:
    return {",": "comma", ";": "semicolon", "\t": "tab"}[separator]
