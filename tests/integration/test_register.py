"""An Iceberg table that follows a run on a real Ray cluster."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pyiceberg.catalog import load_catalog

from jobs.register import Registered, register
from pipeline.errors import OutputError
from pipeline.execution import run as flow
from tests.conftest import MakeConfig, write_shards

TABLE = "lab.traces"
PART = 4  # rows
# Some seconds: eight rows at once, each for almost half a second.
SLOW = {
    "block_rows": 2,
    "vllm": {"max_num_seqs": 8},
    "simulated": {"tokens_median": 40, "tokens_sigma": 0.2, "seconds_per_token": 0.01},
}


def ids_in(catalog: str) -> list[int]:
    """What DuckDB reads from the table now, sorted."""
    connection = load_catalog(catalog).load_table(TABLE).scan().to_duckdb("traces")
    return [row[0] for row in connection.execute("SELECT id FROM traces ORDER BY id").fetchall()]


def test_reader_beside_a_run_sees_whole_parts_each_once(
    tmp_path: Path, make_config: MakeConfig, iceberg_catalog: str
) -> None:
    rows = write_shards(tmp_path / "in", [60, 36])
    config = make_config(output={"rows_per_part": PART}, engine=SLOW)
    output, over = config.output.path, threading.Event()

    def follow() -> list[list[int]]:
        """Register and read until the run is over; what each reading saw."""
        seen = list[list[int]]()
        while not over.is_set():
            try:
                done = register(output, iceberg_catalog, TABLE)
            except OutputError:  # no run yet, or no finished part
                over.wait(0.05)
                continue
            seen.append(ids_in(iceberg_catalog))
            assert done.replaced == 0
            assert len(seen[-1]) == PART * (done.added + done.there)
        return seen

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(follow)
        try:
            assert flow.run(config).is_complete
        finally:
            over.set()
        seen = following.result()
    for ids in seen:
        wholes = {part * PART + i for part in {each // PART for each in ids} for i in range(PART)}
        assert ids == sorted(wholes)
    sizes = [len(ids) for ids in seen]
    assert sizes == sorted(sizes)
    assert len({size for size in sizes if size < rows}) >= 3, sizes
    register(output, iceberg_catalog, TABLE)
    assert ids_in(iceberg_catalog) == list(range(rows))
    assert register(output, iceberg_catalog, TABLE) == Registered(0, 0, rows // PART)
