"""What `plan` and `show` print: the plan and rendered prompts, and traces of an output."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from pipeline.engines import engine_type
from pipeline.errors import OutputError, RowError
from pipeline.execution.block_sizes import concurrency
from pipeline.execution.context_tiers import assign
from pipeline.execution.prepare import PreparedRun
from pipeline.execution.prompt_lengths import count_tokens
from pipeline.execution.row_prompts import RowPrompts
from pipeline.input.rows import read_rows
from pipeline.insight.text import error_kind, shortened
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.planning import PARQUET, Plan, Range, bundles
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.schema import plain_rows
from pipeline.storage import Storage

MAX_SHOWN_CHARACTERS = 1500
# Rows whose prompts are counted to show how rows divide into tiers.
COUNTED_ROWS = 4096
SAMPLED_ROWS = 256
TOKEN_KINDS = ("prompt", "think", "answer")


def prompts(prepared: PreparedRun, count: int) -> Iterator[dict[str, Any]]:
    """The first ``count`` prompts of the input, as the engine will get them.

    Each is ``{"prompt": text, "prompt_tokens": number}``. For a row that can't be rendered both are
    None, and ``error`` says why.
    """
    config = prepared.config
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    renderer = PromptRenderer(tokenizer, think_format=config.think_format)
    rendered = RowPrompts(config, prepared.columns)
    for row in _first_rows(prepared, count):
        try:
            prompt = rendered.render(renderer, row)
        except RowError as error:
            yield {"prompt": None, "prompt_tokens": None, "error": str(error)}
            continue
        yield {"prompt": prompt.text, "prompt_tokens": len(prompt.token_ids)}


@dataclass(frozen=True)
class Sample:
    """What came of rendering the first rows; ``errors``: the row errors by kind."""

    rows: int
    errors: Counter[str]

    def __str__(self) -> str:
        kinds = "; ".join(f"{count:,} x {kind}" for kind, count in self.errors.most_common())
        failed = self.errors.total()
        return f"{failed:,} of the first {self.rows:,} rows can't be rendered ({kinds})"


def sample(prepared: PreparedRun) -> Sample:
    """Render the first `SAMPLED_ROWS` rows, and count those that would fail."""
    rows, errors = 0, Counter[str]()
    for prompt in prompts(prepared, SAMPLED_ROWS):
        rows += 1
        if prompt["prompt"] is None:
            errors[error_kind(prompt["error"])] += 1
    return Sample(rows, errors)


def plan_lines(prepared: PreparedRun) -> Iterator[str]:
    """The plan as a person reads it: input, output, engines, sampling, and the first prompt."""
    config, plan = prepared.config, prepared.plan
    shards = {part.shard.name for part in plan.parts}
    yield f"input     {prepared.source}: {len(shards):,} shards, {plan.rows:,} rows"
    for note in prepared.notes:
        yield f"note      {note}"
    yield (
        f"output    {config.output.path}: {len(plan.parts):,} parts, {plan.parts_done:,} done; "
        f"{plan.rows_todo:,} rows to do"
    )
    yield f"columns   {', '.join(prepared.traces.names)}"
    engine = config.engine
    sized = prepared.sized(config)
    block_rows, blocks = concurrency(sized, config.sampling.first_draw, plan.rows_todo)
    yield (
        f"engines   {engine.replicas_text} x {engine.kind} on {engine.ranks} {engine.device}, "
        f"{config.model.path} ({config.model.preset}), {blocks * block_rows} rows in flight "
        f"each, in blocks of {block_rows}"
    )
    yield from engine_type(engine).plan_lines(engine)
    yield from _tier_lines(prepared, plan)
    policy = {key: value for key, value in vars(config.sampling).items() if value is not None}
    yield "sampling  " + ", ".join(f"{key} {value}" for key, value in policy.items())
    if (early := config.thinking.early_answer) is not None:
        yield (
            f"early     thinking is closed when {early.agree} probes in a row agree, at least "
            f"{early.every_tokens} tokens apart; {early.control_share:.1%} of the rows are the "
            "control group"
        )
    sampled = sample(prepared)
    if sampled.errors:
        yield f"warning   {sampled}"
    if prepared.references is not None:
        yield f"answers   {prepared.references.summary}"
        yield from (f"          {line}" for line in prepared.references.lines())
    for prompt in prompts(prepared, 1):
        if prompt["prompt"] is None:
            yield f"prompt 1  {prompt['error']}"
        else:
            yield f"prompt 1  {prompt['prompt_tokens']} tokens"
            yield prompt["prompt"]


def _tier_lines(prepared: PreparedRun, plan: Plan) -> Iterator[str]:
    """Rows to do by tier, counted over the first `COUNTED_ROWS`; nothing if there is one tier."""
    first = next(bundles(plan.todo, COUNTED_ROWS), [])
    if len(prepared.tiers) == 1 or not first:
        return
    tokens, limits = count_tokens(prepared.config, prepared.columns, prepared.prompts, first)
    numbers = assign(prepared.tiers, tokens, limits).tolist()
    sampled = len(numbers) < plan.rows_todo
    scope = f" of the first {len(numbers):,} to do" if sampled else ""
    for number, tier in enumerate(prepared.tiers):
        yield f"tier      {tier.name}: {numbers.count(number):,} rows{scope}"


def trace_lines(output: str, count: int, state: str | None) -> Iterator[str]:
    """The first ``count`` traces of ``output`` (only those in ``state``, if given), readable.

    Raises `OutputError` if no run has written ``output``.
    """
    store = Storage(output)
    ledger = Ledger(store)
    if ledger.manifest() is None:
        raise OutputError(f"{output} is not the output of a run (it has no manifest)")
    parts = sorted(name for name in ledger.listing().finished_parts() if name.endswith(PARQUET))
    left = count
    for name in parts:
        names = part_metadata(store, name)["columns"]
        filters = None if state is None else [(names["state"], "==", state)]
        with store.open(name) as file:
            rows = plain_rows(pq.read_table(file, filters=filters).slice(0, left))
        for row in rows:
            yield from _trace_lines(name, row, names)
        left -= len(rows)
        if left <= 0:
            return
    if left == count:
        yield "no trace matches" if parts else "no part is finished yet"


def _first_rows(prepared: PreparedRun, count: int) -> Iterator[TableRow]:
    for part in prepared.parts:
        rows = Range(part, part.start, min(part.stop, part.start + count))
        for table in read_rows(prepared.config.input.path, rows, prepared.prompts):
            count -= table.num_rows
            yield from (TableRow(table, i) for i in range(table.num_rows))
        if count <= 0:
            return


def _trace_lines(part: str, row: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    """One trace; ``names``: our column: its name in ``row``."""
    trace = {name: row.get(column) for name, column in names.items()}
    tokens = ", ".join(f"{trace[f'{kind}_tokens'] or 0} {kind}" for kind in TOKEN_KINDS)
    yield f"== {part}, sample {trace['sample']}: {trace['state']}; tokens: {tokens}"
    for column, value in row.items():
        if column not in names.values():
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{column}: {_shown(text)}"
    for name in ("think", "answer", "error"):
        if trace[name] is not None:
            yield f"-- {name}"
            yield _shown(str(trace[name]))
    yield ""


def _shown(text: str) -> str:
    return shortened(text, MAX_SHOWN_CHARACTERS)
