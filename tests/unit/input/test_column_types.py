"""Columns whose types differ get a type that keeps every value, or a refusal that names the file."""

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import InputError
from pipeline.input.column_types import fit, plain, unify
from pipeline.schema import cast

PROMPTS = pa.schema([("id", pa.int64()), ("prompt", pa.string())])


class Shards:
    """Shards in memory; ``looked``: whose values were looked at."""

    def __init__(self, **columns: pa.Array) -> None:
        self.columns, self.looked = columns, list[str]()

    def check(self, shard: str, column: str, type_: pa.DataType) -> str | None:
        assert column == "x"
        self.looked.append(shard)
        try:
            cast(self.columns[shard], type_)
        except pa.ArrowException as error:
            return str(error)
        return None

    def unify(self) -> tuple[pa.DataType, list[str]]:
        schemas = [(name, pa.schema([("x", array.type)])) for name, array in self.columns.items()]
        schema, notes = unify(schemas, self.check)
        return schema.field("x").type, notes


def no_look(*_: Any) -> str | None:
    raise AssertionError


def test_shards_with_wider_or_missing_columns_share_one_schema() -> None:
    wide = pa.schema([("id", pa.int32()), ("prompt", pa.string()), ("extra", pa.null())])
    schema, notes = unify([("a", PROMPTS), ("b", wide)], no_look)
    assert schema == pa.schema([*PROMPTS, ("extra", pa.null())])
    assert notes == []
    assert unify([("b", wide), ("a", PROMPTS)], no_look)[0].field("id").type == pa.int64()


def test_shard_whose_types_clash_is_named() -> None:
    odd = pa.schema([("id", pa.string()), ("prompt", pa.string())])
    with pytest.raises(
        InputError, match=r"columns of odd.parquet do not fit .* string in odd.parq"
    ):
        unify([("a.parquet", PROMPTS), ("odd.parquet", odd)], no_look)


@pytest.mark.parametrize(
    ("one", "other", "type_"),
    [
        # Whole numbers of any size stay so beside those that came through pandas with a gap.
        (pa.array([2**60 + 1]), pa.array([7.0, None]), pa.int64()),
        (pa.array([1]), pa.array([7.5, None]), pa.float64()),
        (pa.array([2**63], pa.uint64()), pa.array([5]), pa.uint64()),
        (pa.array([-1]), pa.array([5], pa.uint64()), pa.int64()),
        (pa.array(["a"]), pa.array([b"b"]), pa.string()),
        (pa.array([[1]]), pa.array([[1.5]]), pa.list_(pa.float64())),
        (pa.array([Decimal("1.25")]), pa.array([0.3]), pa.float64()),
        (pa.array([Decimal(2**60 + 1)]), pa.array([7]), pa.int64()),
        # The year 9999 in seconds, a microsecond in nanoseconds.
        (
            pa.array([253402300799], pa.timestamp("s")),
            pa.array([1000], pa.timestamp("ns")),
            pa.timestamp("us"),
        ),
    ],
)  # fmt: skip
def test_a_type_that_keeps_all_values_is_found_and_told(
    one: pa.Array, other: pa.Array, type_: pa.DataType
) -> None:
    for shards in (Shards(a=one, b=other), Shards(b=other, a=one)):
        found, [note] = shards.unify()
        assert found == type_
        assert f"{one.type} in a" in note
        assert f"read as {type_}" in note


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        (
            pa.array([2**60 + 1]),
            pa.array([1.5]),
            r"(?s)int64: b: .*double: a: Integer value 1152921",
        ),
        (pa.array(["a"]), pa.array([b"\xff"]), r"string: b: Invalid UTF8"),
        (
            pa.array([253402300799], pa.timestamp("s")),
            pa.array([1], pa.timestamp("ns")),
            r"(?s)ns\]: a: .*us\]: b: ",
        ),
        (pa.array([2**63], pa.uint64()), pa.array([-5]), r"(?s)int64: a: .*uint64: b: "),
        # Arrow rounds these without an error.
        (
            pa.array([Decimal("12345678901234567.25")]),
            pa.array([0.125]),
            r"(?s)double: a: .*more digits.*decimal128\(19, 2\): b: .*rounds a double",
        ),
        (
            pa.array([[Decimal("12345678901234567.25")]]),
            pa.array([[0.125]]),
            r"(?s)double>: a: .*more digits.*2\)>: b: .*rounds a double",
        ),
    ],
)
def test_values_that_no_type_keeps_are_refused_with_shard_and_column(
    one: pa.Array, other: pa.Array, reason: str
) -> None:
    with pytest.raises(InputError, match="no type keeps all values of the column x") as caught:
        Shards(a=one, b=other).unify()
    caught.match(reason)


def test_dictionaries_are_read_as_text_unless_all_shards_have_the_same() -> None:
    words = pa.array(["u", "v"]).dictionary_encode()
    ordered = pa.DictionaryArray.from_arrays(
        pa.array([0], pa.int8()), pa.array(["w"]), ordered=True
    )
    assert Shards(a=words, b=pa.array(["w"]), c=ordered).unify() == (pa.string(), [])
    assert Shards(a=words, c=ordered).unify() == (pa.string(), [])
    assert Shards(a=words, b=words).unify() == (words.type, [])


def test_views_are_read_as_text_and_lists_at_any_depth() -> None:
    view = pa.string_view()
    odd = pa.schema(
        [
            ("text", view), ("bytes", pa.binary_view()), ("list", pa.list_view(pa.int64())),
            ("deep", pa.struct([("a", pa.list_(pa.map_(pa.string(), view)))])),
            ("large", pa.large_list_view(view)), ("kinds", pa.dictionary(pa.int8(), view)),
        ]
    )  # fmt: skip
    assert plain(odd) == pa.schema(
        [
            ("text", pa.string()), ("bytes", pa.binary()), ("list", pa.list_(pa.int64())),
            ("deep", pa.struct([("a", pa.list_(pa.map_(pa.string(), pa.string())))])),
            ("large", pa.large_list(pa.string())), ("kinds", pa.dictionary(pa.int8(), pa.string())),
        ]
    )  # fmt: skip
    strict = pa.schema([pa.field("id", pa.int64(), False, {"k": "v"})], {"m": "n"})
    assert plain(strict).equals(pa.schema([("id", pa.int64())]), check_metadata=True)


@pytest.mark.parametrize(
    ("value", "refusal"),
    [
        (pa.array([3]), ""), (pa.array([3], pa.int16()), ""), (pa.array([3.0, None]), ""),
        (pa.array([3.5]), r"column x is double in new, and int64 in the output \(new: Float value"),
        (pa.array(["3"]), r"column x is string in new, .*do not go together"),
    ],
)  # fmt: skip
def test_later_shards_must_fit_the_columns_of_the_output(value: pa.Array, refusal: str) -> None:
    shards = Shards(new=value)
    schemas = [("new", pa.schema([("x", value.type), ("empty", pa.null())]))]
    fixed = pa.schema([("x", pa.int64()), ("other", pa.string())])
    if refusal:
        with pytest.raises(InputError, match=refusal):
            fit(schemas, fixed, shards.check)
    else:
        fit(schemas, fixed, shards.check)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ([("y", pa.string())], r"new has a column y, which the output does not have"),
        (
            [("x", pa.struct([("a", pa.int64()), ("b", pa.string())]))],
            r"new: it has a field b more",
        ),
        ([("x", pa.struct([("a", pa.int64()), ("b", pa.null())]))], ""),
    ],
)
def test_later_shards_with_more_columns_or_fields_are_refused(
    fields: list[Any], refusal: str
) -> None:
    fixed = pa.schema([("x", pa.struct([("a", pa.int64())]))])
    if refusal:
        with pytest.raises(InputError, match=refusal):
            fit([("new", pa.schema(fields))], fixed, lambda *_: None)
    else:
        fit([("new", pa.schema(fields))], fixed, lambda *_: None)


def test_a_shorter_float_is_refused_though_arrow_casts_it() -> None:
    schemas = [("new", pa.schema([("x", pa.float64())]))]
    with pytest.raises(InputError, match="has more digits"):
        fit(schemas, pa.schema([("x", pa.float32())]), lambda *_: None)


def test_a_float_is_not_rounded_to_the_places_of_a_decimal() -> None:
    schemas = [("new", pa.schema([("x", pa.float64())]))]
    with pytest.raises(InputError, match="rounds a double"):
        fit(schemas, pa.schema([("x", pa.decimal128(9, 2))]), lambda *_: None)


def test_columns_that_occur_twice_are_refused_by_shard() -> None:
    twice = pa.schema([("x", pa.int64()), ("x", pa.int64())])
    with pytest.raises(InputError, match=r"b has several columns called x"):
        unify([("a", PROMPTS), ("b", twice)], no_look)
