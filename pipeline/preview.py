"""What `plan` and `show` print: rendered prompts before a run, traces after it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import OutputError, RowError
from pipeline.flow import Job, concurrency
from pipeline.lanes import assign
from pipeline.ledger import Ledger
from pipeline.lengths import count_tokens
from pipeline.merge import part_metadata
from pipeline.model import load_tokenizer
from pipeline.plan import PARQUET, Plan, Range, bundles
from pipeline.prompts import PromptRenderer, TableRow, render_row
from pipeline.source import read_rows
from pipeline.storage import Storage

SHOWN_CHARACTERS = 1500
COUNTED_ROWS = 4096
TOKEN_KINDS = ("prompt", "think", "answer")


def prompts(job: Job, count: int) -> Iterator[dict[str, Any]]:
    """The first ``count`` prompts of the input as the engine will get them.

    Each has ``prompt`` and ``prompt_tokens``; a row that can't be rendered has null for both and
    an ``error``.
    """
    config = job.config
    tokenizer = load_tokenizer(config.model.path, config.model.revision)
    renderer = PromptRenderer(tokenizer, think_format=config.think_format)
    for row in _first_rows(job, count):
        try:
            prompt = render_row(
                renderer, row, job.columns, config.prompt.system, config.suffix_text
            )
        except RowError as error:
            yield {"prompt": None, "prompt_tokens": None, "error": str(error)}
            continue
        yield {"prompt": prompt.text, "prompt_tokens": len(prompt.token_ids)}


def plan_lines(job: Job) -> Iterator[str]:
    """The plan as a person reads it: input, output, engines, sampling, the first prompt."""
    config, plan = job.config, job.plan
    shards = {part.shard.name for part in plan.parts}
    yield f"input     {config.input.path}: {len(shards):,} shards, {plan.rows:,} rows"
    yield (
        f"output    {config.output.path}: {len(plan.parts):,} parts, {plan.parts_done:,} done; "
        f"{plan.rows_todo:,} rows to do"
    )
    yield f"columns   {', '.join(job.traces.names)}"
    engine = config.engine
    block_rows, blocks = concurrency(config, config.policy.first_draw, plan.rows_todo)
    yield (
        f"engines   {engine.replicas} x {engine.kind} on {engine.ranks} {engine.device}, "
        f"{config.model.path} ({config.model.preset}), {blocks * block_rows} rows in flight "
        f"each, in blocks of {block_rows}"
    )
    if engine.vllm:
        yield f"vllm      {json.dumps(engine.vllm)}"
    yield from _lane_lines(job, plan)
    policy = {key: value for key, value in vars(config.policy).items() if value is not None}
    yield "sampling  " + ", ".join(f"{key} {value}" for key, value in policy.items())
    for prompt in prompts(job, 1):
        yield f"prompt 1  {prompt['prompt_tokens']} tokens"
        yield prompt["prompt"] if prompt["prompt"] is not None else prompt["error"]


def _lane_lines(job: Job, plan: Plan) -> Iterator[str]:
    """How many of the rows to do go to which lane; of many, the first are looked at."""
    first = next(bundles(plan.todo, COUNTED_ROWS), [])
    if len(job.lanes) == 1 or not first:
        return
    tokens = count_tokens(job.config, job.columns, job.prompts, first)
    numbers = assign(job.lanes, tokens, job.config.policy.max_tokens).tolist()
    of = f" of the first {len(numbers):,} to do" if len(numbers) < plan.rows_todo else ""
    for number, lane in enumerate(job.lanes):
        yield f"lane      {lane.name}: {numbers.count(number):,} rows{of}"


def trace_lines(output: str, count: int, state: str | None) -> Iterator[str]:
    """The first ``count`` traces of an output (in ``state``, if given), readable."""
    store = Storage(output)
    ledger = Ledger(store)
    if ledger.manifest() is None:
        raise OutputError(f"{output} is not the output of a run (it has no manifest)")
    parts = sorted(name for name in ledger.contents().parts() if name.endswith(PARQUET))
    left = count
    for name in parts:
        names = part_metadata(store, name)["columns"]
        filters = None if state is None else [(names["state"], "==", state)]
        with store.open(name) as file:
            rows = pq.read_table(file, filters=filters).slice(0, left).to_pylist()
        for row in rows:
            yield from _trace_lines(name, row, names)
        left -= len(rows)
        if left <= 0:
            return
    if left == count:
        yield "no such traces" if parts else "no part is finished yet"


def _first_rows(job: Job, count: int) -> Iterator[TableRow]:
    for part in job.parts:
        piece = Range(part, part.start, min(part.stop, part.start + count))
        for table in read_rows(job.config.input.path, piece, job.prompts):
            count -= table.num_rows
            yield from (TableRow(table, i) for i in range(table.num_rows))
        if count <= 0:
            return


def _trace_lines(part: str, row: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    ours = {name: row.get(column) for name, column in names.items()}
    theirs = {key: value for key, value in row.items() if key not in names.values()}
    tokens = ", ".join(f"{ours[f'{kind}_tokens'] or 0} {kind}" for kind in TOKEN_KINDS)
    yield f"== {part}, sample {ours['sample']}: {ours['state']}; tokens: {tokens}"
    for key, value in theirs.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        yield f"{key}: {_short(text)}"
    for key in ("think", "answer", "error"):
        if ours[key] is not None:
            yield f"-- {key}"
            yield _short(str(ours[key]))
    yield ""


def _short(text: str) -> str:
    """``text``, its middle left out where it is long; control characters shown, not sent."""
    if len(text) > SHOWN_CHARACTERS:
        half = SHOWN_CHARACTERS // 2
        left_out = len(text) - 2 * half
        text = f"{text[:half]}\n… {left_out:,} characters left out …\n{text[-half:]}"
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)
