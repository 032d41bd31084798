"""The rows to review in the import formats of Argilla and Label Studio, and their answers back.

Both tools show the text and the model's label, and take the reviewer's. A record carries the row's
``source_row``, so that the export of the tool says which row it is about (`jobs.label_reviewed`).
Rows without a text are left out: nobody can label them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

import pyarrow.parquet as pq

from jobs.row_job import REVIEW
from jobs.sections import NONE, value_by_people
from pipeline.schema import SOURCE_ROW, plain_rows
from pipeline.storage import Storage

if TYPE_CHECKING:
    from jobs.label import LabelJob
    from jobs.label_section import LabelSection

# The names of the text and of the question about it in both tools.
TEXT, QUESTION = "text", "label"
ARGILLA = "review-argilla/"
ARGILLA_RECORDS = f"{ARGILLA}records.json"
ARGILLA_SETTINGS, ARGILLA_DATASET = (
    f"{ARGILLA}.argilla/settings.json",
    f"{ARGILLA}.argilla/dataset.json",
)
TASKS, INTERFACE = "review-label-studio.json", "review-label-studio.xml"
FILES = {
    "argilla": (ARGILLA_RECORDS, ARGILLA_SETTINGS, ARGILLA_DATASET),
    "label_studio": (TASKS, INTERFACE),
}
PLACES = (ARGILLA, TASKS, INTERFACE)
Record = Callable[["LabelJob", Mapping[str, Any], str], dict[str, Any]]


def export_review(job: "LabelJob") -> Sequence[str]:
    """Write the review file for ``label.review_tool``; the names of the files, none without one."""
    tool = job.label.review_tool
    if tool is None:
        return ()
    store, files = Storage(job.output.path), FILES[tool]
    job.own_files().claim(files)
    if tool == "argilla":
        _write_list(job, ARGILLA_RECORDS, _argilla_record)
        store.put(ARGILLA_SETTINGS, _json(_argilla_settings(job.label)))
        store.put(ARGILLA_DATASET, _json({"name": "labels-to-review"}))
    else:
        _write_list(job, TASKS, _label_studio_task)
        store.put(INTERFACE, _label_studio_interface(job.label).encode())
    return files


def _write_list(job: "LabelJob", name: str, record: Record) -> None:
    """Write a JSON list with a record for each row of the review file that has a text."""
    store = Storage(job.output.path)
    with store.writing(name) as file:
        separator = b"[\n"
        for row in _rows_to_review(store):
            text = row[job.label.text_column]
            if value_by_people(text) is not None:
                shown = text if isinstance(text, str) else str(text)
                file.write(separator + _json(record(job, row, shown)))
                separator = b",\n"
        file.write(b"[]\n" if separator == b"[\n" else b"\n]\n")


def _rows_to_review(store: Storage) -> Iterator[dict[str, Any]]:
    with store.open(REVIEW) as file:
        for batch in pq.ParquetFile(file).iter_batches(1024):
            yield from plain_rows(batch)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode(errors="replace")


def _argilla_record(job: "LabelJob", row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A record as ``rg.Record.from_dict`` reads it."""
    label = row[job.called("model_label")]
    if label == []:
        label = [NONE]
    suggestion = {"value": label, "score": None, "agent": job.model.path}
    return {
        "id": str(row[SOURCE_ROW]),
        "fields": {TEXT: text},
        "metadata": _why(job, row),
        "suggestions": {} if label is None else {QUESTION: suggestion},
        "responses": {},
        "vectors": {},
    }


def _argilla_settings(section: "LabelSection") -> dict[str, Any]:
    """The data set's settings, as ``rg.Settings.to_json`` writes them."""
    options = [{"value": label, "text": label} for label in section.labels or ()]
    if section.several:  # Argilla takes no empty answer
        options.append({"value": NONE, "text": "none of these"})
    kind = "multi_label_selection" if section.several else "label_selection"
    question = {"name": QUESTION, "title": QUESTION, "required": True,
                "settings": {"type": kind, "options": options}}  # fmt: skip
    field = {"name": TEXT, "title": TEXT, "required": True,
             "settings": {"type": "text", "use_markdown": False}}  # fmt: skip
    metadata = [
        {"name": "review", "title": "review", "settings": {"type": "terms"}},
        {"name": "confidence", "title": "confidence", "settings": {"type": "float"}},
    ]
    return {
        "guidelines": _guidelines(section), "questions": [question], "fields": [field],
        "vectors": [], "metadata": metadata, "allow_extra_metadata": False,
        "distribution": {"strategy": "overlap", "min_submitted": 1}, "mapping": None,
    }  # fmt: skip


def _guidelines(section: "LabelSection") -> str:
    meanings = [
        f"- {label}: {meaning}" for label, meaning in (section.labels or {}).items() if meaning
    ]
    return "\n".join([section.guideline.strip(), "", *meanings]).strip()


def _why(job: "LabelJob", row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[job.called(name)] for name in ("review", "confidence")}


def argilla_answers(record: Mapping[str, Any]) -> list[Any]:
    """What people have submitted for a record that ``dataset.records.to_json`` has written.

    Drafts are in pending records only, which count as not reviewed.
    """
    if record["status"] != "completed":
        return []
    values = [response["value"] for response in (record["responses"] or {}).get(QUESTION, ())]
    return [[] if value == [NONE] else value for value in values]


def _label_studio_task(job: "LabelJob", row: Mapping[str, Any], text: str) -> dict[str, Any]:
    """A task with a pre-annotation."""
    label = row[job.called("model_label")]
    task: dict[str, Any] = {
        "data": {TEXT: text, SOURCE_ROW: str(row[SOURCE_ROW]), **_why(job, row)}
    }
    if label is not None:
        choices = label if isinstance(label, list) else [label]
        choice = {
            "from_name": QUESTION, "to_name": TEXT, "type": "choices",
            "value": {"choices": choices},
        }  # fmt: skip
        task["predictions"] = [
            {
                "model_version": job.model.path,
                "score": row[job.called("confidence")],
                "result": [choice] if choices else [],
            }
        ]
    return task


def _label_studio_interface(section: "LabelSection") -> str:
    """The labeling configuration that the pre-annotations name."""
    many, required = ("multiple", "false") if section.several else ("single", "true")
    choices = [
        f"    <Choice value={quoteattr(label)}{f' hint={quoteattr(meaning)}' if meaning else ''}/>"
        for label, meaning in (section.labels or {}).items()
    ]
    lines = [
        "<View>",
        f'  <Text name="{TEXT}" value="${TEXT}" valueType="text"/>',
        f'  <Choices name="{QUESTION}" toName="{TEXT}" choice="{many}" required="{required}">',
        *choices,
        "  </Choices>",
        "</View>",
    ]
    return "\n".join(lines) + "\n"


def label_studio_answers(task: Mapping[str, Any]) -> list[Any]:
    """What people have submitted for a task of a JSON export; skipped ones are none."""
    answers = []
    for annotation in task["annotations"]:
        if not annotation.get("was_cancelled"):
            chosen = [
                item["value"]["choices"]
                for item in annotation["result"]
                if item["from_name"] == QUESTION
            ]
            answers.append(chosen[0] if chosen else [])
    return answers
