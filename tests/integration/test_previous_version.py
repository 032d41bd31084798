"""An output that version 0.1.0 began (commit f667a82) is read, continued and retried.

It lies in ``tests/data/output-0.1.0``: four finished parts with a closed retry, and two shards that
a SIGTERM broke off, with fragments in the journal and checkpoints of running traces.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.execution import run as flow
from pipeline.insight.html_report import page
from pipeline.insight.status import status
from pipeline.monitor.history import all_figures
from pipeline.storage import Storage

DATA = Path(__file__).parents[1] / "data" / "output-0.1.0"
RECORDED_FOLDER = "/tmp/qwq-old"
ROWS, ROWS_DURABLE, ROWS_WITH_CHECKPOINT = 32, 16 + 6, 10


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A copy of the output, in which the recorded location and times of the input are true."""
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "config.yaml", *(tmp_path / "out/__qwq").glob("*.yaml")):
        path.write_text(path.read_text().replace(RECORDED_FOLDER, str(tmp_path)))
    for name, shard in yaml.safe_load((tmp_path / "out/__qwq/shards.yaml").read_text()).items():
        if name != "_schema":
            os.utime(tmp_path / "in" / name, ns=(int(shard["tag"]), int(shard["tag"])))
    return parse_config(yaml.safe_load((tmp_path / "config.yaml").read_text()))


def _parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("out/*.parquet")}


def _rows(folder: Path, pattern: str) -> dict[int, dict[str, Any]]:
    """The traces of the files that fit ``pattern``, by id; a fragment's own columns left out."""
    columns = pq.read_schema(DATA / "out/shard-00000.00000.parquet").names
    paths = sorted(folder.glob(pattern))
    rows = [row for path in paths for row in pq.read_table(path, columns=columns).to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def test_status_and_report_read_it(config: RunConfig) -> None:
    seen = status(config.output.path)
    assert (seen.rows, seen.rows_durable) == (ROWS, ROWS_DURABLE)
    assert (seen.parts, seen.parts_done) == (8, 4)
    assert not seen.is_running
    assert seen.open_passes == ()
    assert seen.summary.states == {"finished": 16}
    last = [run[-1] for run in all_figures(Storage(config.output.path))]
    assert [(f.rows_to_do, f.tier, f.engine_pool.slots) for f in last] == [
        (16, "", 64), (7, "", 64), (16, "", 64),
    ]  # fmt: skip
    report = page(config.output.path)
    assert f"<b>{ROWS_DURABLE}</b><span>rows durable, of {ROWS}" in report
    assert "Over time" in report


def test_a_run_continues_it_and_a_retry_works_on_it(config: RunConfig, tmp_path: Path) -> None:
    finished = _parts(tmp_path)
    fragments = _rows(tmp_path, "out/__qwq/journal/*/*.rows")
    running = [
        row
        for path in tmp_path.glob("out/__qwq/running/*/*.running")
        for row in pq.read_table(path, columns=["row", "token_ids"]).to_pylist()
    ]
    assert len(running) == ROWS_WITH_CHECKPOINT

    assert flow.run(config).is_complete
    assert {name: data for name, data in _parts(tmp_path).items() if name in finished} == finished
    rows = _rows(tmp_path, "out/*.parquet")
    assert list(rows) == list(range(ROWS))
    votes = dict.fromkeys(("vote", "agreement"))  # they come when a part has all its rows
    assert {number: {**rows[number], **votes} for number in fragments} == fragments
    continued = {number for number, row in rows.items() if row["carried_tokens"]}
    assert len(continued) == ROWS_WITH_CHECKPOINT
    assert all(rows[number]["carried_tokens"] == 64 for number in continued)
    truncated = {number for number, row in rows.items() if row["state"] == "truncated"}
    assert truncated

    before = _parts(tmp_path)
    longer = {**config.model_dump(exclude_unset=True), "sampling": {"max_tokens": 2000}}
    flow.retry(parse_config(longer), ["truncated"])
    after = _rows(tmp_path, "out/*.parquet")
    assert list(after) == list(range(ROWS))
    assert {number for number, row in after.items() if row["attempt"] == 2} == truncated
    untouched = {number: row for number, row in rows.items() if number not in truncated}
    assert {number: after[number] for number in untouched} == untouched
    assert {name: data for name, data in _parts(tmp_path).items() if name in finished} == finished
    assert _parts(tmp_path).keys() == before.keys()
