"""Hugging Face `datasets` loads an output as it is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.output.layout import BOOKKEEPING
from pipeline.schema import TRACE_FIELDS
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

LOAD = """
import json, sys
import datasets
folder, cache, *kinds = sys.argv[1:]
for kind in kinds:
    more = {"data_dir": folder} if kind == "parquet" else {}
    loaded = datasets.load_dataset(kind, cache_dir=f"{cache}/{kind[-7:]}", **more)
    schema = loaded["train"].features.arrow_schema
    print(json.dumps({
        "splits": list(loaded),
        "types": {name: str(schema.field(name).type) for name in schema.names},
        "rows": loaded["train"].to_list(),
    }))
"""


def load(folder: Path, cache: Path) -> list[dict[str, Any]]:
    """What a process of its own, which can't ask the hub, loads: as a folder, then as Parquet."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(folder), str(cache), str(folder), "parquet"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_output_loads_as_it_is_finished_or_not(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [6, 3, 2])
    form = {"type": "object", "properties": {"n": {"type": "integer"}}}
    out = tmp_path / "out"
    for answer in ({"format": "json", "json_schema": form}, {}):
        shutil.rmtree(out, ignore_errors=True)
        config = make_config(output={"rows_per_part": 2, "raw_text": True}, answer=answer)
        parsed = {"parsed": '{"n": 1}', "vote": '{"n": 1}', "agreement": 1.0} if answer else {}
        finish(config, lambda row, _, of=parsed: {**of, "raw": f"So.</think>{row}"})  # type: ignore[misc]
        wanted = {field.name: str(field.type) for field in TRACE_FIELDS}
        for loaded in load(out, tmp_path / f"cache-{len(answer)}"):
            assert loaded["splits"] == ["train"]
            assert loaded["types"] == {"id": "int64", "prompt": "string", **wanted}
            assert loaded["rows"] == pq.read_table(out).to_pylist()
            assert len(loaded["rows"]) == 11
            # Whole columns of nulls too: of text answers nothing is parsed, without YaRN all is null.
            assert all((row["parsed"] is None) == (not answer) for row in loaded["rows"])
            assert all(row["yarn_factor"] is None for row in loaded["rows"])
    part = out / "shard-00000.00001.parquet"
    journal = out / BOOKKEEPING / "journal/shard-00000.00001"
    journal.mkdir(parents=True)
    part.rename(journal / "2-3.rows")
    running = out / BOOKKEEPING / "running/shard-00000.00001"
    running.mkdir(parents=True)
    (running / "1f3c.running").write_bytes(b"x")
    for loaded in load(out, tmp_path / "cache-unfinished"):
        assert [row["id"] for row in loaded["rows"]] == [0, 1, *range(4, 11)]
