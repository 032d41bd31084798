"""How many rows a block has, how many are in flight, how many are written at once."""

from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.execution.block_sizes import concurrency, rows_a_write


@pytest.mark.parametrize(
    ("sampling", "engine", "samples", "rows", "expected"),
    [
        ({}, {}, 1, 5000, (1, 80)),  # QwQ's 32,768 tokens: 64 slots and some that wait
        ({}, {}, 64, 5000, (1, 2)),  # the samples of one row fill all slots
        ({"max_tokens": 16_384}, {}, 1, 5000, (3, 53)),
        ({"max_tokens": 2048}, {}, 1, 240, (29, 11)),  # eight blocks for the engine
        ({"max_tokens": 64}, {"replicas": 4}, 1, 10**6, (256, 2)),
        ({}, {}, 1, 5, (1, 80)),
        ({}, {"block_rows": 16}, 1, 5000, (16, 17)),
        ({}, {"block_rows": 16, "rows_in_flight": 64}, 1, 5000, (16, 4)),
    ],
)
def test_blocks_are_small_where_traces_are_long(
    sampling: Any, engine: Any, samples: int, rows: int, expected: tuple[int, int]
) -> None:
    config = parse_config(
        {
            "input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
            "sampling": sampling, "engine": engine,
        }
    )  # fmt: skip
    assert concurrency(config, samples, rows) == expected


@pytest.mark.parametrize(
    ("at_once", "max_tokens", "rows", "expected"),
    [
        (512, 32_768, 5000, 8),  # eight engines with QwQ's traces: a few seconds
        (64, 32_768, 5000, 1),
        (512, 512, 120_000, 512),
        (512, 512, 4096, 64),  # a small run, a small share of it
        (512, 512, 10, 1),
    ],
)
def test_rows_are_written_together_that_end_within_seconds(
    at_once: int, max_tokens: int, rows: int, expected: int
) -> None:
    assert rows_a_write(at_once, max_tokens, rows) == expected
