"""Hugging Face `datasets` loads an output as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.execution import run as flow
from pipeline.output.layout import BOOKKEEPING
from pipeline.schema import TRACE_FIELDS
from tests.conftest import MakeConfig, write_shards

LOAD = """
import json, sys
import datasets
kind, folder, cache = sys.argv[1:]
more = {"data_dir": folder} if kind == "parquet" else {}
loaded = datasets.load_dataset(kind, cache_dir=cache, **more)
data = loaded["train"]
schema = data.features.arrow_schema
print(json.dumps({
    "splits": list(loaded),
    "types": {name: str(schema.field(name).type) for name in schema.names},
    "rows": data.to_list(),
}))
"""


def load(kind: str, folder: Path, cache: Path) -> dict[str, Any]:
    """What a process of its own, which can't ask the hub, loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, kind, str(folder), str(cache)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_an_output_loads_as_it_is_finished_or_not(
    tmp_path: Path, make_config: MakeConfig, kind: str
) -> None:
    write_shards(tmp_path / "in", [6, 3, 2])
    form = {"type": "object", "properties": {"n": {"type": "integer"}}}
    simulated = {"tokens_median": 20, "seconds_per_token": 0}
    out = tmp_path / "out"
    for answer in ({"format": "json", "json_schema": form}, {}):
        shutil.rmtree(out, ignore_errors=True)
        config = make_config(
            output={"rows_per_part": 2, "raw_text": True},
            answer=answer,
            engine={"simulated": simulated},
        )
        flow.run(config)
        name = str(out) if kind == "folder" else kind
        found = load(name, out, tmp_path / f"cache-{len(answer)}")
        assert found["splits"] == ["train"]
        wanted = {field.name: str(field.type) for field in TRACE_FIELDS}
        assert found["types"] == {"id": "int64", "prompt": "string", **wanted}
        assert found["rows"] == pq.read_table(out).to_pylist()
        assert len(found["rows"]) == 11
        # Whole columns of nulls too: of text answers nothing is parsed, without YaRN all is null.
        assert all((row["parsed"] is None) == (not answer) for row in found["rows"])
        assert all(row["yarn_factor"] is None for row in found["rows"])
    part = out / "shard-00000.00001.parquet"
    journal = out / BOOKKEEPING / "journal/shard-00000.00001"
    journal.mkdir(parents=True)
    part.rename(journal / "2-3.rows")
    running = out / BOOKKEEPING / "running/shard-00000.00001"
    running.mkdir(parents=True)
    (running / "1f3c.running").write_bytes(b"x")
    found = load(name, out, tmp_path / "cache-unfinished")
    assert [row["id"] for row in found["rows"]] == [0, 1, *range(4, 11)]
