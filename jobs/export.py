"""Writes the export: files of chats, preference pairs and prompts for reinforcement learning.

    thinking/train-00000.parquet         thinking-jsonl/train-00000.jsonl
    answers/train-00000.parquet          answers-jsonl/train-00000.jsonl
    preference/train-00000.parquet       preference-jsonl/train-00000.jsonl
    rl/train-00000.parquet

With a share for validation there are also ``validation-00000.parquet``, and for JSON lines folders
of their own (``thinking-jsonl-validation``), because LLaMA-Factory reads folders as a whole.
Each part of the samples makes one file of each kind, unless it has nothing for it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import product
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.accept import CONTAMINATED, TOKEN_COLUMNS, is_complete
from jobs.chats import (
    VARIANTS,
    chat_schema,
    conversation,
    preference,
    preference_schema,
    ranking,
    rl_prompt,
    rl_schema,
)
from jobs.contamination import prompt_text
from jobs.own_files import OwnFiles
from jobs.preferences import Candidate, Kind, choose_pair
from jobs.samples import Samples
from jobs.splits import SPLITS, VALIDATION, split_of
from pipeline.execution.prepare import PreparedRun
from pipeline.prompts.render import TableRow
from pipeline.storage import Storage

FOLDER = "export"
PREFERENCE, RL, JSONL = "preference", "rl", "-jsonl"
CONFIGS = (*VARIANTS, PREFERENCE, RL)
BATCH_ROWS = 1024


class Kept(NamedTuple):
    """One kind of file. ``config``: its name as a subset of the data set."""

    config: str
    split: str
    is_parquet: bool

    @property
    def folder(self) -> str:
        """The folder of such files."""
        if self.is_parquet:
            return self.config
        return f"{self.config}{JSONL}" + (f"-{VALIDATION}" if self.split == VALIDATION else "")

    def path(self, number: int) -> str:
        """The name of a file below the job's output."""
        kind = "parquet" if self.is_parquet else "jsonl"
        return f"{FOLDER}/{self.folder}/{self.split}-{number:05}.{kind}"


KINDS = [
    Kept(config, split, is_parquet)
    for config, split, is_parquet in product(CONFIGS, SPLITS, (True, False))
    if is_parquet or config != RL
]
FOLDERS = sorted({kind.folder for kind in KINDS})


@dataclass(frozen=True)
class ExportRules:
    """What is exported, as `jobs.synthesize.SynthesizeSection` describes it.

    ``everything``: all samples with a whole answer. ``expanded``: columns that seeds were combined
    with.
    """

    everything: bool = False
    preference: Sequence[Kind] = ()
    validation: float | None = None
    expanded: Iterable[str] = ()


@dataclass
class Exported:
    """What was written: rows by config and split, bytes by folder, the first chat, the files."""

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    example: dict[str, Any] | None = None
    files: set[str] = field(default_factory=set)

    def total(self, config: str) -> int:
        """The rows of ``config`` in all splits."""
        return sum(self.rows[config, split] for split in SPLITS)

    @property
    def chats(self) -> int:
        """The number of conversations."""
        return self.total(VARIANTS[0])

    @property
    def is_empty(self) -> bool:
        """Whether nothing was written."""
        return not self.files


class _File:
    """A file in memory, to which rows are added."""

    def __init__(self, schema: pa.Schema | None) -> None:
        self._data, self._schema, self._rows = BytesIO(), schema, list[dict[str, Any]]()
        self._writer = None if schema is None else pq.ParquetWriter(
            self._data, schema, compression="zstd"
        )  # fmt: skip

    def add(self, row: dict[str, Any]) -> None:
        """Add one row."""
        if self._writer is None:
            self._data.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")
            return
        self._rows.append(row)
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        assert self._writer is not None
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows = []

    def finish(self) -> bytes:
        """The content of the file."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
        return self._data.getvalue()


class _Files:
    """The files of an export: those of one part in memory, the others written."""

    def __init__(self, store: Storage, run: PreparedRun) -> None:
        self._store, self.exported = store, Exported()
        chats = dict.fromkeys(VARIANTS, chat_schema(run))
        self._schemas = {**chats, PREFERENCE: preference_schema(run), RL: rl_schema(run)}
        self._open, self._numbers = dict[Kept, _File](), Counter[Kept]()

    def add(self, config: str, split: str, row: dict[str, Any]) -> None:
        """Add a row to the files of ``config``; JSON lines have pairs in LLaMA-Factory's shape."""
        self.exported.rows[config, split] += 1
        self._file(Kept(config, split, True)).add(row)
        if config != RL:
            line = ranking(row) if config == PREFERENCE else row
            self._file(Kept(config, split, False)).add(line)

    def _file(self, kind: Kept) -> _File:
        if kind not in self._open:
            schema = self._schemas[kind.config] if kind.is_parquet else None
            self._open[kind] = _File(schema)
        return self._open[kind]

    def write(self) -> None:
        """Write the open files; further rows come into the next ones."""
        for kind, file in self._open.items():
            path, data = kind.path(self._numbers[kind]), file.finish()
            self._store.put(path, data)
            self._numbers[kind] += 1
            self.exported.files.add(path)
            self.exported.sizes[kind.folder] += len(data)
        self._open = {}


def export(samples: Samples, run: PreparedRun, own: OwnFiles, rules: ExportRules) -> Exported:
    """Write all that ``samples`` give to `FOLDER`. ``own``: the files of the job."""
    own.claim(kind.path(i) for kind in KINDS for i in range(len(samples.parts)))
    exporter = _Exporter(samples, run, own, rules)
    for part in samples.parts:
        for prompt in samples.prompts(part, BATCH_ROWS):
            exporter.add(prompt)
        exporter.files.write()
    return exporter.files.exported


class _Exporter:
    """Chooses what a prompt's samples give to the export."""

    def __init__(
        self, samples: Samples, run: PreparedRun, own: OwnFiles, rules: ExportRules
    ) -> None:
        self.files = _Files(Storage(own.output), run)
        self._samples, self._run, self._rules = samples, run, rules
        self._names, self._expanded = samples.names, frozenset(rules.expanded)
        self._rl_prompts, self._answer_format = set[bytes](), run.config.answer.load_format()

    def add(self, prompt: Sequence[TableRow]) -> None:
        """Add what the samples of one prompt give."""
        share = self._rules.validation
        split = split_of(prompt[0], self._run.columns, self._expanded, share)
        for row in filter(self._is_chosen, prompt):
            for variant in VARIANTS:
                chat = conversation(row, self._names, self._run, variant == "thinking")
                self.files.exported.example = self.files.exported.example or chat
                self.files.add(variant, split, chat)
        candidates = [self._candidate(row) for row in prompt if self._is_complete(row)]
        if pair := choose_pair(candidates, self._rules.preference):
            self.files.add(PREFERENCE, split, preference(pair, self._run))
        if self._is_new_rl_prompt(prompt):
            index = len(self._rl_prompts) - 1
            self.files.add(RL, split, rl_prompt(prompt[0], self._run, split, index))

    def _is_chosen(self, row: TableRow) -> bool:
        is_fit = self._rules.everything and row["rejected"] != CONTAMINATED
        return bool(row["accepted"]) or (is_fit and self._is_complete(row))

    def _is_complete(self, row: TableRow) -> bool:
        return is_complete(row[self._names["state"]], row[self._names["answer"]])

    def _candidate(self, row: TableRow) -> Candidate:
        judgements = self._samples.checks.judgements
        score = None if judgements is None else judgements.score(row["sample_id"])
        return Candidate(
            row, row[self._names["think"]], row[self._names["answer"]],
            sum(row[self._names[name]] or 0 for name in TOKEN_COLUMNS),
            row["rejected"], row["passed"], score,
        )  # fmt: skip

    def _is_new_rl_prompt(self, prompt: Sequence[TableRow]) -> bool:
        """Whether a prompt has a reference that decides, a fit pass rate, and is no repetition."""
        row, column = prompt[0], self._run.config.answer.reference_column
        if column is None or self._answer_format.is_missing(row[column]):
            return False
        if row["contaminated_by"] is not None or all(each["passed"] is None for each in prompt):
            return False
        rate, (low, high) = row["pass_rate"], self._samples.checks.rules.pass_rate or (0.0, 1.0)
        if rate is not None and not low <= rate <= high:
            return False
        text = " ".join(prompt_text(row, self._run.columns).split())
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        is_new = key not in self._rl_prompts
        self._rl_prompts.add(key)
        return is_new
