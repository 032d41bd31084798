"""Outputs as JSON lines: what is read back is what the parts have."""

import base64
import gzip
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.json_lines import export
from pipeline.cli import main
from pipeline.errors import ConfigError, OutputError
from pipeline.output.layout import MANIFEST
from tests.outputs import write_output


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".NDJSON"])
def test_rows_read_back_are_those_of_the_finished_parts(tmp_path: Path, ending: str) -> None:
    answers = [
        "a\nb",
        'ein "Käse"\u2028',
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ]
    output = write_output(tmp_path, [{"answer": answers[i % 3]} for i in range(50)], durable=30)
    target = tmp_path / f"rows{ending}"
    assert export(output, str(target)) == 30
    kind = {"gz": "gzip", "zst": "zstd"}.get(ending.rsplit(".", maxsplit=1)[-1])
    data = pa.input_stream(str(target), compression=kind).read()
    parts = sorted(Path(output).glob("*.parquet"))
    assert [json.loads(line) for line in data.decode().split("\n")[:-1]] == [
        row for part in parts for row in pq.read_table(part).to_pylist()
    ]
    count = f"SELECT count(*) FROM read_json('{target}', format='nd')"
    [(rows,)] = duckdb.connect().execute(count).fetchall()
    assert rows == 30


def test_values_that_json_lacks_have_one_form(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "time": datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "bytes": b"\xff", "nan": float("nan"),
        "price": Decimal("1.10"), "list": [{"x": float("inf"), "day": datetime(2026, 1, 2).date()}],
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert export(str(tmp_path), str(tmp_path / "a.jsonl")) == 1
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {
        "time": "2026-01-02T03:04:00+00:00", "bytes": base64.b64encode(b"\xff").decode(), "nan": None,
        "price": "1.10", "list": [{"x": None, "day": "2026-01-02"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["labels/a.parquet", "review.parquet", "traces/a.parquet"], "{0}/labels, {0}/traces"),
        (["labels/a.parquet", "review.parquet"], "{0}/labels"),
        (["samples/a.parquet", "traces/a.parquet"], "{0}/samples, {0}/traces"),
        (
            [
                "samples/en/a.parquet", "traces/en/a.parquet", "export/answers/a.parquet",
                "export/rl/a.parquet",
            ],
            "{0}/export/answers, {0}/export/rl, {0}/samples, {0}/traces",
        ),
        (
            ["thinking/a.parquet", "answers/a.parquet", "thinking-jsonl/a.jsonl", "README.md"],
            "{0}/answers, {0}/thinking",
        ),
        (
            [
                "one/a.parquet", f"one/{MANIFEST}", "two/labels/a.parquet", "two/traces/a.parquet",
                f"two/traces/{MANIFEST}", f"three/{MANIFEST}",
            ],
            "{0}/one, {0}/two/labels, {0}/two/traces",
        ),
        (["only/a.parquet", f"only/{MANIFEST}"], "{0}/only"),
    ],
)  # fmt: skip
def test_several_tables_are_not_mixed_in_one_file(
    tmp_path: Path, names: list[str], advice: str
) -> None:
    job = tmp_path / "job"
    for name in names:
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({name: [1]}), job / name)
        else:
            (job / name).write_text("settings: {}\n")
    with pytest.raises(OutputError, match="has several tables") as caught:
        export(f"{job}/", str(tmp_path / "a.jsonl"))
    tables = advice.format(job).split(", ")
    assert caught.value.message.endswith(f" one of {', '.join(tables)}")
    assert not (tmp_path / "a.jsonl").exists()
    for table in tables:
        assert export(table, str(tmp_path / "a.jsonl")) == 1


def test_folders_of_one_table_are_exported(tmp_path: Path) -> None:
    for lang in ("de", "en"):
        (tmp_path / f"in/lang={lang}").mkdir(parents=True)
        pq.write_table(pa.table({"text": [lang]}), tmp_path / f"in/lang={lang}/a.parquet")
    (tmp_path / "in/README.md").write_text("# Text\n")
    assert export(str(tmp_path / "in"), str(tmp_path / "a.jsonl")) == 2


def test_command_writes_to_any_store_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = write_output(tmp_path, [{}] * 10)
    with pytest.raises(SystemExit) as caught:
        main(["export", output, "memory://export/a.jsonl.gz"])
    assert caught.value.code in (0, None)
    assert capsys.readouterr().out == "10 rows: memory://export/a.jsonl.gz\n"
    written = fsspec.filesystem("memory").cat_file("/export/a.jsonl.gz")
    assert len(gzip.decompress(written).splitlines()) == 10
    with pytest.raises(ConfigError, match=r"a\.csv must end in \.jsonl"):
        export(output, "a.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match="no finished part and no Parquet file"):
        export(str(tmp_path / "empty"), str(tmp_path / "a.jsonl"))
    part = tmp_path / "out/s.00000.parquet"
    data = bytearray(part.read_bytes())
    data[4:200] = bytes(196)
    part.write_bytes(data)
    with pytest.raises(OutputError, match=r"s\.00000\.parquet in the output is damaged"):
        export(output, str(tmp_path / "b.jsonl"))
    assert not (tmp_path / "b.jsonl").exists()
