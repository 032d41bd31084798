"""A run by the command with its input, model and output on an object store; S3 is in `tests/e2e`."""

import gzip
import json
from io import BytesIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.prompts.tokenizer import BUILT_IN
from pipeline.storage import Storage
from tests.conftest import LONG_ON_AZURE
from tests.e2e.command import qwq_batch
from tests.object_server import ObjectServer

ROWS = 30


@pytest.mark.parametrize("place", ["google_cloud", LONG_ON_AZURE])
def test_all_of_it_is_on_an_object_store(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: ObjectServer = request.getfixturevalue(place)
    store = Storage(f"{server.bucket('whole')}/{tmp_path.name}")
    lines = "".join(json.dumps({"id": i, "prompt": f"What is {i}?"}) + "\n" for i in range(ROWS))
    store.put("in/a.jsonl.gz", gzip.compress(lines.encode()))
    for file in (BUILT_IN / "qwq-nano").glob("*.j*"):
        store.put(f"model/{file.name}", file.read_bytes())
    out = f"{store.url}/out"
    config = tmp_path / "config.yaml"
    simulated = {"tokens_median": 20, "seconds_per_token": 0.0001}
    settings = {
        "input": {"path": f"{store.url}/in"}, "output": {"path": out, "rows_per_part": 16},
        "model": {"path": f"{store.url}/model"},
        "engine": {"kind": "simulated", "device": "cpu", "block_rows": 4, "simulated": simulated},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    done = qwq_batch("run", str(config))
    assert done.returncode == 0, done.stderr
    parts = [info.name for info in store.files("out") if info.name.endswith(".parquet")]
    parts = [name for name in parts if "__qwq" not in name]
    tables = [pq.read_table(BytesIO(store.read(name))) for name in parts]
    assert [i for table in tables for i in table["id"].to_pylist()] == list(range(ROWS))
    before = store.files("out")
    again = qwq_batch("run", str(config))
    assert again.returncode == 0, again.stderr
    assert [info for info in store.files("out") if info.name in parts] == [
        info for info in before if info.name in parts
    ]
    assert f"{ROWS} of {ROWS} are durable" in qwq_batch("status", out).stdout
    assert "What is " in qwq_batch("show", out, "--rows", "1").stdout
    assert qwq_batch("report", out, "--to", str(tmp_path / "report.html")).returncode == 0
    asked = qwq_batch("retry", str(config), "--state", "finished")
    assert asked.returncode == 0, asked.stderr
    attempts = pq.read_table(BytesIO(store.read(parts[0])))["attempt"].to_pylist()
    assert set(attempts) == {1}
