"""A condition is one expression, means the same at any time, and what is wrong with it is shown."""

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.input.conditions import Condition, columns_of

ROWS = pa.table(
    {
        "state": ["finished", "failed", None],
        "correct": [True, None, False],
        "n": [1, 2, 3],
        "tags": [["a", "b"], [], None],
        "meta": [{"level": 1}, None, {"level": 2}],
    }
)


def holds(text: str) -> list[bool]:
    columns = columns_of(text, ROWS.column_names)
    result: list[bool] = Condition(text, ROWS.select(columns).schema).holds(ROWS).tolist()
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("state = 'finished' AND correct IS NOT TRUE OR n = 3", [False, False, True]),
        ("correct", [True, False, False]),  # null is not true
        ("NOT correct", [False, False, True]),
        ("STATE LIKE 'f%' -- of any case", [True, True, False]),
        ("meta.level > 1", [False, False, True]),
        ("list_contains(tags, 'b')", [True, False, False]),
        ("len(list_filter(tags, lambda tag: tag > 'a')) > 0", [True, False, False]),
        ("n IN (1,\n  3)", [True, False, True]),
    ],
)
def test_a_condition_holds_where_it_is_true(text: str, expected: list[bool]) -> None:
    assert holds(text) == expected


def test_only_the_columns_that_a_condition_names_are_read() -> None:
    assert columns_of("Meta.level = n AND list_filter(tags, lambda n: n > 'a') = tags", [*ROWS.column_names]) == [
        "meta", "n", "tags",
    ]  # fmt: skip
    assert columns_of("N > 1", ["n", "N"]) == ["N"]


@pytest.mark.parametrize("text", ["N > n", "n = 1 OR N = 1", "NN > 1"])
def test_columns_that_sql_takes_for_one_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="are one column to SQL, for which case does not matter"):
        columns_of(text, ["n", "N", "nn", "Nn"])


def test_nan_is_no_value() -> None:
    scores = [0.1, 0.9, float("nan"), None]
    meta = [{"score": score, "n": 1} for score in scores[:3]]
    rows = pa.table({"score": scores, "meta": [*meta, None]})
    for text, expected in (
        ("score > 0.5", [False, True, False, False]),
        ("score IS NULL", [False, False, True, True]),
        ("meta.score > 0.5", [False, True, False, False]),
        ("meta.n = 1", [True, True, True, False]),
        ("meta IS NULL", [False, False, False, True]),
    ):
        condition = Condition(text, rows.select(columns_of(text, rows.column_names)).schema)
        for part, kept in ((rows, expected), (rows.slice(1), expected[1:])):
            assert condition.holds(part).tolist() == kept, text


@pytest.mark.parametrize("type_", [pa.float16(), pa.decimal256(50, 2)])
def test_type_without_conditions_is_named(type_: pa.DataType) -> None:
    with pytest.raises(
        InputError,
        match=f"names x, of type {type_}, .*convert the column".replace("(", ".").replace(")", "."),
    ):
        Condition("x > 1", pa.schema([("x", type_)]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state = 'finished' AND\n  stat = 1", "unknown column stat; did you mean state.*\n    stat = 1\n    \\^"),
        ("état = 1", "unknown column état"),
        ("n =", 'syntax error at or near "\\)"\n  n =\n     \\^'),
        ("n = 1; DROP TABLE x", "syntax error"),
        ("n = 1 ORDER BY n", "syntax error"),
        ("n = 1) FROM x WHERE (n = 2", "must be one SQL expression"),
        ("n = 1) UNION SELECT (n = 2", "must be one SQL expression"),
        ("", "names no column"),
        ("TRUE", "names no column"),
        ("n", "must be true or false, and is of type int64"),
        ("state > 3", "Cannot compare values of type VARCHAR"),
        ("n = 'x'", "Could not convert string 'x' to INT64"),
        ("nosuch(n)", "nosuch does not exist"),
        ("count(n) > 1", "cannot contain aggregates"),
        ("n > 1 AND row_number() OVER () = 1", "cannot contain window functions"),
        ("random() < n", "random has another result at another time\n  random\\(\\) < n\n  \\^"),
        ("now() > n", "now has another result"),
        ("n > current_date", "unknown column current_date"),
        ("n IN (SELECT 1)", "decided by the row alone"),
        ("n IN (SELECT a FROM read_csv('/etc/passwd'))", "decided by the row alone"),
        ("COLUMNS(*) IS NOT NULL", "name each column"),
        ("n = $1", "parameters have no values"),
        ("CAST(state AS INTEGER) = 1", "Could not convert string 'finished' to INT32"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        holds(text)


def test_a_time_is_the_same_on_machines_of_all_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    noon = pa.array([43_200], pa.timestamp("s", "UTC"))
    condition = Condition(
        "hour(began) = 12 AND began < '1970-01-01 12:00:01'", pa.schema([("began", noon.type)])
    )
    assert condition.holds(pa.table({"began": noon})).tolist() == [True]
