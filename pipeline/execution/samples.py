"""The samples of a block: made of its rows before generation, and its traces' columns after it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

from pipeline.config.run_config import RunConfig
from pipeline.errors import EngineKilledError, RowError
from pipeline.execution.row_prompts import RowPrompts
from pipeline.monitor.crash_isolation import Suspicion
from pipeline.monitor.engine_processes import RowKey
from pipeline.output.checkpoints import Key
from pipeline.planning import PartRef, Pass
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.reasoning.early_answer import is_control
from pipeline.reasoning.policy import TraceProgress
from pipeline.reasoning.row_settings import NO_SETTINGS, RowSettings, derive_own_seed
from pipeline.reasoning.sampling import derive_seed
from pipeline.reasoning.trace import Trace
from pipeline.schema import PART_COLUMN, ROW_COLUMN, SAMPLES_COLUMN, UNREADABLE_COLUMN, trace_fields

ORIGIN = (PART_COLUMN, ROW_COLUMN, SAMPLES_COLUMN)


class Origin(NamedTuple):
    """The part and number of a row, and the samples that it needs."""

    part: PartRef
    row: int
    samples: list[int]

    @property
    def row_key(self) -> RowKey:
        """The row, as the coordinator knows it."""
        return self.part.name, self.row

    @property
    def keys(self) -> list[Key]:
        """The row's samples, as checkpoints know them."""
        return [(self.part, self.row, sample) for sample in self.samples]


@dataclass(slots=True)
class Sample:
    """One sample of one row, with all that its generation needs.

    ``prompt``: token ids; empty if ``error`` says why there is no prompt. ``progress``: what
    earlier engines have generated, and what this one adds. ``suspicion``: of the row. ``control``:
    whether its thinking is never closed early. ``settings``: what the row sets itself.
    """

    key: Key
    seed: int
    prompt: Sequence[int] = ()
    error: RowError | None = None
    progress: TraceProgress = field(default_factory=TraceProgress)
    suspicion: Suspicion = Suspicion.NONE
    control: bool = False
    settings: RowSettings = NO_SETTINGS

    @property
    def row_key(self) -> RowKey:
        """The row of the sample, as the coordinator knows it."""
        return self.key[0].name, self.key[1]

    def needs_engine(self) -> bool:
        """Whether the engine has work left; raises `RowError` if the sample can't run."""
        if self.error is not None:
            raise self.error
        if self.suspicion == Suspicion.UNTOUCHABLE:
            raise poisoned()
        if self.progress.finish_reason is not None:
            return False
        if self.suspicion == Suspicion.POISON:
            raise poisoned()
        return True


def poisoned() -> EngineKilledError:
    """The error of a row that kills engines."""
    return EngineKilledError("the engine died each time this row ran")


def origins_of(block: pa.Table) -> list[Origin]:
    """The origin of each row of ``block``."""
    columns = (block[name].to_pylist() for name in ORIGIN)
    return [
        Origin(PartRef.parse(part), row, samples)
        for part, row, samples in zip(*columns, strict=True)
    ]


class SampleBuilder:
    """Renders the prompts of rows and makes their samples."""

    def __init__(
        self, config: RunConfig, columns: PromptColumns, run_pass: Pass, renderer: PromptRenderer
    ) -> None:
        self._prompts, self._renderer = RowPrompts(config, columns), renderer
        self._seed, self._attempt = config.sampling.seed, run_pass.attempt
        early = config.thinking.early_answer
        self._control_share = 0.0 if early is None else early.control_share

    def samples(
        self,
        row: TableRow,
        origin: Origin,
        progress: Sequence[TraceProgress],
        suspicion: Suspicion,
    ) -> list[Sample]:
        """The samples that a row needs, with the ``progress`` of each.

        Poison of which nothing was ever generated may kill by its prompt, which is not made again.
        """
        prompt: Sequence[int] = ()
        problem: RowError | None = None
        settings = NO_SETTINGS
        try:
            settings = self._prompts.settings(row)
            has_begun = any(p.has_begun for p in progress)
            if suspicion > Suspicion.POISON or (suspicion == Suspicion.POISON and not has_begun):
                raise poisoned()
            prompt = self._prompts.render(self._renderer, row).token_ids
        except RowError as error:
            problem = error.with_traceback(None)
        shard, row_number = origin.part.shard, origin.row
        control = is_control(self._seed, shard, row_number, self._control_share)
        return [
            Sample(
                key, self._seed_of(key, settings), prompt, problem, of_sample, suspicion, control,
                settings,
            )
            for key, of_sample in zip(origin.keys, progress, strict=True)
        ]  # fmt: skip

    def _seed_of(self, key: Key, settings: RowSettings) -> int:
        ref, row, sample = key
        if settings.seed is not None:
            return derive_own_seed(settings.seed, sample, self._attempt)
        return derive_seed(self._seed, ref.shard, row, sample, self._attempt)


def with_traces(block: pa.Table, rows: Sequence[Sequence[Trace]], config: RunConfig) -> pa.Table:
    """``block`` with each row repeated for each of its traces, and the traces' columns added.

    `UNREADABLE_COLUMN` is dropped: it is in the traces' errors.
    """
    block = block.select([name for name in block.column_names if name != UNREADABLE_COLUMN])
    table, traces = block, [trace for row in rows for trace in row]
    if any(len(row) != 1 for row in rows):
        table = block.take([i for i, row in enumerate(rows) for _ in row])
    fields = trace_fields({}, config.output.raw_text, config.optional_fields)
    for column, renamed in zip(fields, config.trace_fields, strict=True):
        values = pa.array([getattr(trace, column.name) for trace in traces], column.type)
        table = table.append_column(renamed, values)
    return table
