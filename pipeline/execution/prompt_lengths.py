"""Counts the tokens of each prompt, in Ray tasks, before any engine starts."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.config.run_config import RunConfig
from pipeline.errors import RowError
from pipeline.execution.cluster import results
from pipeline.execution.context_tiers import UNRENDERED, ContextTier, assign, divide
from pipeline.execution.row_prompts import RowPrompts
from pipeline.execution.task_deaths import ends_of, refuse_endless_deaths
from pipeline.input.rows import read_bundle
from pipeline.planning import Range, bundles
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.render import PromptRenderer, TableRow
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.think_format import ThinkFormat
from pipeline.schema import with_origin

ROWS_A_TASK = 4096


def by_tier(
    config: RunConfig,
    columns: PromptColumns,
    prompts: pa.Schema,
    tiers: tuple[ContextTier, ...],
    todo: Sequence[Range],
) -> list[tuple[ContextTier, tuple[Range, ...]]]:
    """The tiers that get rows of ``todo``, with their rows. Counts nothing if there is one tier."""
    if len(tiers) == 1:
        return [(tiers[0], tuple(todo))] if todo else []
    shares: list[list[Range]] = [[] for _ in tiers]
    grouped = list(bundles(todo, ROWS_A_TASK))
    common = ray.put((config, columns, prompts))
    counts = [_count.remote(common, bundle) for bundle in grouped]
    for bundle, (tokens, limits) in zip(grouped, results(counts), strict=True):
        for tier, piece in divide(bundle, assign(tiers, tokens, limits)):
            shares[tier].append(piece)
    return [(tier, tuple(share)) for tier, share in zip(tiers, shares, strict=True) if share]


def count_tokens(
    config: RunConfig, columns: PromptColumns, prompts: pa.Schema, bundle: Sequence[Range]
) -> Any:
    """What each row takes of a context: an int64 array of shape (2, rows).

    The tokens of its prompt, `UNRENDERED` without one; and its own limit of output tokens.
    """
    renderer = _renderer(config.model.path, config.model.revision, config.think_format)
    prepared = RowPrompts(config, columns)

    def tokens(row: TableRow) -> tuple[int, int]:
        try:
            prompt = prepared.render(renderer, row)
        except RowError:
            return UNRENDERED, config.sampling.max_tokens
        return len(prompt.token_ids), prepared.max_tokens(row)

    tables = read_bundle(config.input.path, bundle, (), with_origin(prompts))
    rows = (TableRow(table, i) for table in tables for i in range(table.num_rows))
    return np.fromiter(map(tokens, rows), np.dtype((np.int64, 2))).T


@ray.remote
def _count(common: tuple[RunConfig, PromptColumns, pa.Schema], bundle: list[Range]) -> Any:
    refuse_endless_deaths("counts the tokens of", lambda: ends_of(bundle))
    return count_tokens(*common, bundle)


@lru_cache(maxsize=1)
def _renderer(path: str, revision: str | None, think_format: ThinkFormat) -> PromptRenderer:
    """A renderer that the worker process keeps for its next task."""
    return PromptRenderer(load_tokenizer(path, revision), think_format=think_format)
