"""The settings that a row brings along: what of the sampling policy it may set; no I/O.

A cell is an object, or JSON text of one. What it leaves out, or sets to null, is the run's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from pipeline.answers.json_schema import form_of, without_nulls
from pipeline.reasoning.sampling import SamplingPolicy, hash48
from pipeline.registry import did_you_mean
from pipeline.strict_json import DECODER

SEED, SCHEMA = "seed", "json_schema"
# Those of a row that the engine is asked for, and those that say when a trace ends.
PARAMETERS = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "repetition_penalty",
    "max_tokens",
)  # fmt: skip
FIELDS = (*PARAMETERS, SEED, SCHEMA)
WHOLE = ("top_k", "max_tokens", SEED)
# A run is never greedy; a row may be.
GREEDY = {"temperature": 0, "top_k": 1}
LARGEST_INTEGER = 2**31 - 1
OF_THE_RUN = {
    "n": "all rows of a run have the same number of samples; set sampling.n",
    "agree": "all rows of a run have the same number of samples; set sampling.agree",
}


@dataclass(frozen=True)
class RowSettings:
    """What a row sets itself.

    ``values``: by the names of `SamplingPolicy`, of `PARAMETERS` and `SEED`. ``schema``: the JSON
    Schema of its answer, as compact JSON text.
    """

    values: tuple[tuple[str, Any], ...] = ()
    schema: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The fields that the row sets."""
        return (*(name for name, _ in self.values), *([] if self.schema is None else [SCHEMA]))

    @property
    def seed(self) -> int | None:
        """The row's own seed."""
        return dict(self.values).get(SEED)

    @property
    def is_greedy(self) -> bool:
        """Whether the row asks for the likeliest token each time."""
        values = dict(self.values)
        return any(values.get(name) == value for name, value in GREEDY.items())

    def applied(self, policy: SamplingPolicy) -> SamplingPolicy:
        """The ``policy`` of the run with what the row sets."""
        return policy.model_copy(update=dict(self.values)) if self.values else policy


NO_SETTINGS = RowSettings()


def derive_own_seed(seed: int, sample: int, attempt: int = 0) -> int:
    """The seed of one sample of a row with its own ``seed``, wherever the row stands.

    0 to 2**48 - 1. ``attempt``: the number of the retry, 0 for the run itself.
    """
    return hash48(f"own\0{seed}\0{sample}\0{attempt}")


def read_settings(cell: Any) -> RowSettings:
    """The settings in a ``cell``; raises `ValueError` that names the field and what is allowed."""
    if cell is None:
        return NO_SETTINGS
    return _of_text(cell) if isinstance(cell, str) else _settings(cell)


@lru_cache(4096)
def _of_text(text: str) -> RowSettings:
    if not text.strip():
        return NO_SETTINGS
    try:
        found = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    return _settings(found)


def _settings(cell: Any) -> RowSettings:
    if not isinstance(cell, Mapping):
        raise ValueError(f"must be an object with some of {', '.join(FIELDS)}, not {cell!r:.60}")  # noqa: TRY004
    given = {name: value for name, value in cell.items() if not _is_nothing(value)}
    problems = [_unknown(name) for name in given if name not in FIELDS]
    values = {name: given[name] for name in (*PARAMETERS, SEED) if name in given}
    values |= {name: _whole(values[name]) for name in WHOLE if name in values}
    problems += _wrong(values)
    schema = None
    try:
        schema = None if SCHEMA not in given else _schema(given[SCHEMA])
    except ValueError as error:
        problems.append(f"{SCHEMA}: {str(error).removeprefix('json_schema').strip(' :')}")
    if problems:
        raise ValueError("; ".join(problems))
    values |= {name: float(value) for name, value in values.items() if name not in WHOLE}
    return RowSettings(tuple(values.items()), schema)


def _is_nothing(value: Any) -> bool:
    """Whether a value is null, or NaN, which pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _whole(value: Any) -> Any:
    """Whole numbers among floats: one null makes a column of numbers that."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unknown(name: Any) -> str:
    reason = OF_THE_RUN.get(name) or did_you_mean(str(name), FIELDS, "field")
    return f"{name}: {reason}"


def _wrong(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``values``, each by its field, by the same bounds as the run's."""
    problems, checked = list[str](), dict[str, Any]()
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            problems.append(f"{name}: must be a number, not {value!r:.60}")
        elif name in WHOLE and not isinstance(value, int):
            problems.append(f"{name}: must be a whole number, not {value}")
        elif name == "max_tokens" and value > LARGEST_INTEGER:
            problems.append(f"{name}: must be at most {LARGEST_INTEGER:,}, not {value}")
        elif GREEDY.get(name) != value:
            checked[name] = value
    try:
        SamplingPolicy.model_validate(checked)
    except ValidationError as error:
        for problem in error.errors():
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{problem['loc'][0]}: {message}, not {problem['input']}")
    return problems


def _schema(schema: Any) -> str:
    """A JSON Schema as compact text; raises `ValueError` if it is none."""
    if isinstance(schema, str):
        return _schema_of_text(schema)
    return _checked(without_nulls(schema))


@lru_cache(1024)
def _schema_of_text(text: str) -> str:
    try:
        found = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    return _checked(found)


def _checked(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        raise ValueError(f"must be a JSON Schema, an object, not {schema!r:.60}")  # noqa: TRY004
    form = form_of(schema)
    form.check()
    return form.text
