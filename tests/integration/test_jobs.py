"""The jobs on the simulated engine: what they write beside the traces, and that they go on."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import label, nightly
from jobs.label import LabelJob
from pipeline.config.load import parse_as, parse_config
from pipeline.config.run_config import RunConfig
from pipeline.errors import OutputError
from pipeline.monitor.limits import Limits
from pipeline.storage import Storage
from tests.conftest import write_shards

ENGINE = {
    "kind": "simulated", "device": "cpu", "block_rows": 4,
    "simulated": {"tokens_median": 30, "seconds_per_token": 0.008},
}  # fmt: skip


def test_labels_are_written_beside_the_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four samples of each of six texts, one of them null; and its retry."""
    (tmp_path / "in").mkdir()
    rows = [{"text": f"text {i}" if i else None, "gold": "ham"} for i in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "a.parquet")
    out = tmp_path / "out"
    job = parse_as(
        LabelJob,
        {
            "input": {"path": str(tmp_path / "in")}, "output": {"path": str(out)},
            "model": {"path": "qwq-nano"}, "engine": ENGINE, "sampling": {"n": 4},
            "label": {"guideline": "Spam?", "labels": ["spam", "ham"], "gold_column": "gold"},
        },
        "config",
    )  # fmt: skip
    assert label.label(job, ()) == 0
    printed = capsys.readouterr().out
    labeled = pq.read_table(out / "labels").to_pylist()
    assert [row["text"] for row in labeled] == [row["text"] for row in rows]
    assert [row["state"] for row in labeled] == ["failed", *["finished"] * 5]
    for row in labeled[1:]:
        assert row["label"] in ("spam", "ham")
        assert row["confidence"] in (0.5, 0.75, 1)
        assert row["think"]
    review = pq.read_table(out / "review.parquet").to_pylist()
    assert review == [row for row in labeled if row["review"] is not None]
    assert review[0]["review"] == "failed"
    report = (out / "report.md").read_text()
    assert report.startswith("# Labels of 6 rows\n")
    assert report in printed
    assert label.label(job, ["failed"]) == 0
    again = pq.read_table(out / "labels").to_pylist()
    assert again == labeled
    (out / "__qwq" / "files.txt").unlink()  # as earlier versions left it
    assert label.label(job, ()) == 0
    mine = tmp_path / "mine.csv"
    mine.write_text(f"source_row,reviewed_label\n{review[0]['source_row']},ham\n")
    section = job.label.model_copy(update={"reviewed": str(mine)})
    assert label.label(job.model_copy(update={"label": section}), ()) == 0
    came_back = pq.read_table(out / "labels").to_pylist()
    assert [came_back[0][name] for name in ("label", "label_by", "review")] == [
        "ham",
        "reviewer",
        None,
    ]
    assert came_back[1:] == labeled[1:]
    assert pq.read_table(out / "examples.parquet").num_rows == 0, "it has no text to ask about"
    (out / "labels" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"has not written, .*: labels/notes.txt; move them"):
        label.label(job, ())
    assert (out / "labels" / "notes.txt").read_text() == "mine"


def _night(config: RunConfig, tokens: int | None) -> dict[str, Any]:
    limits = {"output_tokens": tokens}
    limited = parse_config({**config.model_dump(exclude_unset=True), "limits": limits})
    report, failure = nightly.run(limited, Limits(limited))
    assert failure is None
    return report


def test_nights_go_on_where_the_last_one_reached_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pipeline.monitor.limits.POLL_SECONDS", 0.05)
    total = write_shards(tmp_path / "in", [40, 40])
    log = tmp_path / "log"
    engine = {**ENGINE, "simulated": {**ENGINE["simulated"], "log": str(log)}, "vllm": {"max_num_seqs": 4}}  # type: ignore[dict-item]  # fmt: skip
    config = parse_config(
        {
            "input": {"path": str(tmp_path / "in")}, "output": {"path": str(tmp_path / "out")},
            "model": {"path": "qwq-nano"}, "engine": engine,
        }
    )  # fmt: skip
    first = _night(config, tokens=600)
    assert first["ended_by"] == "limits.output_tokens is reached"
    assert first["this_run"]["generated_tokens"] >= 600
    assert first["output"]["rows_done"] < total
    write_shards(tmp_path / "in", [40, 40, 6])
    assert nightly.nightly(config) == 0
    traces = pq.read_table(tmp_path / "out").to_pylist()
    assert [trace["id"] for trace in traces] == list(range(total + 6))
    generated = sum(json.loads(line)["tokens"] for line in log.read_text().splitlines())
    kept = sum(trace["think_tokens"] + trace["answer_tokens"] for trace in traces)
    assert generated == kept, "what a night had begun was generated again"
    store = Storage(str(tmp_path / "out"))
    [written] = [info.name for info in store.files("__qwq/reports") if info.name.endswith(".json")]
    report = json.loads(store.read(written))
    assert report["ended_by"] == "all is done"
    assert report["this_run"]["rows"] == total + 6 - first["output"]["rows_done"]
    assert report["output"]["rows"] == report["output"]["rows_done"] == total + 6
    assert report["output"]["shards"] == 3
    text = store.read(written.replace(".json", ".md")).decode()
    assert "ended: all is done" in text
    assert text in capsys.readouterr().out


def test_slurm_says_how_long_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert nightly.seconds_left({}) is None
    assert nightly.seconds_left({"SLURM_JOB_END_TIME": "4600"}) == 3600 - 120
