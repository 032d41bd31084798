"""Write a demo's seeds: ``python -m infra.nano.demo_seeds configs/synthesize-seeds``.

60 pairs of numbers that training never shows qwq-nano, with their sums, for
configs/synthesize.yaml.
"""

import random

import pyarrow as pa

from infra.nano.shards import write_shards
from infra.nano.tasks import unseen_operands

PAIRS = 60


def main() -> None:
    """Write one shard to the folder on the command line."""
    rng = random.Random(11)
    pairs = [unseen_operands(rng) for _ in range(PAIRS)]
    rows = [{"a": a, "b": b, "sum": str(a + b)} for a, b in pairs]
    write_shards(__doc__, ["sums.parquet"], pa.Table.from_pylist(rows))


if __name__ == "__main__":
    main()
