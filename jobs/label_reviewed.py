"""Reads what people have said in a review, in a file of ours or one that their tool has exported.

Files of ours (Parquet, CSV, JSON lines or a JSON list) have the columns ``source_row`` and
``reviewed_label``; a row without a label there has not been reviewed. Argilla and Label Studio
export a JSON list of records, made of those that `jobs.label_export` has written.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.label_export import QUESTION, TEXT, argilla_answers, label_studio_answers
from jobs.sections import value_by_people
from pipeline.errors import InputError, first_line
from pipeline.input.files import PARQUET_NAMES, find_files
from pipeline.schema import SOURCE_ROW, plain_rows
from pipeline.storage import Storage

if TYPE_CHECKING:
    from jobs.label import LabelJob

NAMES = re.compile(rf"(?:{PARQUET_NAMES.pattern})|\.(csv|jsonl|ndjson|json)$", re.IGNORECASE)
FILES = "Parquet, .csv, .jsonl or .json"
# Rows of a file, each with its place in it.
Rows = Iterator[tuple[str, Mapping[str, Any]]]
# Labels and texts of CSV files may be long.
LONGEST_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Said:
    """What a person says of a row: the ``key`` of its label.

    ``where``: file, row and column, for messages. ``text``: that the person has read, if the file
    has it.
    """

    key: str
    where: str
    text: str | None


class Reviewed:
    """The labels of the files at ``label.reviewed``, by the source row; none without such files.

    Raises `InputError` with file, row and column for labels that are none, rows without
    ``source_row``, and rows with two different labels.
    """

    def __init__(self, job: "LabelJob") -> None:
        self._job, self._said = job, dict[str, Said]()
        if job.label.reviewed is not None:
            for name, rows in _files(job.label.reviewed):
                self._read(name, rows)

    def __len__(self) -> int:
        return len(self._said)

    def get(self, source_row: str) -> str | None:
        """The key of the label of a row; None without one."""
        said = self._said.get(source_row)
        return None if said is None else said.key

    def check_rows(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Raise `InputError` if a label is for none of ``rows``, or for another text.

        ``rows``: source row and text of all rows of the output.
        """
        left = dict(self._said)
        seen = set[str]()
        for source_row, text in rows:
            if source_row not in self._said:
                continue
            if source_row in seen:
                raise InputError(
                    f"{self._said[source_row].where}: several rows of the input have the "
                    f"{SOURCE_ROW} {source_row}, so it names none; leave that column out with "
                    "input.columns"
                )
            seen.add(source_row)
            said = left.pop(source_row)
            if said.text is not None and isinstance(text, str) and not _same(said.text, text):
                raise InputError(
                    f"{said.where}: the row {source_row} of this output has another text, so the "
                    "review was of another output or input; label.reviewed must come from "
                    "review.parquet of this output"
                )
        for source_row, said in left.items():
            raise InputError(
                f"{said.where}: the output has no row {source_row}; label.reviewed must come from "
                "review.parquet of this output, with its column source_row as it was"
            )

    def _read(self, name: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        for place, row in rows:
            column, answers = self._answers(row, f"{name}, {place}")
            for cell in answers:
                self._add(f"{name}, {place}, column {column}", row, cell)

    def _answers(self, row: Mapping[str, Any], where: str) -> tuple[str, list[Any]]:
        """Where a row has the labels that people give, and these."""
        column = self._job.called("reviewed_label")
        try:
            if column not in row and "annotations" in row:
                return QUESTION, label_studio_answers(row)
            if column not in row and "responses" in row:
                return QUESTION, argilla_answers(row)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{where} is no record of an export that can be read "
                f"({type(error).__name__}: {first_line(error)}); export JSON, as the tool offers it"
            ) from None
        for needed in (SOURCE_ROW, column):
            if needed not in row:
                raise InputError(
                    f"{where}: no column {needed}; label.reviewed needs {SOURCE_ROW}, as it is in "
                    f"review.parquet, and {column} with the labels that people give (there are: "
                    f"{', '.join(map(str, row))})"
                )
        return column, [row[column]]

    def _add(self, where: str, row: Mapping[str, Any], cell: Any) -> None:
        section = self._job.label
        is_one_label = section.labels is not None and not section.several
        if is_one_label and isinstance(cell, list):  # as tools give it
            if len(cell) > 1:
                raise InputError(f"{where}: {cell!r} are several labels; only one is possible")
            cell = next(iter(cell), None)
        key = section.gold_of(cell)
        if key is None:
            return
        if why := section.unknown(key):
            raise InputError(f"{where}: {cell!r} {why}")
        source_row, text = _row_and_text(row, section.text_column)
        if source_row is None:
            raise InputError(f"{where}: the row has a label, but no {SOURCE_ROW} that names it")
        said = self._said.setdefault(source_row, Said(key, where, text))
        if said.key != key:
            raise InputError(
                f"{where}: the row {source_row} has the label {key} here and {said.key} in "
                f"{said.where}; let people agree, and keep one"
            )


def _row_and_text(row: Mapping[str, Any], text_column: str) -> tuple[str | None, str | None]:
    """The source row that a row of a file names, and the text in it, if any."""
    if SOURCE_ROW in row:
        source_row, text = row[SOURCE_ROW], row.get(text_column)
    elif "annotations" in row:
        data = row.get("data") or {}
        source_row, text = data.get(SOURCE_ROW), data.get(TEXT)
    else:
        source_row, text = row.get("id"), (row.get("fields") or {}).get(TEXT)
    return value_by_people(source_row), text if isinstance(text, str) else None


def _same(one: str, other: str) -> bool:
    """Whether two texts are the same but for white space, which tools change."""
    return one.split() == other.split()


def _files(url: str) -> Iterator[tuple[str, Rows]]:
    """The name of each file at ``url``, and its rows, each with its place."""
    store, files = find_files(url, NAMES)
    if not files:
        raise InputError(f"label.reviewed {url}: no files there; it takes {FILES} files")
    for info in files:
        name = store.path(info.name)
        yield name, _rows(name, _reader(info.name)(store, info.name))


def _rows(name: str, rows: Rows) -> Rows:
    """``rows`` of the file ``name``; raises `InputError` if it can't be read."""
    try:
        yield from rows
    except (pa.ArrowException, OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"label.reviewed {name} can't be read: {first_line(error)}; it takes {FILES} files"
        ) from None


def _reader(name: str) -> Callable[[Storage, str], Rows]:
    endings: dict[str, Callable[[Storage, str], Rows]] = {
        ".csv": _csv_rows, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_list,
    }  # fmt: skip
    return next((read for end, read in endings.items() if name.lower().endswith(end)), _parquet)


def _parquet(store: Storage, name: str) -> Rows:
    number = 0
    with store.open(name) as file:
        for batch in pq.ParquetFile(file).iter_batches(1024):
            for row in plain_rows(batch):
                yield f"row {number} (counted from 0)", row
                number += 1


def _csv_rows(store: Storage, name: str) -> Rows:
    csv.field_size_limit(LONGEST_FIELD)
    text = io.StringIO(store.read(name).decode("utf-8-sig"), newline="")
    reader = csv.DictReader(text)
    for row in reader:
        yield f"line {reader.line_num}", {k: v for k, v in row.items() if k is not None}


def _json_lines(store: Storage, name: str) -> Rows:
    for number, line in enumerate(store.read(name).decode("utf-8-sig").split("\n"), 1):
        if line.strip():
            yield f"line {number}", _object(line, f"line {number}")


def _json_list(store: Storage, name: str) -> Rows:
    found = json.loads(store.read(name).decode("utf-8-sig"))
    if not isinstance(found, list):
        raise ValueError("it is no list of records")  # noqa: TRY004
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise ValueError(f"record {number} (counted from 0) is no object")  # noqa: TRY004
        yield f"record {number} (counted from 0)", row


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place} is no object")  # noqa: TRY004
    return row
