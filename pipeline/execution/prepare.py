"""Prepares a run: everything that can be refused is refused here, before anything starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.answers.references import REFERENCES, ReferenceSample
from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.errors import InputError, OutputError
from pipeline.execution.context_tiers import AS_CONFIGURED, ContextTier, make_context_tiers
from pipeline.input.longest_first import ByColumn, ByTraces, Lengths, check_column
from pipeline.input.references import sample_references
from pipeline.input.shards import find_shards
from pipeline.output import passes
from pipeline.output.ledger import SAMPLES, Ledger
from pipeline.output.manifest import run_settings, software_versions
from pipeline.planning import Part, Pass, Plan, Shard, split_parts
from pipeline.prompts.columns import PromptColumns, prompt_columns
from pipeline.prompts.tokenizer import load_model_config, load_tokenizer
from pipeline.schema import TRACE_COLUMNS, output_schema
from pipeline.storage import Storage, check_reachable


@dataclass(frozen=True)
class PreparedRun:
    """A run that has passed every check, with all that its passes need.

    ``prompts``: the schema of the input; ``traces``: of the output. ``references``: how the right
    answers in the input are read; None if it has none.
    """

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    traces: pa.Schema
    settings: dict[str, Any]
    ledger: Ledger
    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    tiers: tuple[ContextTier, ...]
    references: ReferenceSample | None = None

    @property
    def plan(self) -> Plan:
        """What is still to do of the run itself, by a listing made now."""
        return passes.plan_run(self.ledger, self.parts)

    def lengths(self, run_pass: Pass) -> Lengths | None:
        """The source of expected trace lengths in ``run_pass``; None if nothing tells them."""
        if run_pass.first:
            return ByTraces(self.ledger.store.location, self.names)
        column = self.config.input.length_column
        return None if column is None else ByColumn(column)

    @property
    def names(self) -> dict[str, str]:
        """From the name of each of our columns to its name in this run."""
        return {name: self.config.output.rename.get(name, name) for name in TRACE_COLUMNS}

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the software that makes the rows, the engine's included."""
        return software_versions(engine_type(self.config.engine).packages)

    def metadata(self, run_pass: Pass) -> dict[str, Any]:
        """The metadata of each output file of ``run_pass``."""
        settings = {**self.settings, SAMPLES: run_pass.stop}
        return {"columns": self.names, "settings": settings, "versions": self.versions}

    def context(self, run_pass: Pass) -> "PassContext":
        """What the tasks of ``run_pass`` need."""
        return PassContext(
            self.config, self.columns, self.prompts, run_pass, self.traces,
            self.metadata(run_pass), self.ledger.store.location,
        )  # fmt: skip

    def open_output(self) -> None:
        """Record the run's settings and its shards in the output."""
        self.ledger.open_run(self.settings, self.versions)
        self.ledger.record_shards(self.shards, self.prompts, self.settings["input.path"])


@dataclass(frozen=True)
class PassContext:
    """What the tasks of a pass need; Ray can pickle it.

    ``prompts``: the schema of the input; ``traces`` and ``metadata``: of the output, which is at
    ``output``.
    """

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    run_pass: Pass
    traces: pa.Schema
    metadata: Mapping[str, Any]
    output: str

    @property
    def reference_kind(self) -> str:
        """The kind of the references' `Reading`."""
        return str(self.metadata["settings"].get(REFERENCES, ""))


def prepare(config: RunConfig, may_change: Sequence[str] = ()) -> PreparedRun:
    """Check all that a run needs; reads names, footers and the tokenizer, and writes nothing.

    ``may_change``: prefixes of settings that may differ from the existing run. Raises a
    `QwqBatchError` for whatever would fail later.
    """
    engine = engine_type(config.engine)
    engine.check(config.engine)
    for url in (config.input.path, config.output.path):
        check_reachable(url)
    ledger = Ledger(Storage(config.output.path))
    shards, prompts = find_shards(config.input.path, ledger.known_shards())
    columns = check_columns(config, prompts)
    traces = output_schema(prompts, config.output.rename, config.output.raw_text)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    settings = run_settings(config, columns, tokenizer.chat_template)
    settings |= engine.result_settings(config.engine)
    references = None
    if column := config.answer.reference_column:
        references = sample_references(
            config.input.path, shards, column, config.answer.load_format()
        )
        if references.reading.kind:
            settings[REFERENCES] = references.reading.kind
    refuse_output_in_input(config, ledger.store)
    ledger.check_run(settings, may_change)
    ledger.check_shards(shards)
    parts = tuple(split_parts(shards, config.output.rows_per_part))
    tiers = context_tiers(config)
    return PreparedRun(
        config, columns, prompts, traces, settings, ledger, tuple(shards), parts, tiers, references
    )


def check_columns(config: RunConfig, prompts: pa.Schema) -> PromptColumns:
    """The columns that make a prompt; raises `InputError` if ``prompts`` lacks a named column."""
    section, reference = config.input, config.answer.reference_column
    named = PromptColumns(
        section.prompt_column, section.messages_column, section.tools_column, config.prompt.template
    )
    columns = prompt_columns(prompts, named)
    if reference is not None and reference not in prompts.names:
        raise InputError(
            f"answer.reference_column is {reference}, but the input has only the columns "
            f"{', '.join(prompts.names)}"
        )
    check_column(prompts, section.length_column)
    return columns


def context_tiers(config: RunConfig) -> tuple[ContextTier, ...]:
    """The engines of the run, by the length of their context; one tier unless it is ``auto``."""
    if config.engine.context != "auto":
        return (AS_CONFIGURED,)
    model = load_model_config(config.model.path, config.model.revision)
    return make_context_tiers(config, model)


def refuse_output_in_input(config: RunConfig, output: Storage) -> None:
    """Raise `OutputError` for an output below the input: the next run would read it as prompts."""
    folder = Storage(config.input.path)
    if folder.is_folder() and f"{output.root}/".startswith(f"{folder.root}/"):
        raise OutputError(
            f"output.path {config.output.path} lies in input.path {config.input.path}; choose a "
            "folder outside it"
        )
