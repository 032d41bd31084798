"""Conditions on rows, as ``input.where`` has them: one SQL expression, evaluated by DuckDB; no I/O.

A condition must have the same result whenever it is evaluated, and for each row by itself. So it
has no subqueries, no aggregates, and no functions such as ``random`` and ``now``.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import InputError
from pipeline.registry import did_you_mean

# No access to files, no threads beside ours, and one time zone on all machines.
SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "threads": "1",
}
BEFORE, AFTER = "SELECT (\n", "\n)"
ONE_COLUMN = "are one column to SQL, for which case does not matter; rename one in the files"
REFUSED = {
    "PARAMETER": "parameters have no values here",
    "STAR": "name each column, without stars",
    "SUBQUERY": "it must be decided by the row alone, without subqueries",
}


def check_expression(condition: str) -> None:
    """Raise `InputError`, with the place, if ``condition`` is not one expression of SQL."""
    _parsed(condition)


def columns_of(condition: str, columns: Iterable[str]) -> list[str]:
    """Those of ``columns`` that ``condition`` names; in SQL, their case does not matter.

    Raises `InputError`, with the place, if it is not one expression, names other columns or none,
    or if its result could differ from one time to the next.
    """
    nodes = list(_nodes(_parsed(condition)))
    volatile = {name for (name,) in _connection().execute(_VOLATILE).fetchall()}
    for node in nodes:
        if reason := REFUSED.get(node.get("class", "")):
            raise _refused(condition, node, reason)
        if (function := node.get("function_name")) in volatile:
            raise _refused(condition, node, f"{function} has another result at another time")
    lambdas = [node["lhs"] for node in nodes if node.get("class") == "LAMBDA"]
    parameters = {node["column_names"][0] for node in _nodes(lambdas) if _is_column(node)}
    columns = list(columns)
    named = dict[str, None]()
    for node in filter(_is_column, nodes):
        name = node["column_names"][0]
        alike = [column for column in columns if column.lower() == name.lower()]
        exact = [column for column in alike if column == name] or alike
        if len(exact) > 1 or set(alike).intersection(named).difference(exact):
            raise _refused(condition, node, f"{' and '.join(alike)} {ONE_COLUMN}")
        if exact:
            named[exact[0]] = None
        elif name not in parameters:
            raise _refused(condition, node, did_you_mean(name, columns, "column"))
    if not named:
        raise InputError(f"input.where names no column, so it says nothing of rows: {condition}")
    return list(named)


_VOLATILE = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT'"


class Condition:
    """A condition on rows with the columns of ``schema``, which it names.

    Raises `InputError` if the types of the columns do not allow it, or if it is not boolean.
    """

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self._text, self._schema, self._connection = text, schema, _connection()
        empty = schema.empty_table()
        for name in schema.names:
            self._refuse_unknown_type(empty.select([name]))
        # DuckDB refuses aggregates and window functions there.
        self._query(f"FROM input WHERE (\n{text}\n)", empty)
        [type_] = self._query(f"{BEFORE}{text}{AFTER} FROM input", empty).schema.types
        if not pa.types.is_boolean(type_):
            raise InputError(f"input.where must be true or false, and is of type {type_}: {text}")

    def holds(self, rows: pa.Table) -> Any:
        """Where it is true (not false or null): bool array of shape (rows,).

        Raises `InputError` if a value makes the evaluation fail.
        """
        result = self._query(
            f"{BEFORE}{self._text}{AFTER} FROM input", rows.select(self._schema.names)
        )
        return np.asarray(pc.fill_null(result.column(0), False))

    def _refuse_unknown_type(self, column: pa.Table) -> None:
        try:
            self._query("FROM input", column)
        except InputError:
            [field] = column.schema
            raise InputError(
                f"input.where names {field.name}, of type {field.type}, on which no condition is "
                "possible (DuckDB does not know the type); convert the column in the files"
            ) from None

    def _query(self, sql: str, rows: pa.Table) -> pa.Table:
        import duckdb

        connection = self._connection.cursor()  # threads must not share one
        connection.execute("SET TimeZone = 'UTC'")
        try:
            connection.register("input", _without_nan(rows))
            return connection.sql(sql).to_arrow_table()
        except duckdb.Error as error:
            message = _plain(str(error))
            place = "" if "\nLINE " in message else f"\n  {self._text}"
            raise InputError(f"input.where: {message}{place}") from None


def _without_nan(table: pa.Table) -> pa.Table:
    """``table`` with null in place of NaN, which DuckDB takes for larger than any number."""
    columns = [pa.chunked_array(map(_nan_as_null, c.chunks), c.type) for c in table.columns]
    return pa.table(columns, table.schema)


def _nan_as_null(array: Any) -> Any:
    """An array, fields of structs included, but not values in lists."""
    if pa.types.is_struct(array.type):
        fields = [_nan_as_null(field) for field in array.flatten()]
        return pa.StructArray.from_arrays(fields, fields=array.type.fields, mask=array.is_null())
    if pa.types.is_floating(array.type) and array.type != pa.float16():
        return pc.if_else(pc.is_nan(array), pa.scalar(None, array.type), array)
    return array


def _connection() -> Any:
    import duckdb

    return duckdb.connect(config=dict(SETTINGS))


def _parsed(condition: str) -> Any:
    """The syntax tree of the expression; raises `InputError` if it is not one."""
    tree, one = _tree(f"{BEFORE}{condition}{AFTER}"), _tree(f"{BEFORE}1{AFTER}")
    if tree["error"]:
        at = int(tree.get("position", len(BEFORE))) - len(BEFORE)
        raise InputError(f"input.where: {tree['error_message']}\n{_place(condition, at)}")
    expression, rest = _divided(tree)
    if len(expression) != 1 or rest != _divided(one)[1]:
        raise InputError(f"input.where must be one SQL expression, as after WHERE: {condition}")
    return expression[0]


def _tree(sql: str) -> Any:
    [(text,)] = _connection().execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    return json.loads(text)


def _divided(tree: Any) -> tuple[list[Any], list[Any]]:
    """What a tree selects, and all else of its statements."""
    nodes = [statement["node"] for statement in tree["statements"]]
    selected = [each for node in nodes for each in node.get("select_list", [])]
    return selected, [{**node, "select_list": None} for node in nodes]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """All objects in a syntax tree."""
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(child, (dict, list)):
            yield from _nodes(child)


def _is_column(node: dict[str, Any]) -> bool:
    return node.get("class") == "COLUMN_REF"


def _refused(condition: str, node: dict[str, Any], reason: str) -> InputError:
    at = int(node.get("query_location", len(BEFORE))) - len(BEFORE)
    return InputError(f"input.where: {reason}\n{_place(condition, at)}")


def _place(condition: str, at: int) -> str:
    """The line of ``condition`` with its byte ``at``, and a mark below that."""
    before = condition.encode()[: max(at, 0)].decode(errors="ignore")
    line = condition.split("\n")[before.count("\n")]
    return f"  {line}\n  {' ' * len(before.rpartition(chr(10))[2])}^"


def _plain(message: str) -> str:
    """An error of DuckDB without its kind, and without the query around the expression."""
    lines = [line for line in message.split("\n") if line.strip()]
    lines[0] = lines[0].partition("Error: ")[2] or lines[0]
    return "\n".join(lines)
