"""A part's footer names the engines that made its rows, whoever merged them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.insight.html_report import page
from pipeline.output.ledger import Ledger
from pipeline.output.made_by import engines_of, in_words, marked
from pipeline.output.parts import part_metadata
from pipeline.output.summary import summarize
from pipeline.planning import Part, Pass, Shard
from pipeline.schema import ENGINE_COLUMN, FOOTER_KEY
from pipeline.storage import Storage
from tests.outputs import write_output
from tests.unit.output.blocks import METADATA, PART, RUN, SCHEMA, block, read

ROWS = [*range(100, 110)]
RETRY = Pass(1, 0, 1, ("finished",))


def mark(name: str) -> dict[str, Any]:
    return {"kind": "vllm", "gpu": name, "tensor_parallel": 4, "versions": {"vllm": "0.32.0"}}


def made(ledger: Ledger, rows: list[int], engine: str, **more: Any) -> None:
    number = more.pop("number", 0)
    ledger.write_block(marked(block(rows, engine, **more), json.dumps(mark(engine))), number)


def engines(ledger: Ledger) -> list[Any]:
    footer = part_metadata(ledger.store, PART.name)
    return [each.get("gpu") for each in engines_of(footer)]


def test_footer_names_each_engine_once_and_no_row_has_a_mark(ledger: Ledger) -> None:
    for rows, engine in (([100, 101], "H100"), ([102], "L40S"), (ROWS[3:], "H100")):
        made(ledger, rows, engine)
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert engines(ledger) == ["H100", "L40S"]
    assert "engines" not in METADATA, "what is given stays as it is"
    written = read(ledger)
    assert ENGINE_COLUMN not in written.column_names
    assert not written.schema.metadata


def test_engines_of_rows_that_one_task_writes_together_are_all_named(ledger: Ledger) -> None:
    one, two = marked(block(ROWS[:5]), json.dumps(mark("H100"))), block(ROWS[5:])
    ledger.write_block(pa.concat_tables([one, marked(two, json.dumps(mark("A100")))]))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert sorted(engines(ledger)) == ["A100", "H100"]


def test_only_engines_whose_rows_are_in_the_part_are_named(ledger: Ledger) -> None:
    """A worker that slept writes rows that others have done: they stay out, and its name too."""
    made(ledger, ROWS, "H100")
    made(ledger, ROWS[3:6], "late")
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert engines(ledger) == ["H100"]


def test_retry_keeps_the_earlier_engines(ledger: Ledger) -> None:
    made(ledger, ROWS, "H100")
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    made(ledger, [103], "B200", spans=[(100, 110)], number=RETRY.number)
    assert ledger.commit(PART, RETRY, SCHEMA, METADATA)
    assert engines(ledger) == ["H100", "B200"]


def test_part_of_an_older_version_names_the_software_of_its_driver(tmp_path: Path) -> None:
    url = write_output(tmp_path, [{}] * 3)
    path = Path(url) / "s.00000.parquet"
    table = pq.read_table(path)
    footer = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY])
    del footer["engines"]
    footer["versions"] = {"ray": "2.59.0"}
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: json.dumps(footer)}), path)
    assert engines_of(footer) == [{"kind": "simulated", "versions": {"ray": "2.59.0"}}]
    assert "made by simulated; ray 2.59.0" in page(url)


def test_summary_and_report_name_all_engines(ledger: Ledger) -> None:
    made(ledger, ROWS[:4], "H100")
    made(ledger, ROWS[4:], "L40S")
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    part = Part(PART.name, Shard("en/shard-0.parquet", "x", 200, 1, "t"), 100, 110)
    assert summarize(Storage(ledger.store.url), [part], 1).engines == (mark("H100"), mark("L40S"))
    assert in_words(mark("H100")) == "vllm, gpu H100, tensor_parallel 4; vllm 0.32.0"
