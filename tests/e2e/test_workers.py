"""Two workers with engines of unequal size share one output, on the real engine.

Two engines at once take two cores for minutes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import NOISE, ROOT

WORDS = ("strawberry", "banana", "mississippi", "committee", "bookkeeper")
LETTERS = "abeiknoprsty"
ROWS = 240


def figures(record: Path) -> dict[str, Any]:
    """The last line of a worker's record."""
    last: dict[str, Any] = json.loads(record.read_text().splitlines()[-1])
    return last


@pytest.mark.long
def test_two_workers_of_unequal_size_share_the_rows(tmp_path: Path) -> None:
    pairs = [(letter, word) for letter in LETTERS for word in WORDS][: ROWS // 4]
    prompts = [f'How many {letter}\'s are in the word "{word}"?' for letter, word in pairs] * 4
    (tmp_path / "in").mkdir()
    table = pa.table({"id": range(ROWS), "prompt": prompts})
    for half in range(2):
        piece = table.slice(half * ROWS // 2, ROWS // 2)
        pq.write_table(piece, tmp_path / f"in/{half}.parquet")
    common = [f"input.path={tmp_path / 'in'}", f"output.path={tmp_path / 'out'}"]
    common += ["output.rows_per_part=50", "engine.block_rows=1"]
    logs = [tmp_path / f"{slots}.log" for slots in (8, 16)]
    workers = []
    for slots, log in zip((8, 16), logs, strict=True):
        settings = [*common, f"engine.vllm.max_num_seqs={slots}"]
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "pipeline", "work", "configs/demo.yaml", *words]
        with log.open("wb") as out:
            workers.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out))
    codes = [worker.wait(timeout=500) for worker in workers]
    printed = [log.read_text() for log in logs]
    assert codes == [0, 0], printed
    for text in printed:
        assert f"{ROWS} of {ROWS} traces in" in text
        assert not NOISE.search(text), text
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    traces = pa.concat_tables(map(pq.read_table, parts)).to_pylist()
    assert [trace["id"] for trace in traces] == list(range(ROWS))
    assert sum(trace["state"] == "finished" for trace in traces) > ROWS * 0.9
    done = [figures(record) for record in (tmp_path / "out/__qwq/record").iterdir()]
    shares = {each["fleet"]["slots"]: each["rows"] for each in done}
    assert sum(shares.values()) == ROWS, "no row was generated twice"
    assert all(rows > 0 for rows in shares.values()), shares
    assert not list((tmp_path / "out/__qwq/workers").iterdir())
