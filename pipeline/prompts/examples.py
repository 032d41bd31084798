"""Few-shot examples: rows of a file as user and assistant turns before every prompt."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError, InvalidPromptError, first_line
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import Message, row_messages
from pipeline.schema import plain_rows
from pipeline.storage import Storage


def with_examples(
    columns: PromptColumns,
    path: str,
    answer_column: str,
    suffix: str | None,
    carried: Mapping[str, str] | None = None,
) -> PromptColumns:
    """``columns`` with the rows of the file ``path`` as examples.

    ``carried``: names of ``columns`` by those that the configuration and the file have. A user turn
    is made as a prompt of the run is; the text of ``answer_column`` answers it. Raises `InputError`
    for a file that can't be read, and for rows that are no examples, by number.
    """
    turns = list[Message]()
    for number, row in enumerate(_rows(path)):
        try:
            renamed = {new: row[old] for old, new in (carried or {}).items() if old in row}
            turns += _turns({**row, **renamed}, columns, answer_column, suffix)
        except (InvalidPromptError, ValueError) as error:
            raise InputError(
                f"prompt.examples.path {path}, row {number} (from 0): {error}"
            ) from None
    if not turns:
        raise InputError(f"prompt.examples.path {path} has no rows; leave prompt.examples out")
    return replace(columns, examples=tuple(turns))


def digest_of(examples: Sequence[Message]) -> str:
    """What identifies ``examples`` among the settings of a run."""
    text = json.dumps(list(examples), sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _turns(
    row: Mapping[str, Any], columns: PromptColumns, answer_column: str, suffix: str | None
) -> Iterator[Message]:
    for name in (*columns.names, answer_column):
        if name not in row:
            raise ValueError(f"there is no column {name}, only {', '.join(row)}")
    turns = row_messages(row, columns, None, suffix)
    if any(turn["role"] == "system" for turn in turns):
        raise ValueError("an example can't have a system turn; set prompt.system")
    answer = row[answer_column]
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"column {answer_column} must hold the text of the answer, not {answer!r}")
    yield from turns
    yield {"role": "assistant", "content": answer}


def _rows(path: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or of a file with a JSON object on each line."""
    folder, _, name = path.rpartition("/")
    store = Storage(folder or ("/" if path.startswith("/") else "."))
    try:
        data = store.read(name)
    except FileNotFoundError:
        raise InputError(f"prompt.examples.path {path}: there is no such file") from None
    if not name.endswith((".jsonl", ".ndjson")):
        try:
            return plain_rows(pq.read_table(BytesIO(data)))
        except (pa.ArrowException, OSError) as error:
            raise InputError(
                f"prompt.examples.path {path} is no Parquet file, nor a .jsonl: {first_line(error)}"
            ) from None
    return list(_json_rows(path, data))


def _json_rows(path: str, data: bytes) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"prompt.examples.path {path}:{number} is not JSON: {error}"
                ) from None
            if not isinstance(row, dict):
                raise InputError(f"prompt.examples.path {path}:{number} is not a JSON object")
            yield row
