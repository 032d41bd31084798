"""The ledger: existence means done, writes can be repeated, foreign output is refused."""

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.ledger import MANIFEST, METADATA_KEY, Extent, Ledger
from pipeline.schema import PART_COLUMN, ROW_COLUMN, TRACE_COLUMNS, output_schema
from pipeline.storage import Storage

SCHEMA = output_schema(pa.schema([("id", pa.int64())]), {}, raw_text=False)
METADATA = {
    "columns": {name: name for name in TRACE_COLUMNS},
    "settings": {"sampling.n": 1},
    "versions": {},
}
EXTENT = Extent("en/shard-0.00001.parquet", 100, 110)


def block(rows: list[int], text: str = "t", extent: Extent = EXTENT, n: int = 1) -> pa.Table:
    traces = [
        {"id": row, "think": text, "answer": f"{text}{row}", "state": "finished", "sample": sample,
         "think_tokens": 2, "answer_tokens": 1, "prompt_tokens": 5, "seed": 9}
        for row in rows for sample in range(n)
    ]  # fmt: skip
    table = pa.Table.from_pylist(traces, SCHEMA)
    origin = pa.array([str(extent)] * len(traces))
    numbers = pa.array([row for row in rows for _ in range(n)], pa.int64())
    return table.append_column(PART_COLUMN, origin).append_column(ROW_COLUMN, numbers)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Storage(str(tmp_path / "out")))


def read(ledger: Ledger, extent: Extent = EXTENT) -> pa.Table:
    return pq.read_table(ledger.store.path(extent.name))


def test_part_appears_with_its_last_fragment_and_in_row_order(ledger: Ledger) -> None:
    for rows in ([104, 105, 106], [100, 101], [108, 109, 102, 103]):
        [extent] = ledger.write_block(block(rows))
        assert extent == EXTENT
        assert not ledger.commit(extent, SCHEMA, METADATA)
    assert ledger.contents().fragments == {
        EXTENT.name: [(100, 102), (102, 104), (104, 107), (108, 110)]
    }
    ledger.write_block(block([107]))
    assert ledger.commit(EXTENT, SCHEMA, METADATA)
    assert read(ledger)["id"].to_pylist() == list(range(100, 110))
    assert read(ledger).schema.names == SCHEMA.names
    assert ledger.contents().parts == {EXTENT.name}
    assert ledger.contents().fragments == {}


def test_block_done_twice_leaves_one_set_of_rows(ledger: Ledger) -> None:
    for _ in range(2):
        ledger.write_block(block([*range(100, 105)], n=2))
    ledger.write_block(block([*range(103, 110)], "other", n=2))  # other borders, as after a resume
    assert ledger.commit(EXTENT, SCHEMA, {**METADATA, "settings": {"sampling.n": 2}})
    table = read(ledger)
    assert table["id"].to_pylist() == [row for row in range(100, 110) for _ in range(2)]
    assert table["sample"].to_pylist() == [0, 1] * 10
    assert table["think"].to_pylist() == ["t"] * 10 + ["other"] * 10


def test_block_across_two_parts_goes_to_both(ledger: Ledger) -> None:
    other = Extent("en/shard-0.00002.parquet", 110, 112)
    table = pa.concat_tables([block([108, 109]), block([110, 111], extent=other)])
    assert ledger.write_block(table) == {EXTENT, other}
    assert ledger.commit(other, SCHEMA, METADATA)
    assert read(ledger, other)["id"].to_pylist() == [110, 111]


def test_part_is_committed_once_whatever_races(ledger: Ledger) -> None:
    rows = list(range(100, 110))
    random.Random(0).shuffle(rows)

    def work(row: int) -> None:
        ledger.write_block(block([row]))
        ledger.commit(EXTENT, SCHEMA, METADATA)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, rows))
    ledger.commit(EXTENT, SCHEMA, METADATA)
    assert read(ledger)["id"].to_pylist() == list(range(100, 110))


def test_part_that_lacks_samples_is_not_called_finished(ledger: Ledger) -> None:
    ledger.write_block(block([*range(100, 110)], n=2))
    with pytest.raises(OutputError, match=r"hold 20 traces, not 30"):
        ledger.commit(EXTENT, SCHEMA, {**METADATA, "settings": {"sampling.n": 3}})
    assert ledger.contents().parts == frozenset()


def test_shard_whose_name_is_a_part_of_another_keeps_its_own_fragments(ledger: Ledger) -> None:
    outer, inner = Extent("a.00000.parquet", 0, 2), Extent("a.00000/b.00000.parquet", 0, 2)
    ledger.write_block(block([0], extent=outer))
    ledger.write_block(block([0, 1], extent=inner))
    assert not ledger.commit(outer, SCHEMA, METADATA)
    ledger.write_block(block([1], extent=outer))
    assert ledger.commit(outer, SCHEMA, METADATA)
    assert ledger.commit(inner, SCHEMA, METADATA)


def test_empty_part_is_a_file_too(ledger: Ledger) -> None:
    empty = Extent("empty.00000.parquet", 0, 0)
    assert ledger.commit(empty, SCHEMA, METADATA)
    assert read(ledger, empty).num_rows == 0


def test_part_says_what_made_it(ledger: Ledger) -> None:
    ledger.write_block(block([*range(100, 110)]))
    ledger.commit(EXTENT, SCHEMA, METADATA)
    found: dict[str, Any] = json.loads(read(ledger).schema.metadata[METADATA_KEY])
    assert found["summary"] == {
        "traces": 10, "states": {"finished": 10},
        "prompt_tokens": 50, "think_tokens": 20, "answer_tokens": 10,
    }  # fmt: skip


def test_bookkeeping_does_not_show_in_the_dataset(ledger: Ledger) -> None:
    ledger.open_run({"a": 1}, {})
    ledger.write_block(block([*range(100, 110)]))
    ledger.commit(EXTENT, SCHEMA, METADATA)
    other = Extent("en/shard-0.00002.parquet", 110, 120)
    ledger.write_block(block([110, 111], extent=other))
    assert pq.read_table(ledger.store.root).num_rows == 10


def test_other_settings_are_refused_in_words(ledger: Ledger) -> None:
    ledger.open_run({"sampling.temperature": 0.6, "model.path": "m"}, {"ray": "1"})
    ledger.open_run({"model.path": "m", "sampling.temperature": 0.6}, {"ray": "2"})
    with pytest.raises(OutputError) as caught:
        ledger.open_run({"sampling.temperature": 0.7, "model.path": "m"}, {})
    assert "sampling.temperature: there 0.6, now 0.7" in str(caught.value)
    assert "model.path" not in str(caught.value)


def test_folder_with_other_files_is_refused_and_left_alone(ledger: Ledger) -> None:
    ledger.store.put("thesis.txt", b"x")
    with pytest.raises(OutputError, match=r"is not empty and not the output of a run .*thesis.txt"):
        ledger.open_run({"a": 1}, {})
    assert ledger.manifest() is None


def test_damaged_manifest_is_named(ledger: Ledger) -> None:
    ledger.store.put(MANIFEST, b"{")
    with pytest.raises(OutputError, match=r"manifest.json is damaged"):
        ledger.open_run({"a": 1}, {})
