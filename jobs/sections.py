"""What sections of jobs share: settings, the values that an answer can name, columns; no I/O."""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator

from pipeline.config.section import Section
from pipeline.registry import did_you_mean

# Stands for rows without a value in reports.
NONE = "(none)"


class RowSection(Section):
    """The section of a job that makes one row of the samples of each input row.

    ``own_columns``: all that the job can add, under our names, but the run's own.
    """

    own_columns: ClassVar[Sequence[str]]
    rename: dict[str, str] = Field(
        default_factory=dict, description="a column of ours: your name for it"
    )
    review_below: Annotated[float, Field(ge=0, le=1)] = Field(
        1, description="review rows whose samples agree less than this (0 to 1)"
    )

    @field_validator("rename")
    @classmethod
    def _known_columns(cls, rename: dict[str, str]) -> dict[str, str]:
        for name in rename:
            if name not in cls.own_columns:
                raise ValueError(did_you_mean(name, cls.own_columns, "key"))
        return rename

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, str | None]:
        """The settings that name an input column, with that column, or None."""

    @property
    @abstractmethod
    def added(self) -> Mapping[str, pa.DataType]:
        """The columns that a row gets, under our names; the last two are the run's."""


def named_values(values: Any, what: str) -> Any:
    """``values``, a list or a mapping to their meanings, as a mapping from text.

    Other types are left to the validation that follows. Raises `ValueError` for values that are
    empty, twice in the list, no text or reserved. ``what``: how messages call one, such as
    "a label".
    """
    if not isinstance(values, (list, Mapping)):
        return values
    for value in values:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise ValueError(f"{value!r} is not text; put quotes around it")  # noqa: TRY004
    names = [str(value) for value in values]
    if any(not name.strip() for name in names):
        raise ValueError(f"{what} is empty")
    if NONE in names:
        raise ValueError(f"{NONE} stands for rows without {what} in the report; rename it")
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"twice in the list: {', '.join(sorted(repeated))}")
    meanings = values.values() if isinstance(values, Mapping) else [None] * len(names)
    return dict(zip(names, meanings, strict=True))


def listed(values: Mapping[str, str | None], title: str) -> str:
    """The lines of a prompt that list ``values`` with their meanings."""
    lines = [
        f"- {_on_one_line(name)}: {meaning}" if meaning else f"- {_on_one_line(name)}"
        for name, meaning in values.items()
    ]
    return "\n".join([title, *lines])


def literal_in_template(text: str) -> str:
    """``text`` for a template, which takes a single brace for a column."""
    return text.replace("{", "{{").replace("}", "}}")


def template_column(name: str | None) -> str | None:
    """The column ``name``, if a template can name it; else raises `ValueError`."""
    if name is not None and (set(name) & set("{}:!") or not name):
        raise ValueError("must be a column without { } : or ! in its name")
    return name


def value_by_people(cell: Any) -> str | None:
    """The text of a cell with a value that a person has given; None if there is none."""
    is_nan = isinstance(cell, float) and math.isnan(cell)
    if cell is None or is_nan or (isinstance(cell, str) and not cell.strip()):
        return None
    whole = isinstance(cell, float) and cell.is_integer()  # nulls turn whole numbers into floats
    return str(int(cell) if whole else cell)


def _on_one_line(name: str) -> str:
    """A name as its answer has it: with a line break as the JSON of the answer writes it."""
    return name if name.isprintable() else json.dumps(name, ensure_ascii=False)[1:-1]
