"""Parts in an Iceberg table of a SQLite catalog: each once, as they are, while the run goes on."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import load_catalog

from jobs.register import REGISTERED, Registered, register
from pipeline.cli import main
from pipeline.errors import OutputError, StorageError
from tests.outputs import write_output

TABLE = "lab.traces"


pytestmark = pytest.mark.usefixtures("iceberg_catalog")


def in_duckdb(query: str) -> list[Any]:
    connection = load_catalog("team").load_table(TABLE).scan().to_duckdb("traces")
    rows: list[Any] = connection.execute(query).fetchall()
    return rows


def bytes_of(output: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(output).glob("*.parquet")}


def test_duckdb_reads_each_part_once_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces = [{"answer": str(i)} for i in range(50)]
    output = write_output(tmp_path, traces, durable=30)
    assert register(output, "team", TABLE) == Registered(3, 0, 0)
    assert in_duckdb("SELECT count(*), max(answer::int) FROM traces") == [(30, 29)]
    before = bytes_of(output)
    write_output(tmp_path, traces)
    monkeypatch.chdir(tmp_path)
    assert register("out", "team", TABLE) == Registered(2, 0, 3)  # the same parts, named otherwise
    assert register(output, "team", TABLE) == Registered(0, 0, 5)
    assert in_duckdb("SELECT count(*), count(DISTINCT answer) FROM traces") == [(50, 50)]
    assert {name: bytes_of(output)[name] for name in before} == before


def replace_answers(part: Path, answer: str) -> None:
    """Write ``part`` again as a retry does: other traces, in a file that takes its place."""
    table, footer = pq.read_table(part), pq.read_metadata(part).metadata
    answers = pa.array([answer] * len(table))
    table = table.set_column(table.schema.get_field_index("answer"), table.field("answer"), answers)
    pq.write_table(table.replace_schema_metadata(footer), f"{part}.new")
    os.replace(f"{part}.new", part)


def test_part_that_a_retry_replaced_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    output = write_output(tmp_path, [{"answer": "old"}] * 20)
    register(output, "team", TABLE)
    part = tmp_path / "out/s.00001.parquet"
    replace_answers(part, "new")
    assert register(output, "team", TABLE) == Registered(0, 1, 1)
    size = part.stat().st_size
    replace_answers(part, "NEW")
    assert part.stat().st_size == size  # so it tells nothing
    assert register(output, "team", TABLE) == Registered(0, 1, 1)
    assert register(output, "team", TABLE) == Registered(0, 0, 2)
    counts = "SELECT answer, count(*) FROM traces GROUP BY ALL ORDER BY ALL"
    assert in_duckdb(counts) == [("NEW", 10), ("old", 10)]
    # Readers leave out files by what the table says of them.
    filtered = load_catalog("team").load_table(TABLE).scan(row_filter="answer = 'NEW'")
    assert filtered.to_arrow().num_rows == 10


def test_table_that_was_rolled_back_or_has_lost_its_record_is_brought_up_to_date(
    tmp_path: Path,
) -> None:
    output = write_output(tmp_path, [{"answer": "old"}] * 20)
    register(output, "team", TABLE)
    table = load_catalog("team").load_table(TABLE)
    snapshot = table.current_snapshot()
    assert snapshot is not None
    replace_answers(tmp_path / "out/s.00001.parquet", "new")
    assert register(output, "team", TABLE) == Registered(0, 1, 1)
    table.refresh().manage_snapshots().rollback_to_snapshot(snapshot.snapshot_id).commit()
    assert register(output, "team", TABLE) == Registered(0, 2, 0)
    [record] = (tmp_path / "out" / REGISTERED).iterdir()
    record.write_text("{")
    assert register(output, "team", TABLE) == Registered(0, 2, 0)
    assert register(output, "team", TABLE) == Registered(0, 0, 2)
    assert in_duckdb("SELECT count(*) FROM traces") == [(20,)]


def test_table_of_other_columns_and_unknown_catalogs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_output(tmp_path, [{}] * 10)
    loaded = load_catalog("team")
    loaded.create_namespace("lab")
    loaded.create_table(TABLE, pa.schema([("id", pa.int64()), ("state", pa.int64())]))
    with pytest.raises(
        StorageError, match=r"can't register in table lab\.traces of catalog team: "
    ):
        register(output, "team", TABLE)
    assert not list(loaded.load_table(TABLE).scan().plan_files())
    with pytest.raises(OutputError, match=r"--table traces has no namespace"):
        register(output, "team", "traces")
    with pytest.raises(SystemExit) as caught:
        main(["register", output, "--catalog", "nowhere", "--table", TABLE])
    assert caught.value.code == 2
    assert "PYICEBERG_CATALOG__NOWHERE__URI" in capsys.readouterr().err
