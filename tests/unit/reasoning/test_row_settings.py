"""Settings of a row: what is read, what is refused and in which words, and the seed."""

from typing import Any

import pytest

from pipeline.reasoning.row_settings import (
    FIELDS,
    NO_SETTINGS,
    RowSettings,
    derive_own_seed,
    read_settings,
)
from pipeline.reasoning.sampling import SamplingPolicy

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = '{"type":"object","properties":{"a":{"type":"integer"}}}'


@pytest.mark.parametrize(
    "cell", [None, "", " ", "{}", {}, dict.fromkeys(FIELDS), {"top_p": float("nan")}]
)
def test_nothing_is_the_runs_policy(cell: Any) -> None:
    assert read_settings(cell) == NO_SETTINGS
    policy = SamplingPolicy()
    assert read_settings(cell).applied(policy) is policy


@pytest.mark.parametrize(
    "cell",
    [
        {"temperature": 1, "max_tokens": 100.0, "seed": 3, "json_schema": SCHEMA, "top_k": None},
        {"temperature": 1.0, "max_tokens": 100, "seed": 3.0, "json_schema": TEXT},
        f'{{"seed": 3, "max_tokens": 100, "json_schema": {TEXT}, "temperature": 1}}',
    ],
)
def test_an_object_and_its_json_text_are_the_same(cell: Any) -> None:
    settings = read_settings(cell)
    assert settings == RowSettings((("temperature", 1.0), ("max_tokens", 100), ("seed", 3)), TEXT)
    assert settings.names == ("temperature", "max_tokens", "seed", "json_schema")
    policy = settings.applied(SamplingPolicy(n=4, top_p=0.5))
    assert (policy.temperature, policy.max_tokens, policy.top_p, policy.n) == (1.0, 100, 0.5, 4)


@pytest.mark.parametrize("cell", [{"temperature": 0}, {"temperature": 0.0}, {"top_k": 1}])
def test_a_row_may_be_greedy_where_a_run_may_not(cell: Any) -> None:
    settings = read_settings(cell)
    assert settings.is_greedy
    [(name, value)] = settings.values
    assert getattr(settings.applied(SamplingPolicy()), name) == value
    assert not read_settings({"temperature": 0.6, "top_k": 20}).is_greedy


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{", "is not JSON: "),
        ('{"seed": 1, "seed": 2}', "is not JSON: the key seed is there twice"),
        ('{"top_p": NaN}', "is not JSON: NaN is not a JSON number"),
        ({"json_schema": '{"minimum": NaN}'}, "json_schema: is not JSON: NaN"),
        ("[1]", r"must be an object with some of temperature, .*, json_schema, not \[1\]"),
        (7, "must be an object with some of temperature, .* not 7"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2, not 3"),
        ({"temperature": 0.01}, "temperature: Input should be greater than or equal to 0.05, not 0.01"),
        ({"temperature": "0.5"}, "temperature: must be a number, not '0.5'"),
        ({"top_p": True}, "top_p: must be a number, not True"),
        ({"top_p": float("inf")}, "top_p: Input should be less than or equal to 1, not inf"),
        ({"max_tokens": 1.5}, "max_tokens: must be a whole number, not 1.5"),
        ({"max_tokens": 2**31}, "max_tokens: must be at most 2,147,483,647"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, not 0"),
        ({"n": 2}, "n: all rows of a run have the same number of samples; set sampling.n"),
        ({"agree": 2}, "agree: .*set sampling.agree"),
        ({"temprature": 1}, "temprature: .*did you mean temperature"),
        ({"json_schema": "{"}, "json_schema: is not JSON"),
        ({"json_schema": "[]"}, "json_schema: must be a JSON Schema, an object, not"),
        ({"json_schema": {"type": 3}}, "json_schema: is not a JSON Schema: 3 is not valid"),
        ({"json_schema": {"$ref": "#/$defs/x"}}, r"json_schema: \$ref #/\$defs/x is not in the schema"),
        ({"top_p": 2, "min_p": -1}, "top_p: .*; min_p: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_allowed(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_settings(cell)


def test_a_rows_own_seed_does_not_depend_on_where_the_row_stands() -> None:
    seeds = {derive_own_seed(s, n, a) for s in (0, 1) for n in (0, 1) for a in (0, 1)}
    assert len(seeds) == 8
    assert derive_own_seed(5, 0) == derive_own_seed(5, 0) < 2**48
