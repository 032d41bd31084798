"""Prepares a run: everything that can be refused is refused here, before anything starts."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.answers.references import REFERENCES, ReferenceSample
from pipeline.config.load import fingerprint_of
from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.execution.context_tiers import AS_CONFIGURED, ContextTier, make_context_tiers
from pipeline.execution.run_input import find_input
from pipeline.input.earlier_run import stage_name
from pipeline.input.longest_first import ByColumn, ByTraces, Lengths, check_column
from pipeline.input.references import sample_references
from pipeline.input.row_settings import (
    SettingsByRow,
    check_row_settings,
    check_settings_type,
)
from pipeline.input.shards import Input
from pipeline.output import passes
from pipeline.output.early import EarlySummary
from pipeline.output.layout import check_names
from pipeline.output.ledger import INPUT, Ledger
from pipeline.output.manifest import run_settings, software_versions
from pipeline.output.parts import SAMPLES, read_footers
from pipeline.planning import KnownShards, Lineage, Part, Pass, Plan, Shard, split_parts
from pipeline.prompts.columns import PromptColumns, prompt_columns
from pipeline.prompts.examples import with_examples
from pipeline.prompts.tokenizer import load_model_config, load_tokenizer
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.reasoning.row_settings import SCHEMA
from pipeline.schema import TRACE_COLUMNS, output_schema
from pipeline.storage import Storage, check_reachable


@dataclass(frozen=True)
class PreparedRun:
    """A run that has passed every check, with all that its passes need.

    ``config``: its input is the shards, whatever they were made of, and its input columns have the
    names under which they are carried. ``source``: ``input.path`` as configured. ``prompts``: the
    schema of the input; ``traces``: of the output. ``lineage``: of the input.
    ``references``: how the right answers in the input are read; None if it has none. ``notes``:
    what people should know about the input. ``deciding``: as `Input` has it. ``by_row``: what its
    rows set themselves; None without ``input.sampling_column``.
    """

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    traces: pa.Schema
    settings: dict[str, Any]
    lineage: Lineage
    ledger: Ledger
    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    tiers: tuple[ContextTier, ...]
    references: ReferenceSample | None = None
    notes: tuple[str, ...] = ()
    deciding: pa.Schema | None = None
    source: str = ""
    by_row: SettingsByRow | None = None

    def sized(self, config: RunConfig) -> RunConfig:
        """``config`` with the largest limit of tokens that any row has: what must hold them all."""
        most = 0 if self.by_row is None else self.by_row.max_tokens
        if not most:
            return config
        sampling = config.sampling.model_copy(update={"max_tokens": most})
        return config.model_copy(update={"sampling": sampling})

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
        optional = [field.name for field in self.config.optional_fields]
        rename = self.config.output.rename
        return {name: rename.get(name, name) for name in (*TRACE_COLUMNS, *optional)}

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the software that makes the rows, the engine's included."""
        return software_versions(engine_type(self.config.engine).packages)

    def metadata(self, run_pass: Pass) -> dict[str, Any]:
        """The metadata of each output file of ``run_pass``."""
        settings = {**self.settings, SAMPLES: run_pass.stop}
        metadata = {"columns": self.names, "settings": settings, "versions": self.versions}
        return {**metadata, "lineage": list(self.lineage)} if self.lineage else metadata

    @property
    def floor(self) -> ControlGroup | None:
        """The floor of the control group's agreement, if there is one."""
        early = self.config.thinking.early_answer
        return None if early is None or early.min_agreement is None else early.floor

    def control_group(self) -> ControlGroup | None:
        """The control group of the finished parts; None without a floor of its agreement."""
        if self.floor is None:
            return None
        footers = read_footers(self.ledger.store, self.ledger.listing().finished_parts())
        summaries = (footer["summary"] for footer in footers)
        so_far = EarlySummary.of_parts(summaries, self.floor)
        return self.floor if so_far is None else so_far.control_group

    def context(self, run_pass: Pass) -> "PassContext":
        """What the tasks of ``run_pass`` need."""
        return PassContext(
            self.config, self.columns, self.prompts, run_pass, self.traces,
            self.metadata(run_pass), self.ledger.store.location,
        )  # fmt: skip

    def open_output(self) -> "PreparedRun":
        """Record the run's settings and its shards in the output.

        Returns the run with what its engine has found, if it begins now.
        """
        engine, settings, config = engine_type(self.config.engine), self.settings, self.config
        if self.ledger.manifest() is None:
            settings = {**settings, **engine.found_at_start(config)}
            config = _as_begun(config, settings)
        self.ledger.open_run(settings, self.versions)
        location = Storage(config.input.path).location
        self.ledger.record_shards(self.shards, self.prompts, location, self.lineage, self.deciding)
        return replace(self, config=config, settings=settings)


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
    manifest, known = ledger.manifest(), ledger.known_shards()
    if manifest is not None:
        config = _as_begun(config, manifest["settings"])
    refuse_output_in_input(config, ledger.store)
    found = find_input(config)
    config = config.with_columns_renamed(found.carried)
    columns = check_columns(config, found)
    if (examples := config.prompt.examples) is not None:
        columns = with_examples(
            columns, examples.path, examples.answer_column, config.suffix_text, found.carried
        )
    # An output of an older version may have such names; it has to be finished as it is.
    is_new = manifest is None
    output, optional = config.output, config.optional_fields
    traces = output_schema(found.schema, output.rename, output.raw_text, is_new, optional)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    settings = run_settings(config, columns, tokenizer.chat_template)
    settings |= {INPUT: Storage(found.source).location, **engine.result_settings(config.engine)}
    references = None
    if column := config.answer.reference_column:
        references = sample_references(found.url, found.shards, column, config.answer.load_format())
        if references.reading.kind:
            settings[REFERENCES] = references.reading.kind
    _refuse_link_to_output(found, ledger.store)
    moved_from = None if manifest is None else manifest["settings"].get(INPUT)
    if moved_from and known.are_among(found.shards):
        settings[INPUT] = moved_from  # the same shards, wherever they are now
    try:
        ledger.check_run(settings, may_change)
    except OutputError as error:
        hint = _MOVED if moved_from not in (None, settings[INPUT]) else ""
        raise OutputError(error.message + hint) from None
    lineage = _lineage(config, known, found)
    ledger.check_shards(found.shards)
    parts = tuple(split_parts(found.shards, config.output.rows_per_part))
    check_names(parts, ledger.store)
    tiers = context_tiers(config)
    by_row = settings_by_row(config, found)
    notes = (*found.notes, *_notes(known, found), *(() if by_row is None else by_row.notes()))
    source, section = config.input.path, config.input.model_copy(update={"path": found.url})
    config = config.model_copy(update={"input": section})
    return PreparedRun(
        config, columns, found.schema, traces, settings, lineage, ledger, tuple(found.shards),
        parts, tiers, references, notes, found.deciding, source, by_row,
    )  # fmt: skip


def settings_by_row(config: RunConfig, found: Input) -> SettingsByRow | None:
    """What the rows of the input set themselves, all of it checked; None if they can't.

    Raises `InputError` that names the wrong rows, `ConfigError` for a setting of the run with which
    rows can't have schemas of their own.
    """
    column = config.input.sampling_column
    if column is None:
        return None
    by_row = check_row_settings(
        config.input.path, found.shards, found.schema, column, config.sampling
    )
    if by_row.fields[SCHEMA]:
        hinders = {
            f"answer.format: {config.answer.format}": config.answer.format not in ("text", "json"),
            "answer.reference_column": config.answer.reference_column is not None,
            "thinking.early_answer": config.thinking.early_answer is not None,
        }
        if found_hinders := [name for name, is_set in hinders.items() if is_set]:
            raise ConfigError(
                f"{by_row.fields[SCHEMA]:,} rows have a json_schema of their own (column "
                f"{column}), which is not possible with {', '.join(found_hinders)}; take it out of "
                "the config (the formats text and json go with it), or the schemas out of the rows"
            )
    return by_row


def _as_begun(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    engine = engine_type(config.engine).as_begun(config.engine, settings)
    return config.model_copy(update={"engine": engine})


_MOVED = (
    "; an input that was moved or copied is accepted if all shards of the run are there, with the "
    "same names and content"
)


def _lineage(config: RunConfig, known: KnownShards, found: Input) -> Lineage:
    """The runs whose rows the input holds; raises `InputError` for new shards of another run."""
    if found.run is None:
        return known.lineage
    digest = fingerprint_of(found.run.settings)
    if known.lineage:
        if known.lineage[-1]["settings"] != digest:
            raise InputError(
                f"input.path {config.input.path} has new files, which another run has written, "
                "with other settings than the one whose output this run began with; take them "
                "away, or choose another output.path"
            )
        return known.lineage
    output = Storage(found.source).location
    return (*found.run.lineage, {"output": output, "settings": digest})


def _notes(known: KnownShards, found: Input) -> Iterator[str]:
    if found.stage:
        names = ", ".join(found.carried)
        yield (
            f"the input is the output of a run; of its columns, these are carried with "
            f"{stage_name(found.stage, '')} before their names: {names}"
        )
    if touched := known.touched(found.shards):
        yield (
            f"{len(touched):,} shards have other times or tags than when the run began, but the "
            f"same size and footer, and count as unchanged (the first: {touched[0].name})"
        )


def check_columns(config: RunConfig, found: Input) -> PromptColumns:
    """The columns that make a prompt; raises `InputError` if the input lacks a named column."""
    prompts = found.schema
    section, reference = config.input, config.answer.reference_column
    try:
        columns = prompt_columns(prompts, config.prompt_columns)
        if reference is not None and reference not in prompts.names:
            raise InputError(
                f"answer.reference_column is {reference}, but the input has only the columns "
                f"{', '.join(prompts.names)}"
            )
        check_column(prompts, section.length_column)
        if section.sampling_column is not None:
            check_settings_type(prompts, section.sampling_column)
    except InputError as error:
        left_out = "; input.columns leaves out all others" if section.columns else ""
        raise InputError(error.message + left_out + _folder_hint(found)) from None
    return columns


def _folder_hint(found: Input) -> str:
    """What to do about values that only the names of folders hold."""
    keys = {
        key: folder for key, folder in found.folder_keys.items() if key not in found.schema.names
    }
    if not keys:
        return ""
    return (
        f". Folder names such as {next(iter(keys.values()))} are not carried, since they are whole "
        "numbers (which input.where can use), or since the run began without them; write them into "
        "the files, for example with "
        "DuckDB: COPY (FROM read_parquet('IN/**/*.parquet', hive_partitioning=true)) TO 'NEW' "
        "(FORMAT parquet, PER_THREAD_OUTPUT true)"
    )


def context_tiers(config: RunConfig) -> tuple[ContextTier, ...]:
    """The engines of the run, by the length of their context; one tier unless it is ``auto``."""
    if config.engine.context != "auto":
        return (AS_CONFIGURED,)
    model = load_model_config(config.model.path, config.model.revision)
    return make_context_tiers(config, model)


def _refuse_link_to_output(found: Input, output: Storage) -> None:
    """Raise `OutputError` if a link in the input leads to the output, which are no prompts."""
    if not output.is_local:
        return
    root = os.path.realpath(output.root)
    for folder in {os.path.dirname(shard.path) for shard in found.shards}:
        is_link = not f"{os.path.abspath(folder)}/".startswith(f"{output.root}/")
        if is_link and f"{os.path.realpath(folder)}/".startswith(f"{root}/"):
            raise OutputError(
                f"{folder} in the input leads to output.path {output.url}; remove that link, or "
                "choose another output.path"
            )


def refuse_output_in_input(config: RunConfig, output: Storage) -> None:
    """Raise `OutputError` for an output below the input: the next run would read it as prompts."""
    folder = Storage(config.input.path)
    if folder.is_folder() and f"{output.root}/".startswith(f"{folder.root}/"):
        raise OutputError(
            f"output.path {config.output.path} lies in input.path {config.input.path}; choose a "
            "folder outside it"
        )
