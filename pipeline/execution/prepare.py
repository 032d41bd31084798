"""Everything that can be refused is refused here, before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_type
from pipeline.errors import InputError, OutputError
from pipeline.execution.context_tiers import AS_CONFIGURED, ContextTier, make_context_tiers
from pipeline.input.longest_first import ByColumn, ByTraces, Lengths, check_column
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
    """A run made ready: everything that can be refused has been."""

    config: RunConfig
    columns: PromptColumns
    prompts: pa.Schema
    traces: pa.Schema
    settings: dict[str, Any]
    ledger: Ledger
    shards: tuple[Shard, ...]
    parts: tuple[Part, ...]
    tiers: tuple[ContextTier, ...]

    @property
    def plan(self) -> Plan:
        """What is to do of the run itself, by a listing made now."""
        return passes.plan_run(self.ledger, self.parts)

    def lengths(self, run_pass: Pass) -> Lengths | None:
        """What says how long the traces of ``run_pass`` will be, if anything does."""
        if run_pass.first:
            return ByTraces(self.ledger.store.location, self.names)
        column = self.config.input.length_column
        return None if column is None else ByColumn(column)

    @property
    def names(self) -> dict[str, str]:
        """Our columns: their names in this run."""
        return {name: self.config.output.rename.get(name, name) for name in TRACE_COLUMNS}

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the software that makes the rows, the engine's included."""
        return software_versions(engine_type(self.config.engine).packages)

    def metadata(self, run_pass: Pass) -> dict[str, Any]:
        """What each output file of ``run_pass`` says of its making."""
        settings = {**self.settings, SAMPLES: run_pass.stop}
        return {"columns": self.names, "settings": settings, "versions": self.versions}


def prepare(config: RunConfig, may_change: Sequence[str] = ()) -> PreparedRun:
    """Read footers and names only; raises a `QwqBatchError` for whatever would fail later.

    ``may_change``: how settings begin that need not be those of the run that is there.
    """
    engine = engine_type(config.engine)
    engine.check(config.engine)
    for url in (config.input.path, config.output.path):
        check_reachable(url)
    ledger = Ledger(Storage(config.output.path))
    shards, prompts = find_shards(config.input.path, ledger.known_shards())
    wanted = config.input
    columns = prompt_columns(
        prompts,
        PromptColumns(
            wanted.prompt_column,
            wanted.messages_column,
            wanted.tools_column,
            config.prompt.template,
        ),
    )
    reference = config.answer.reference_column
    if reference is not None and reference not in prompts.names:
        raise InputError(
            f"answer.reference_column is {reference}, but the input has only the columns "
            f"{', '.join(prompts.names)}"
        )
    check_column(prompts, wanted.length_column)
    traces = output_schema(prompts, config.output.rename, config.output.raw_text)
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    settings = run_settings(config, columns, tokenizer.chat_template)
    settings |= engine.result_settings(config.engine)
    refuse_output_in_input(config, ledger.store)
    ledger.check_run(settings, may_change)
    ledger.check_shards(shards)
    parts = tuple(split_parts(shards, config.output.rows_per_part))
    tiers: tuple[ContextTier, ...] = (AS_CONFIGURED,)
    if config.engine.context == "auto":
        model = load_model_config(config.model.path, config.model.revision)
        tiers = make_context_tiers(config, model)
    return PreparedRun(
        config, columns, prompts, traces, settings, ledger, tuple(shards), parts, tiers
    )


def refuse_output_in_input(config: RunConfig, output: Storage) -> None:
    """An output below the input folder would be read as prompts by the next run."""
    folder = Storage(config.input.path)
    if folder.is_folder() and f"{output.root}/".startswith(f"{folder.root}/"):
        raise OutputError(
            f"output.path {config.output.path} lies in input.path {config.input.path}; choose a "
            "folder outside it"
        )
