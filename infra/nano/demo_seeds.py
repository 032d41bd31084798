"""Write a demo's seeds: ``python -m infra.nano.demo_seeds configs/synthesize-seeds``.

60 pairs of numbers that training never shows qwq-nano, with their sums, for
configs/synthesize.yaml.
"""

import argparse
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.nano.tasks import unseen_operands

PAIRS = 60


def main() -> None:
    """Write one shard to the folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(11)
    pairs = [unseen_operands(rng) for _ in range(PAIRS)]
    rows = [{"a": a, "b": b, "sum": str(a + b)} for a, b in pairs]
    pq.write_table(pa.Table.from_pylist(rows), folder / "sums.parquet")


if __name__ == "__main__":
    main()
