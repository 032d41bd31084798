"""Which samples are accepted for training, and why the others are not; nothing is left out.

All samples of the run are written again, part by part, with the columns

* ``sample_id``: the part, the row in it (from 0) and the sample, ``seeds.00000.00000:12:1``;
* ``accepted`` and ``rejected``: the first of `REASONS` that holds, null for an accepted one;
* ``near_duplicate_of``: the ``sample_id`` that it repeats, if it is a duplicate.

A duplicate has the prompt of an earlier accepted sample (white space aside) and nearly the same
thinking and answer: the share of runs of five words that both have, estimated by MinHash, is at
least the threshold. The same words under another prompt are no duplicate, for a short answer is
right for many prompts. The index holds some 1 KB of memory for each accepted sample.
"""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasketch import MinHash

from pipeline.answers.formats import AnswerFormat, is_correct
from pipeline.errors import InputError
from pipeline.execution.prepare import PreparedRun
from pipeline.output.reader import finished_parts
from pipeline.prompts.render import TableRow, row_messages
from pipeline.reasoning.think_format import State
from pipeline.schema import TRACE_COLUMNS
from pipeline.storage import Storage

REASONS = ("state", "wrong", "disagrees", "too_long", "duplicate")
FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("accepted", pa.bool_()),
    pa.field("rejected", pa.string()),
    pa.field("near_duplicate_of", pa.string()),
)
TOKENS = ("prompt_tokens", "think_tokens", "answer_tokens")
JUDGED_BY = (
    "sample",
    "state",
    "correct",
    "parsed",
    "vote",
    "agreement",
    "wasted_tokens",
    "duplicate_of",
    *TOKENS,
)
WORDS_A_SHINGLE, PERMUTATIONS = 5, 128
ROWS_A_GROUP = 1024
# Words, and each character of scripts without spaces (kana and CJK) for one; signs count too.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


@dataclass(frozen=True)
class Rules:
    """What is accepted, as `jobs.synthesize.SynthesizeSection` describes it."""

    rescued: bool = False
    min_agreement: float | None = None
    max_tokens: int | None = None
    near_duplicate: float | None = None


def rejection(trace: Mapping[str, Any], rules: Rules, answer_format: AnswerFormat) -> str | None:
    """Why a trace (by our own columns' names) is not accepted, duplicates aside; None if it is."""
    ended = (State.FINISHED, State.RESCUED) if rules.rescued else (State.FINISHED,)
    if trace["state"] not in ended:
        return "state"
    if trace["correct"] is False:
        return "wrong"
    if rules.min_agreement is not None and trace["correct"] is None:
        agreed = trace["agreement"] >= np.float32(rules.min_agreement)
        if not agreed or not is_correct(trace["parsed"], trace["vote"], answer_format):
            return "disagrees"
    tokens = sum(trace[name] or 0 for name in TOKENS)
    if rules.max_tokens is not None and tokens > rules.max_tokens:
        return "too_long"
    return None


class Duplicates:
    """The accepted samples so far, by prompt; ``threshold``: 0 to 1, what counts as the same."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._seen: dict[bytes, list[tuple[str, Any]]] = {}

    def of(self, sample_id: str, prompt: str, text: str) -> str | None:
        """The id of the earlier sample that this one repeats; None, and it is kept, if it is new.

        ``text``: its thinking and answer.
        """
        key = hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=16).digest()
        signature, others = _signature(text), self._seen.setdefault(key, [])
        for other, known in others:
            if np.mean(known == signature) >= self._threshold:
                return other
        others.append((sample_id, signature))
        return None


def _signature(text: str) -> Any:
    words = _WORD.findall(text.lower())
    runs = range(max(1, len(words) - WORDS_A_SHINGLE + 1))
    shingles = {" ".join(words[i : i + WORDS_A_SHINGLE]).encode() for i in runs}
    hashed = MinHash(PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    hashed.update_batch(shingles)
    return hashed.hashvalues.astype(np.uint32)


@dataclass
class Tally:
    """Counts of all samples; tokens are those generated, given up ones included."""

    rows: int = 0
    samples: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    think_tokens: int = 0
    answer_tokens: int = 0
    wasted_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All tokens that were generated."""
        return self.think_tokens + self.answer_tokens + self.wasted_tokens


class Samples:
    """The samples of a run with what is accepted, below ``folder``, a file for each part.

    ``config`` of ``run`` says where the traces are and how prompts are made.
    """

    def __init__(self, run: PreparedRun, folder: str, rules: Rules) -> None:
        if taken := [field.name for field in FIELDS if field.name in run.traces.names]:
            raise InputError(
                f"the input has a column {', '.join(taken)}, a name that this job uses; rename "
                "yours"
            )
        self.store, self.parts, self.tally = Storage(folder), list[str](), Tally()
        self.names = {name: run.config.output.rename.get(name, name) for name in TRACE_COLUMNS}
        self._run, self._rules = run, rules
        threshold = rules.near_duplicate
        self._duplicates = None if threshold is None else Duplicates(threshold)

    def add_new(self) -> None:
        """Write the parts that have been finished since; the files of parts that are gone go."""
        for part in finished_parts(self._run.config.output.path, skip=self.parts):
            sink = BytesIO()
            pq.write_table(
                self._judged(part.name, part.read()), sink, compression="zstd",
                row_group_size=ROWS_A_GROUP,
            )  # fmt: skip
            self.store.put(part.name, sink.getvalue())
            self.parts.append(part.name)
        there = {info.name for info in self.store.files()}
        self.store.delete(sorted(there - set(self.parts)))

    def _judged(self, part: str, table: pa.Table) -> pa.Table:
        row, columns = -1, list[tuple[str, bool, str | None, str | None]]()
        for i in range(table.num_rows):
            cells = TableRow(table, i)
            sample = cells[self.names["sample"]]
            row += sample == 0
            sample_id = f"{part.removesuffix('.parquet')}:{row}:{sample}"
            reason, repeated = self._judge(sample_id, cells)
            columns.append((sample_id, reason is None, reason, repeated))
        values = zip(*columns, strict=True) if columns else [()] * len(FIELDS)
        for column, cells_of in zip(FIELDS, values, strict=True):
            table = table.append_column(column, pa.array(cells_of, column.type))
        return table

    def _judge(self, sample_id: str, cells: TableRow) -> tuple[str | None, str | None]:
        """Why it is rejected, and what it repeats; both counted."""
        names = self.names
        trace = {key: cells[names[key]] for key in JUDGED_BY}
        tally, config, repeated = self.tally, self._run.config, None
        reason = rejection(trace, self._rules, config.answer.format)
        if reason is None and self._duplicates is not None:
            messages = row_messages(cells, self._run.columns, None, None)
            prompt = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
            said = f"{cells[names['think']] or ''}\n{cells[names['answer']]}"
            repeated = self._duplicates.of(sample_id, prompt, said)
            reason = None if repeated is None else "duplicate"
        tally.rows += trace["sample"] == 0
        tally.samples += 1
        tally.accepted += reason is None
        tally.states[trace["state"]] += 1
        if reason is not None:
            tally.rejected[reason] += 1
        if trace["duplicate_of"] is None:  # a copied trace was generated, and is counted, elsewhere
            tally.think_tokens += trace["think_tokens"]
            tally.answer_tokens += trace["answer_tokens"]
            tally.wasted_tokens += trace["wasted_tokens"]
        return reason, repeated
