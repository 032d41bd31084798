"""The same rows run the same, in whatever format they come."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from tests.conftest import MakeConfig
from tests.hub import Hub

ROWS = [
    {"id": i, "question": f'Was ist "{i}" + 1,\nund warum?', "level": i / 8} for i in range(200)
]
HOW_LONG = {"wasted_tokens", "carried_tokens"}


def write(folder: Path, hub: Hub) -> dict[str, dict[str, Any]]:
    """The rows in each format; returns what the section ``input`` says of them."""
    for name in ("parquet", "json", "csv", "arrow"):
        (folder / name).mkdir()
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "parquet/rows.parquet")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    with pa.CompressedOutputStream(str(folder / "json/rows.jsonl.gz"), "gzip") as file:
        file.write(lines.encode())
    with (folder / "csv/rows.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    with pa.ipc.new_file(str(folder / "arrow/rows.arrow"), table.schema) as arrow:
        arrow.write_table(table, max_chunksize=64)
    card = (
        b"---\nconfigs:\n- config_name: main\n  data_files:\n  - {split: test, path: rows.*}\n---\n"
    )
    parquet = (folder / "parquet/rows.parquet").read_bytes()
    hub.add("org/rows", {"README.md": card, "rows.parquet": parquet})
    types = {"id": "int64", "level": "float64"}
    paths = {name: {"path": str(folder / name)} for name in ("parquet", "json", "csv", "arrow")}
    paths["csv"]["types"] = types
    return {**paths, "hub": {"path": "hf://datasets/org/rows", "subset": "main", "split": "test"}}


def test_the_same_rows_in_any_format_have_the_same_prompts_seeds_and_traces(
    tmp_path: Path, make_config: MakeConfig, hub: Hub
) -> None:
    prompts, traces = list[Any](), list[pa.Table]()
    for name, section in write(tmp_path, hub).items():
        config = make_config(
            input={**section, "prompt_column": "question"},
            output={"path": str(tmp_path / "out" / name)},
            engine={"simulated": {"tokens_median": 20, "seconds_per_token": 0.0001}},
        )
        assert flow.run(config).is_complete
        prompts.append(list(preview.prompts(prepare(config), len(ROWS))))
        traces.append(pq.read_table(tmp_path / "out" / name / "rows.00000.parquet"))
        if name == "hub":
            hub.add("org/rows", {"rows.parquet": b"another revision"})
            assert flow.run(config).is_complete
    assert len(prompts[0]) == len(ROWS)
    assert all(each == prompts[0] for each in prompts)
    kept = [name for name in traces[0].column_names if name not in HOW_LONG]
    assert len({*traces[0]["seed"].to_pylist()}) == len(ROWS)
    assert all(each.select(kept) == traces[0].select(kept) for each in traces)
