"""A review and back: people's labels win, in files of ours and of tools; what is wrong is refused."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.label import LabelJob, write
from jobs.label_report import report_lines
from pipeline.errors import InputError, OutputError
from tests.outputs import finish
from tests.unit.jobs.test_label import _job

TEXTS = ["Great, really.", "So-so,\nI think", "No!", None]
# The labels of the two samples of each text.
SAID: list[list[str | None]] = [["good", "good"], ["good", "bad"], ["bad", "bad"], [None, None]]


def _labeled(folder: Path, **label: Any) -> LabelJob:
    """A job whose run has finished."""
    (folder / "in").mkdir(exist_ok=True)
    rows = [{"text": text, "n": i} for i, text in enumerate(TEXTS)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "in/a.parquet")
    job = _job(
        label,
        input={"path": str(folder / "in")},
        output={"path": str(folder / "out")},
        sampling={"n": 2},
    )

    def trace(row: int, sample: int) -> dict[str, Any]:
        said = SAID[row][sample]
        if said is None:
            return {"parsed": None, "state": "failed"}
        value = {"labels": [said]} if job.label.several else {"label": said}
        return {"parsed": json.dumps(value)}

    finish(job.run, trace)
    return job


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out" / name).to_pylist()
    return rows


def _review(folder: Path, ending: str, labels: dict[str, Any]) -> str:
    """The review file with these labels in ``reviewed_label``, as a file beside the output."""
    rows = _rows(folder, "review.parquet")
    for row in rows:
        row["reviewed_label"] = labels.get(row["source_row"])
    path = folder / f"mine{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == ".csv":
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".jsonl"])
def test_labels_of_people_win_and_their_rows_are_not_reviewed_again(
    tmp_path: Path, ending: str
) -> None:
    write(_labeled(tmp_path))
    before = _rows(tmp_path, "review.parquet")
    assert [row["source_row"] for row in before] == ["a.parquet:1", "a.parquet:3"]
    path = _review(tmp_path, ending, {"a.parquet:1": "bad"})
    job = _labeled(tmp_path, reviewed=path)
    job.check()
    job.check_output()
    counts = write(job)
    labels = _rows(tmp_path, "labels")
    assert [row["label"] for row in labels] == ["good", "bad", "bad", None]
    assert [row["label_by"] for row in labels] == ["model", "reviewer", "model", None]
    assert [row["model_label"] for row in labels] == ["good", "good", "bad", None]
    assert [row["reviewed_label"] for row in labels] == [None, "bad", None, None]
    assert [row["source_row"] for row in _rows(tmp_path, "review.parquet")] == ["a.parquet:3"]
    [example] = _rows(tmp_path, "examples.parquet")
    assert example == {"source_row": "a.parquet:1", "text": TEXTS[1], "answer": '{"label": "bad"}'}
    lines = list(report_lines(counts, job))
    assert "reviewed: 1 rows (0 as the model said, 1 changed)" in lines
    assert any("not the accuracy of all rows" in line for line in lines)
    assert any(line.startswith("| all rows | 1 | 0.0%") for line in lines)


def test_reviewed_rows_are_examples_and_then_not_compared(tmp_path: Path) -> None:
    write(_labeled(tmp_path))
    path = _review(tmp_path, ".csv", {"a.parquet:1": "bad"})
    write(_labeled(tmp_path, reviewed=path))
    (tmp_path / "gold").mkdir()
    rows = [{"text": text, "gold": "good"} for text in TEXTS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gold/a.parquet")
    job = _job(
        {"gold_column": "gold"},
        input={"path": str(tmp_path / "gold")}, output={"path": str(tmp_path / "out2")},
        sampling={"n": 2}, prompt={"examples": {"path": str(tmp_path / "out/examples.parquet")}},
    )  # fmt: skip
    finish(job.run, lambda row, sample: {"parsed": json.dumps({"label": "good"})})
    counts = write(job)
    assert (counts.shown, counts.pairs["gold"]) == (1, {("good", "good", True): 3})
    assert any(
        line.startswith("1 rows are examples of the prompt") for line in report_lines(counts, job)
    )


def test_a_reviewer_replaces_the_gold_label_of_a_row(tmp_path: Path) -> None:
    rows = [{"text": text, "gold": "good"} for text in TEXTS]
    job = _labeled(tmp_path)
    write(job)
    path = _review(tmp_path, ".parquet", {"a.parquet:1": "bad"})
    (tmp_path / "gold").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "gold/a.parquet")
    job = _job(
        {"gold_column": "gold", "reviewed": path},
        input={"path": str(tmp_path / "gold")}, output={"path": str(tmp_path / "out2")},
        sampling={"n": 2},
    )  # fmt: skip
    finish(
        job.run, lambda row, sample: {"parsed": json.dumps({"label": SAID[row][sample] or "bad"})}
    )
    pairs = write(job).pairs
    assert pairs["gold"]["bad", "good", False] == 1
    assert sum(pairs["gold"].values()) == 4
    assert pairs["review"] == {("bad", "good", False): 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reviewed_label": "Bad"}, r"line 2, column reviewed_label: 'Bad' is none of .* \(good, bad\)"),
        ({"source_row": None, "reviewed_label": "bad"}, r"line 2, column reviewed_label: .* no source_row"),
        ({"source_row": "b.parquet:7", "reviewed_label": "bad"}, r"line 2, .*: the output has no row b.parquet:7"),
        ({"text": "Other", "reviewed_label": "bad"}, r"line 2, .*the row a.parquet:1 .* has another text"),
        ({"source_row": "a.parquet:0", "reviewed_label": "bad"}, r"line 2, .*the row a.parquet:0 has the label bad here and good in .*line 1"),
    ],
)  # fmt: skip
def test_wrong_labels_and_unknown_rows_are_refused_with_file_line_and_column(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    write(_labeled(tmp_path))
    first = {"source_row": "a.parquet:0", "text": TEXTS[0], "reviewed_label": "good"}
    second = {"source_row": "a.parquet:1", "text": "So-so, I think", **row}
    if row.get("source_row") == "a.parquet:0":
        second["text"] = TEXTS[0]
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    before = (tmp_path / "out/review.parquet").read_bytes()
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}, {message}"):
        write(_labeled(tmp_path, reviewed=str(path)))
    assert (tmp_path / "out/review.parquet").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "source_row,label\na.parquet:0,bad\n", "line 2: no column reviewed_label"),
        ("a.jsonl", '{"source_row": "a"}\n', "line 1: no column reviewed_label"),
        ("a.jsonl", "\n{oops\n", r"can't be read: line 2: "),
        ("a.json", '{"a": 1}', r"can't be read: it is no list"),
        ("a.json", '[{"annotations": [{"result": 3}], "data": {}}]', "record 0 .* no record of an"),
        ("a.parquet", "no", r"a.parquet can't be read: "),
        ("a.txt", "no", r"no files there; it takes"),
    ],
)
def test_files_that_are_no_review_are_refused_before_anything_starts(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    job = _labeled(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(content)
    with pytest.raises(InputError, match=message):
        _labeled(tmp_path, reviewed=str(tmp_path / "mine")).check()
    job.check()


def test_review_file_in_which_somebody_has_written_is_not_replaced(tmp_path: Path) -> None:
    job = _labeled(tmp_path)
    write(job)
    job.check_output()
    table = pq.read_table(tmp_path / "out/review.parquet")
    at = table.column_names.index("reviewed_label")
    table = table.set_column(at, "reviewed_label", pa.array(["bad", None]))
    pq.write_table(table, tmp_path / "out/review.parquet")
    with pytest.raises(OutputError, match=r"has labels in reviewed_label.*label.reviewed"):
        job.check_output()


@pytest.mark.parametrize("several", [False, True])
def test_argilla_and_back(tmp_path: Path, several: bool) -> None:
    job = _labeled(tmp_path, review_tool="argilla", several=several)
    write(job)
    folder = tmp_path / "out/review-argilla"
    [record] = json.loads((folder / "records.json").read_text())
    assert (record["id"], record["fields"]) == ("a.parquet:1", {"text": TEXTS[1]})
    suggested = record["suggestions"]["label"]["value"]
    assert suggested == (["(none)"] if several else "good"), "half of the samples are no majority"
    settings = json.loads((folder / ".argilla/settings.json").read_text())
    options = [option["value"] for option in settings["questions"][0]["settings"]["options"]]
    assert options == ["good", "bad", *(["(none)"] if several else [])]
    answer = ["(none)"] if several else "bad"
    record |= {"status": "completed", "responses": {"label": [{"value": answer, "user_id": "u"}]}}
    pending = {**record, "id": "a.parquet:0", "status": "pending"}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([record, pending]))
    write(_labeled(tmp_path, reviewed=str(path), several=several))
    assert not folder.joinpath("records.json").exists(), "no tool is asked for any more"
    rows = _rows(tmp_path, "labels")
    assert [row["reviewed_label"] for row in rows] == [None, [] if several else "bad", None, None]


@pytest.mark.parametrize("several", [False, True])
def test_label_studio_and_back(tmp_path: Path, several: bool) -> None:
    write(_labeled(tmp_path, review_tool="label_studio", several=several))
    [task] = json.loads((tmp_path / "out/review-label-studio.json").read_text())
    assert task["data"]["source_row"] == "a.parquet:1"
    interface = (tmp_path / "out/review-label-studio.xml").read_text()
    assert f'choice="{"multiple" if several else "single"}"' in interface
    assert '<Choice value="good" hint="praise"/>' in interface
    result = {"from_name": "label", "to_name": "text", "type": "choices"}
    done = {"was_cancelled": False, "result": [{**result, "value": {"choices": ["bad"]}}]}
    skipped = {"was_cancelled": True, "result": []}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{**task, "annotations": [skipped, done]}]))
    write(_labeled(tmp_path, reviewed=str(path), several=several))
    assert _rows(tmp_path, "labels")[1]["label"] == (["bad"] if several else "bad")
    other = {"was_cancelled": False, "result": [{**result, "value": {"choices": ["good"]}}]}
    path.write_text(json.dumps([{**task, "annotations": [done, other]}]))
    with pytest.raises(InputError, match="let people agree"):
        write(_labeled(tmp_path, reviewed=str(path), several=several))
