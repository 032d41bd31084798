"""Finds benchmark questions in prompts, so that nobody trains on what they are measured with.

Texts are compared as words: NFKC, lower case, without punctuation and spacing, with their numbers.
Letters and digits are words of their own (``60km`` is ``60 km``), and thousands are joined.

* A question of 14 words or more is found where the prompt has half of its runs of five words, and
  nine in ten of its numbers. One changed word breaks five runs, so it hides nothing; the same
  exercise with other numbers is another question. Runs that more than 50 questions share
  ("relatively prime positive integers find m + n") do not count.
* A shorter one is found word for word, and one of fewer than five words only if it is the whole
  prompt: such words stand in many texts.

The runs are hashed: 20,000 questions take some 20 MB, and a prompt of 100 words 0.2 ms.
`python -m jobs.bench contamination` compares these rules with others of the field.
"""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages
from pipeline.storage import Storage

RUN_WORDS, COMMON = 5, 50
LEAST_WORDS, WHOLE_PROMPT_WORDS = 14, 4
SHARED_RUNS, SHARED_NUMBERS = 0.5, 0.9
# Columns in which benchmarks have their questions; the first that a file has.
QUESTION_COLUMNS = ("question", "problem", "prompt", "query", "instruction", "input", "text")
# Digits, letters, or one character of a script without spaces (kana and CJK).
_WORD = re.compile(r"\d+|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
# A number in groups: one to three digits, then threes.
_GROUPED = re.compile(r"(?<![\d,.])\d{1,3}(?:[, ]\d{3})+(?!\d)")
# Exponents and indices, which NFKC would make digits of the number before them.
_RAISED = re.compile(r"[\u00b2\u00b3\u00b9\u2070-\u2079\u2080-\u2089]+")
_INVISIBLE = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff]")
Integers = NDArray[np.int64]


def normalized_words(text: str) -> list[str]:
    """The words of ``text`` as they are compared."""
    apart = _RAISED.sub(r"^\g<0>", _INVISIBLE.sub("", text))
    folded = " ".join(unicodedata.normalize("NFKC", apart).casefold().split())
    return _WORD.findall(_GROUPED.sub(lambda found: re.sub("[, ]", "", found[0]), folded))


def prompt_text(row: Mapping[str, Any], columns: PromptColumns) -> str:
    """What the turns of a row say, without system turn and suffix of the run.

    Empty for a row that makes no prompt: it fails by itself.
    """
    try:
        messages = row_messages(row, columns, None, None)
    except Exception:  # rows contain anything, as in `pipeline.prompts.render`
        return ""
    return "\n".join(message["content"] or "" for message in messages)


class Benchmarks:
    """An index of benchmark questions. ``questions``: pairs of a name, to be reported, and a text.

    Integers are those of this process, so an index is built anew in each.
    """

    def __init__(self, questions: Iterable[tuple[str, str]]) -> None:
        named = dict[tuple[str, ...], str]()
        for name, text in questions:
            named.setdefault(tuple(normalized_words(text)), name)
        named.pop((), None)
        self._count = len(named)
        self._whole = {words: name for words, name in named.items() if len(words) < LEAST_WORDS}
        texts = [words for words in named if words not in self._whole]
        self._names = [named[words] for words in texts]
        self._numbers = [_numbers(words) for words in texts]
        self._index(texts)
        # Without a run of its own, a question is found like a short one.
        self._whole |= {
            texts[i]: self._names[i] for i in np.flatnonzero(self._sizes == 0).tolist()
        }  # fmt: skip
        self._lengths = sorted({len(words) for words in self._whole})

    def _index(self, texts: Sequence[Sequence[str]]) -> None:
        """Sort the runs of all ``texts`` but the common ones."""
        by_question = [np.unique(_run_hashes(words)) for words in texts]
        runs = np.concatenate([np.zeros(0, np.int64), *by_question])
        questions = np.repeat(np.arange(len(texts)), [len(each) for each in by_question])
        _, which, counts = np.unique(runs, return_inverse=True, return_counts=True)
        is_own = counts[which] <= COMMON
        runs, questions = runs[is_own], questions[is_own]
        order = np.argsort(runs, kind="stable")
        self._runs, self._questions = runs[order], questions[order]
        self._sizes = np.bincount(questions, minlength=len(texts))

    def __len__(self) -> int:
        return self._count

    @classmethod
    def load(cls, files: Mapping[str, str | None]) -> "Benchmarks":
        """The questions of ``files``: path or URL of each, with its column, None for a usual one.

        A question's name is its file and row, such as ``aime.jsonl:17``, counted from 0. Raises
        `InputError` for a file that has no questions.
        """
        return cls(pair for file, column in files.items() for pair in _questions(file, column))

    def find(self, text: str) -> str | None:
        """The name of the question that ``text`` contains most of; None if there is none."""
        words = normalized_words(text)
        return self._find_whole(words) or self._find_runs(words)

    def _find_whole(self, words: Sequence[str]) -> str | None:
        for length in self._lengths:
            starts = range(len(words) - length + 1)
            if length <= WHOLE_PROMPT_WORDS:
                starts = range(length == len(words))
            for i in starts:
                if name := self._whole.get(tuple(words[i : i + length])):
                    return name
        return None

    def _find_runs(self, words: Sequence[str]) -> str | None:
        runs = np.unique(_run_hashes(words))
        first = np.searchsorted(self._runs, runs, "left")
        stop = np.searchsorted(self._runs, runs, "right")
        met = [self._questions[first[i] : stop[i]] for i in np.flatnonzero(stop > first)]
        if not met:
            return None
        questions, counts = np.unique(np.concatenate(met), return_counts=True)
        shares = counts / self._sizes[questions]
        for i in np.argsort(-shares, kind="stable").tolist():
            question = int(questions[i])
            numbers = self._numbers[question]
            if shares[i] < SHARED_RUNS:
                return None
            if len(numbers.intersection(words)) >= SHARED_NUMBERS * len(numbers):
                return self._names[question]
        return None


def _run_hashes(words: Sequence[str]) -> Integers:
    """The hashes of all runs of `RUN_WORDS` words, in order."""
    runs = zip(*(words[i:] for i in range(RUN_WORDS)), strict=False)
    return np.fromiter(map(hash, runs), np.int64)


def _numbers(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word for word in words if any(map(str.isdigit, word)))


def _questions(file: str, column: str | None) -> Iterator[tuple[str, str]]:
    """The questions of one file with their names."""
    rows, found = _rows(file), 0
    for number, row in enumerate(rows):
        text = row[_question_column(file, column, row)]
        if text is not None and not isinstance(text, str):
            raise _refused(file, f"row {number}: the question is {type(text).__name__}, not text")
        if text and text.strip():
            found += 1
            yield f"{file}:{number}", text
    if not found:
        raise _refused(file, "it has no questions")


def _question_column(file: str, column: str | None, row: Mapping[str, Any]) -> str:
    for name in QUESTION_COLUMNS if column is None else (column,):
        if name in row:
            return name
    asked = f"none of {', '.join(QUESTION_COLUMNS)}" if column is None else f"no {column}"
    raise _refused(
        file, f"a row has {asked} (it has {', '.join(row)}); name its column: "
        f"synthesize.benchmarks: {{{file}: COLUMN}}"
    )  # fmt: skip


def _rows(file: str) -> list[dict[str, Any]]:
    """The rows of a Parquet file, or of JSON lines."""
    store = Storage(file)
    if not store.is_file():
        raise _refused(file, "there is no such file")
    data = store.read("")
    try:
        if data.startswith(b"PAR1"):
            rows: list[dict[str, Any]] = pq.read_table(BytesIO(data)).to_pylist()
            return rows
        lines = data.decode("utf-8-sig").split("\n")
    except (pa.ArrowException, ValueError) as error:
        raise _refused(file, f"it is neither Parquet nor JSON lines ({error})") from None
    return [_object(file, n, line) for n, line in enumerate(lines, 1) if line.strip()]


def _object(file: str, number: int, line: str) -> dict[str, Any]:
    """The object on a line of JSON lines, counted from 1."""
    try:
        row = json.loads(line)
    except ValueError as error:
        why = getattr(error, "msg", error)
        why = f"it is neither Parquet nor JSON lines (line {number}: {why})"
        raise _refused(file, why) from None
    if not isinstance(row, dict):
        raise _refused(file, f"line {number} is no JSON object")
    return row


def _refused(file: str, why: str) -> InputError:
    return InputError(f"synthesize.benchmarks {file}: {why}")
