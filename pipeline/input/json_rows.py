"""JSON lines, and JSON files that hold one list, as Parquet shards."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from pipeline.errors import InputError, first_line
from pipeline.input.converted import write_tables
from pipeline.input.files import lines, opened
from pipeline.input.json_kinds import Kind, MisfitError
from pipeline.local_disk import FileInfo
from pipeline.storage import Storage
from pipeline.strict_json import DECODER

Row = dict[str, Any]
ROWS_A_TABLE = 2048
READ_CHARACTERS = 2**20
LONGEST_ITEM = 2**26  # characters; a mistake would else have the rest of a file in memory


class JsonFiles:
    """Files of objects, each of which becomes a row.

    ``types``: of columns to which the user gives one, by its name in `json_kinds.TOLD`.
    ``objects``: columns that become JSON text, if the files have them: in an Arrow column, all
    objects have the same keys in the same order, and null for those that they lack.
    """

    def __init__(self, types: Mapping[str, str] | None = None, objects: Sequence[str] = ()) -> None:
        self._asked = dict(types or {})
        self._told = {**dict.fromkeys(objects, "string"), **self._asked}

    def types(
        self, store: Storage, files: Iterable[FileInfo], fixed: pa.Schema | None
    ) -> pa.Schema:
        """The columns of ``files``, all lines of which are read; see `converted.Format`."""
        kinds = {} if fixed is None else {f.name: Kind.holding(f.type) for f in fixed}
        kinds |= {n: Kind.told(name) for n, name in self._told.items() if n in kinds or not fixed}
        seen = set[str]()
        for info in files:
            for where, row in rows_with_places(store, info.name):
                seen.update(row)
                _learn(kinds, row, where, fixed is not None)
        there = seen.union(() if fixed is None else fixed.names)
        if not there:
            raise InputError(f"the JSON files at {store.url} have no rows")
        if missing := [name for name in self._asked if name not in seen and fixed is None]:
            raise InputError(
                f"input.types names {', '.join(missing)}, but the files have only the keys "
                f"{', '.join(sorted(seen))}"
            )
        return pa.schema([(n, _type(n, kind)) for n, kind in kinds.items() if n in there])

    def write(self, store: Storage, name: str, schema: pa.Schema | None, shard: IO[bytes]) -> None:
        """Write the rows of the file ``name``; see `converted.Format`."""
        assert schema is not None
        write_tables(self._tables(store, name, schema), schema, shard)

    def _tables(self, store: Storage, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
        kinds = {name: Kind.told(told) for name, told in self._told.items()}
        places, rows = list[str](), list[Row]()
        for where, row in rows_with_places(store, name):
            places.append(where)
            rows.append({**row, **{n: kind.value(row.get(n)) for n, kind in kinds.items()}})
            if len(rows) == ROWS_A_TABLE:
                yield _table(rows, places, schema)
                places, rows = [], []
        if rows:
            yield _table(rows, places, schema)


def _learn(kinds: dict[str, Kind], row: Row, where: str, is_fixed: bool) -> None:
    """Take the values of ``row`` into ``kinds``; raises `InputError`."""
    for name, value in row.items():
        kind = kinds.get(name)
        if kind is None:
            if is_fixed and value is not None:
                raise InputError(
                    f"{where}: has a key {name}, which the files that the run began with lack; "
                    "take it out, or choose another output.path"
                )
            kind = kinds[name] = Kind()
        try:
            kind.add(kind.value(value), is_fixed)
        except MisfitError as error:
            raise _misfit(f"{where}: ", name, error) from None


def _misfit(where: str, column: str, error: MisfitError) -> InputError:
    return InputError(
        f"{where}{column}{''.join(error.path)} {error}; correct the value, or have the whole "
        f"column as text (what is no text, as JSON) with input.types: {{{column}: string}}"
    )


def _type(name: str, kind: Kind) -> pa.DataType:
    try:
        return kind.type
    except MisfitError as error:
        raise _misfit("", name, error) from None


def _table(rows: list[Row], places: list[str], schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, ValueError, TypeError):
            raise _unfit(values, places, field) from None
    return pa.table(columns, schema=schema)


def _unfit(values: list[Any], places: list[str], field: pa.Field) -> InputError:
    """The error for the first of ``values`` that can't be had as ``field``."""
    for value, where in zip(values, places, strict=True):
        try:
            pa.array([value], field.type)
        except UnicodeEncodeError:
            return InputError(
                f"{where}: {field.name} has half of a surrogate pair (\\ud800 to \\udfff), which "
                "is no text; correct the value"
            )
        except (pa.ArrowException, ValueError, TypeError) as error:
            return InputError(f"{where}: {field.name}: {first_line(error)}; correct the value")
    return InputError(f"{places[0]}: {field.name} does not fit {field.type}")


def rows_with_places(store: Storage, name: str) -> Iterator[tuple[str, Row]]:
    """The objects of a file, each with its place (``file:line``); raises `InputError`."""
    with opened(store, name) as file:
        start = file.peek(READ_CHARACTERS).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]  # type: ignore[attr-defined]
    if start == b"[" and ".json" in name.lower() and ".jsonl" not in name.lower():
        found = _list_items(store, name)
    else:
        found = ((number, _parsed(line, f"{name}:{number}")) for number, line in lines(store, name))
    for number, value in found:
        if not isinstance(value, dict):
            raise InputError(
                f'{name}:{number}: must be an object such as {{"prompt": "…"}}, which becomes '
                f"a row, not {type(value).__name__}"
            )
        yield f"{name}:{number}", value


def _parsed(line: bytes, where: str) -> Any:
    try:
        return DECODER.decode(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InputError(
            f"{where}: is not UTF-8; convert the file, for example with iconv"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {first_line(error)}{_HINT}") from None


_HINT = "; each line must be one JSON object. Correct the line or take it out"


def _list_items(store: Storage, name: str) -> Iterator[tuple[int, Any]]:
    """The items of the one list in a file, each with the number of the line where it begins."""
    with opened(store, name) as file:
        text = _Window(io.TextIOWrapper(file, "utf-8-sig", newline=""))
        try:
            yield from text.items()
        except UnicodeDecodeError:
            raise InputError(f"{name}: is not UTF-8; convert it, for example with iconv") from None
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error)
            raise InputError(f"{name}:{text.line}: is not JSON: {what}") from None


class _Window:
    """The text of a list of objects; the piece from the current object on is in memory.

    ``line``: where the current object begins, counted from 1.
    """

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file, self._text, self._position = file, "", 0
        self.line, self._counted = 1, 0

    def items(self) -> Iterator[tuple[int, Any]]:
        """The objects, with their lines; raises `ValueError` where the text is no list."""
        assert self._next() == "["
        self._position += 1
        while self._next() != "]":
            self._count_lines()
            yield self.line, self._item()
            if self._next() == ",":
                self._position += 1
            elif self._next() != "]":
                raise ValueError("no comma or ] follows the object that begins there")
        self._position += 1
        if self._next():
            self._count_lines()
            raise ValueError("something follows the end of the list; write one list, or JSON lines")

    def _next(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()
            if self._position < len(self._text) or not self._read():
                return self._text[self._position : self._position + 1]

    def _item(self) -> Any:
        """Read the next value; one that may be cut off is tried again with twice the text."""
        while True:
            try:
                value, self._position = DECODER.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError:
                if len(self._text) - self._position > LONGEST_ITEM or not self._read():
                    raise

    def _read(self) -> bool:
        """Forget what was read, and read on; returns False at the end of the file."""
        self._count_lines()
        rest = self._text[self._position :]
        piece = self._file.read(max(READ_CHARACTERS, len(rest)))
        self._text, self._position, self._counted = rest + piece, 0, 0
        return bool(piece)

    def _count_lines(self) -> None:
        self.line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position


_SPACE = json.decoder.WHITESPACE  # type: ignore[attr-defined]
