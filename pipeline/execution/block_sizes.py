"""How many rows a block has, how many are in flight, how many one task writes; no I/O.

Measured, see pipeline/DESIGN.md: what keeps engines full, and what a block costs.
"""

import math

from pipeline.config.run_config import RunConfig
from pipeline.engines import engine_slots

TOKENS_A_BLOCK, MOST_BLOCK_ROWS, BLOCKS_AN_ENGINE = 60_000, 256, 8
# A task writes the rows that end while each slot generates this many tokens: some seconds. But at
# least this many tasks write a run, so that durable rows keep up with finished rows.
TOKENS_A_WRITE, LEAST_WRITES = 512, 64


def concurrency(config: RunConfig, samples: int, rows: int) -> tuple[int, int]:
    """The rows of a block, and the blocks in flight at one engine.

    A block holds its place until its slowest row ends. So blocks of long traces are small, and the
    larger blocks are, the more rows must be in flight to keep the engine's slots full. ``samples``:
    of a row at once; ``rows``: to do.
    """
    engine, policy = config.engine, config.sampling
    block_rows = engine.block_rows or max(
        1,
        min(
            TOKENS_A_BLOCK // (policy.max_tokens * samples),
            MOST_BLOCK_ROWS,
            rows // (BLOCKS_AN_ENGINE * engine.max_replicas),
        ),
    )
    in_flight = (
        engine.rows_in_flight or oversubscription(block_rows) * engine_slots(config) / samples
    )
    return block_rows, max(2, math.ceil(in_flight / block_rows))


def oversubscription(block_rows: int) -> float:
    """How many times its slots an engine must have in flight, in blocks of ``block_rows``."""
    return 1.25 + 0.75 * math.log2(block_rows)


def rows_a_write(at_once: int, max_tokens: int, rows: int) -> int:
    """How many finished rows one task writes; ``rows`` are to do, ``at_once`` of them run."""
    return max(1, min(at_once * TOKENS_A_WRITE // max_tokens, rows // LEAST_WRITES))
