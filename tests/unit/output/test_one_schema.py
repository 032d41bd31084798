"""All files of an output have one schema, so that datasets, pandas and DuckDB read the whole of it."""

from pathlib import Path
from typing import Any

import datasets
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from tests.conftest import MakeConfig
from tests.outputs import finish


def add_shard(folder: Path, name: str, rows: list[dict[str, Any]], **types: pa.DataType) -> None:
    table = pa.Table.from_pylist(rows)
    for column, type_ in types.items():
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, table[column].cast(type_))
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(table, folder / f"in/{name}.parquet")


def ids_by_tool(output: Path, cache: Path) -> dict[str, tuple[str, list[Any], list[Any]]]:
    """By tool: the type of ids, the ids and the topics of the whole output."""
    pattern = f"{output}/*.parquet"
    table = datasets.load_dataset(str(output), split="train", cache_dir=str(cache))
    frame = pd.read_parquet(output)
    relation = duckdb.connect().execute(f"SELECT id, topic FROM '{pattern}' ORDER BY filename")
    found = relation.fetchall()
    return {
        "datasets": (table.features["id"].dtype, list(table["id"]), list(table["topic"])),
        "pandas": (str(frame["id"].dtype), frame["id"].tolist(), frame["topic"].tolist()),
        "duckdb": ("int64", [row[0] for row in found], [row[1] for row in found]),
    }


def test_later_shards_that_lack_or_narrow_a_column_read_as_the_first(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    config, large = make_config(), 2**53 + 1
    add_shard(tmp_path, "a", [{"id": large, "prompt": "x", "topic": "sums"}])
    finish(config)
    add_shard(tmp_path, "b", [{"id": 7, "prompt": "x"}], id=pa.int16())
    add_shard(tmp_path, "c", [{"id": 8.0, "prompt": "x", "topic": "a", "none": None}])
    add_shard(
        tmp_path,
        "d",
        [{"topic": "b", "prompt": "x", "id": 9}],
        topic=pa.dictionary("int8", "string"),
    )
    finish(config)
    schemas = {
        pq.read_schema(path).remove_metadata() for path in (tmp_path / "out").glob("*.parquet")
    }
    assert len(schemas) == 1
    for tool, (kind, ids, topics) in ids_by_tool(tmp_path / "out", tmp_path / "cache").items():
        assert (tool, kind, ids) == (tool, "int64", [large, 7, 8, 9])
        assert ["" if pd.isna(topic) else topic for topic in topics] == ["sums", "", "a", "b"]


@pytest.mark.parametrize(
    ("row", "refusal"),
    [
        (
            {"id": 2, "prompt": "x", "topic": "a", "more": 1},
            r"b\.parquet has a column more, which the",
        ),
        (
            {"id": 2.5, "prompt": "x", "topic": "a"},
            r"column id is double in b\.parquet, and int64 in the",
        ),
        (
            {"id": 2, "prompt": "x", "topic": 5},
            r"column topic is int64 in b\.parquet, and string in the",
        ),
    ],
)
def test_later_shards_that_add_or_widen_a_column_are_refused_before_anything_is_written(
    tmp_path: Path, make_config: MakeConfig, row: dict[str, Any], refusal: str
) -> None:
    config = make_config()
    add_shard(tmp_path, "a", [{"id": 1, "prompt": "x", "topic": "sums"}])
    finish(config)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    add_shard(tmp_path, "b", [row])
    with pytest.raises(InputError, match=refusal + r"(?s:.*)choose another output\.path"):
        finish(config)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before
