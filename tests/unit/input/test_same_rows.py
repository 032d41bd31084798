"""The same rows in five formats make the same parts, prompts and columns, hence the same seeds."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from tests.conftest import MakeConfig
from tests.hub import Hub

ROWS = [
    {"id": i, "question": f'Was ist "{i}" + 1,\nund warum?', "level": i / 8} for i in range(200)
]
CARD = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: test, path: rows.*}\n---\n"


def write_formats(folder: Path, hub: Hub) -> dict[str, dict[str, Any]]:
    """Write `ROWS` in each format; returns what the section ``input`` says of them."""
    sections: dict[str, dict[str, Any]] = {}
    for name in ("parquet", "json", "csv", "arrow"):
        (folder / name).mkdir()
        sections[name] = {"path": str(folder / name)}
    sections["csv"]["types"] = {"id": "int64", "level": "float64"}
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "parquet/rows.parquet")
    with pa.CompressedOutputStream(str(folder / "json/rows.jsonl.gz"), "gzip") as file:
        file.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    with (folder / "csv/rows.csv").open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    with pa.ipc.new_file(str(folder / "arrow/rows.arrow"), table.schema) as arrow:
        arrow.write_table(table, max_chunksize=64)
    parquet = (folder / "parquet/rows.parquet").read_bytes()
    hub.add("org/rows", {"README.md": CARD, "rows.parquet": parquet})
    sections["hub"] = {"path": "hf://datasets/org/rows", "subset": "main", "split": "test"}
    return sections


def test_the_same_rows_in_any_format_make_the_same_run(
    tmp_path: Path, make_config: MakeConfig, hub: Hub
) -> None:
    made = list[Any]()
    for name, section in write_formats(tmp_path, hub).items():
        prepared = prepare(
            make_config(
                input={**section, "prompt_column": "question"},
                output={"path": str(tmp_path / "out" / name), "rows_per_part": 64},
            )
        )
        assert prepared.source == section["path"]
        parts = [(part.name, part.start, part.stop) for part in prepared.parts]
        rows = pa.concat_tables([pq.read_table(shard.path) for shard in prepared.shards])
        made.append((parts, rows, prepared.prompts, list(preview.prompts(prepared, len(ROWS)))))
    assert [name for name, _, _ in made[0][0]] == [f"rows.{i:05}.parquet" for i in range(4)]
    assert len(made[0][3]) == len(ROWS)
    assert all(each == made[0] for each in made)
