"""Decides which samples are accepted for training, and why others are rejected.

Every sample of the run is written again, part by part, with these additional columns:

* ``sample_id``: part, row in the part (from 0) and sample, such as ``seeds.00000.00000:12:1``;
* ``accepted``, and ``rejected``: the first of `REASONS` that applies, null for an accepted one;
* ``near_duplicate_of``: the ``sample_id`` of the accepted sample that it repeats, if any.

A near duplicate has the prompt of an earlier accepted sample (apart from white space) and nearly
the same thinking and answer. Similarity is the Jaccard index of their five-word shingles, estimated
by MinHash. The same answer to another prompt is no duplicate, because short answers are right for
many prompts. The index takes about 1 KB of memory per accepted sample.
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
from numpy.typing import NDArray

from jobs.own_files import OwnFiles
from pipeline.answers.base import AnswerFormat
from pipeline.errors import InputError
from pipeline.execution.prepare import PreparedRun
from pipeline.output.reader import finished_parts
from pipeline.prompts.messages import row_messages
from pipeline.prompts.render import TableRow
from pipeline.reasoning.policy import ClosedBy
from pipeline.reasoning.think_format import State
from pipeline.storage import Storage

FOLDER = "samples"
REASONS = ("state", "wrong", "disagrees", "too_long", "duplicate")
FIELDS = (
    pa.field("sample_id", pa.string()),
    pa.field("accepted", pa.bool_()),
    pa.field("rejected", pa.string()),
    pa.field("near_duplicate_of", pa.string()),
)
TOKEN_COLUMNS = ("prompt_tokens", "think_tokens", "answer_tokens")
JUDGED_COLUMNS = (
    "sample",
    "state",
    "closed_by",
    "correct",
    "parsed",
    "vote",
    "agreement",
    "wasted_tokens",
    "asked_tokens",
    "probe_tokens",
    "duplicate_of",
    *TOKEN_COLUMNS,
)
SHINGLE_WORDS, PERMUTATIONS = 5, 128
ROW_GROUP_ROWS = 1024
# A word, or one character of a script without spaces (kana and CJK), or one punctuation mark.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+|[^\w\s]")


Signature = NDArray[np.uint32]


@dataclass(frozen=True)
class AcceptanceRules:
    """What is accepted, as `jobs.synthesize.SynthesizeSection` describes it; None: no such rule."""

    rescued: bool = False
    min_agreement: float | None = None
    max_tokens: int | None = None
    near_duplicate: float | None = None


def rejection(
    trace: Mapping[str, Any], rules: AcceptanceRules, answer_format: AnswerFormat
) -> str | None:
    """The reason why ``trace`` is rejected, near duplicates aside; None if it is accepted.

    ``trace``: the values of `JUDGED_COLUMNS`, as far as the run has them.
    """
    accepted_states = (State.FINISHED, State.RESCUED) if rules.rescued else (State.FINISHED,)
    if trace["state"] not in accepted_states:
        return "state"
    if trace.get("asked_tokens") and not rules.rescued:
        return "state"  # its own answer is not in the format
    if trace.get("closed_by") == ClosedBy.EARLY_ANSWER and not rules.rescued:
        return "state"  # its thinking ends in the middle
    if trace["correct"] is False:
        return "wrong"
    if rules.min_agreement is not None and trace["correct"] is None:
        # The column holds 32-bit floats: 0.6 is not 0.6 there.
        enough_agree = trace["agreement"] >= np.float32(rules.min_agreement)
        if not enough_agree or not _is_vote(trace["parsed"], trace["vote"], answer_format):
            return "disagrees"
    tokens = sum(trace[name] or 0 for name in TOKEN_COLUMNS)
    if rules.max_tokens is not None and tokens > rules.max_tokens:
        return "too_long"
    return None


def _is_vote(parsed: str | None, vote: str | None, answer_format: AnswerFormat) -> bool:
    """Whether a sample has the value that most samples of its row have."""
    if parsed is None or vote is None:
        return False
    return parsed == vote or len(answer_format.group([vote, parsed])[0]) == 1


class NearDuplicates:
    """An index of the accepted samples, by prompt. ``threshold``: the least similarity, 0 to 1."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._by_prompt: dict[bytes, list[tuple[str, Signature]]] = {}

    def find_or_add(self, sample_id: str, prompt: str, text: str) -> str | None:
        """The id of an earlier sample that this one repeats; if there is none, add this one.

        ``text``: thinking and answer of the sample.
        """
        key = hashlib.blake2b(" ".join(prompt.split()).encode(), digest_size=16).digest()
        signature, earlier = _signature(text), self._by_prompt.setdefault(key, [])
        for earlier_id, earlier_signature in earlier:
            if np.mean(earlier_signature == signature) >= self._threshold:
                return earlier_id
        earlier.append((sample_id, signature))
        return None


def _signature(text: str) -> Signature:
    """The MinHash signature of the shingles of ``text`` (shape: `PERMUTATIONS`)."""
    words = _WORD.findall(text.lower())
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    shingles = {" ".join(words[i : i + SHINGLE_WORDS]).encode() for i in starts}
    minhash = MinHash(PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    minhash.update_batch(shingles)
    return np.asarray(minhash.hashvalues, np.uint32)


@dataclass
class SampleCounts:
    """Counts of samples by outcome. Tokens of copies of duplicates are not counted.

    ``rows``: prompts. ``wasted_tokens``: those of abandoned attempts. ``asked_tokens``: those of
    answers that were asked for once more. ``probe_tokens``: those of probes for early answers.
    """

    rows: int = 0
    samples: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    think_tokens: int = 0
    answer_tokens: int = 0
    wasted_tokens: int = 0
    asked_tokens: int = 0
    probe_tokens: int = 0

    @property
    def tokens(self) -> int:
        """All generated tokens."""
        ended = self.think_tokens + self.answer_tokens
        return ended + self.wasted_tokens + self.asked_tokens + self.probe_tokens

    def add(self, trace: Mapping[str, Any], reason: str | None) -> None:
        """Count one sample. ``trace``: those of `JUDGED_COLUMNS`; ``reason``: of its rejection."""
        self.rows += trace["sample"] == 0
        self.samples += 1
        self.states[trace["state"]] += 1
        if reason is None:
            self.accepted += 1
        else:
            self.rejected[reason] += 1
        if trace["duplicate_of"] is None:  # a copy was generated, and is counted, elsewhere
            self.think_tokens += trace["think_tokens"]
            self.answer_tokens += trace["answer_tokens"]
            self.wasted_tokens += trace["wasted_tokens"]
            self.asked_tokens += trace.get("asked_tokens", 0)
            self.probe_tokens += trace.get("probe_tokens", 0)


class Samples:
    """The samples of ``run`` in the folder `FOLDER`: a file for each part, with columns `FIELDS`.

    ``own``: the files of the job. Raises `InputError` if the input has a column of such a name.
    """

    def __init__(self, run: PreparedRun, own: OwnFiles, rules: AcceptanceRules) -> None:
        if taken := [field.name for field in FIELDS if field.name in run.traces.names]:
            raise InputError(
                f"the input has a column {', '.join(taken)}, a name that this job uses; rename it"
            )
        self.store, self._own = Storage(f"{own.output}/{FOLDER}"), own
        self.parts, self.counts = list[str](), SampleCounts()
        self.names = run.names
        self._run, self._rules = run, rules
        self._answer_format = run.config.answer.load_format()
        threshold = rules.near_duplicate
        self._near_duplicates = None if threshold is None else NearDuplicates(threshold)

    def add_new(self) -> None:
        """Write the parts finished since the last call."""
        parts = list(finished_parts(self._run.config.output.path, skip=self.parts))
        self._own.claim(f"{FOLDER}/{part.name}" for part in parts)
        for part in parts:
            sink = BytesIO()
            pq.write_table(
                self._judged(part.name, part.read()), sink, compression="zstd",
                row_group_size=ROW_GROUP_ROWS,
            )  # fmt: skip
            self.store.put(part.name, sink.getvalue())
            self.parts.append(part.name)

    @property
    def files(self) -> set[str]:
        """The names of the files written, below the job's output."""
        return {f"{FOLDER}/{name}" for name in self.parts}

    def _judged(self, part: str, table: pa.Table) -> pa.Table:
        """``table`` with the columns `FIELDS`."""
        row, judgements = -1, list[tuple[str, bool, str | None, str | None]]()
        for i in range(table.num_rows):
            cells = TableRow(table, i)
            sample = cells[self.names["sample"]]
            row += sample == 0
            sample_id = f"{part.removesuffix('.parquet')}:{row}:{sample}"
            reason, repeated = self._judge(sample_id, cells)
            judgements.append((sample_id, reason is None, reason, repeated))
        columns = zip(*judgements, strict=True) if judgements else [()] * len(FIELDS)
        for column, values in zip(FIELDS, columns, strict=True):
            table = table.append_column(column, pa.array(values, column.type))
        return table

    def _judge(self, sample_id: str, cells: TableRow) -> tuple[str | None, str | None]:
        """Count a sample; return why it is rejected, and the sample that it repeats."""
        trace = {key: cells[self.names[key]] for key in JUDGED_COLUMNS if key in self.names}
        reason, repeated = rejection(trace, self._rules, self._answer_format), None
        if reason is None and self._near_duplicates is not None:
            messages = row_messages(cells, self._run.columns, None, None)
            prompt = "\n".join(f"{m['role']}: {m['content']}" for m in messages)
            text = f"{cells[self.names['think']] or ''}\n{cells[self.names['answer']]}"
            repeated = self._near_duplicates.find_or_add(sample_id, prompt, text)
            reason = None if repeated is None else "duplicate"
        self.counts.add(trace, reason)
        return reason, repeated
