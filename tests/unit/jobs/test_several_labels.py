"""Several labels of a text, and labels with levels: votes, reasons for review, metrics."""

import json
from typing import Any

import pyarrow as pa
import pytest
from sklearn.metrics import f1_score, precision_score

from jobs.label import LabelJob
from jobs.label_examples import Shown
from jobs.label_metrics import by_label_lines, by_level_lines
from jobs.label_report import Counts, report_lines
from jobs.label_rows import ballots
from jobs.sections import NONE
from tests.unit.jobs.test_label import NAMES, _job, labeled

TOPICS = {"labels": ["billing", "delivery/late", "delivery/lost"], "several": True}


def _traces(rows: list[list[list[str] | None]], **columns: list[Any]) -> pa.Table:
    """The traces of rows whose samples give these labels; the vote is only whether there is one."""
    found = []
    for i, said in enumerate(rows):
        texts = [None if names is None else json.dumps({"labels": names}) for names in said]
        vote = next((text for text in texts if text is not None), None)
        for sample, text in enumerate(texts):
            found.append(
                {
                    "sample": sample, "parsed": text, "vote": vote, "agreement": 0.0,
                    "state": "finished" if text else "unparsed", "think": f"thought {sample}",
                    "answer": "as it came", **{name: values[i] for name, values in columns.items()},
                }
            )  # fmt: skip
    return pa.Table.from_pylist(found)


def test_run_asks_for_a_set_of_known_labels() -> None:
    run = _job(TOPICS).run
    assert run.answer.format == "sets"
    parse = run.answer.load_format().parse
    assert parse('{"labels": ["delivery/lost", "billing"]}') == (
        '{"labels": ["billing", "delivery/lost"]}'
    )
    assert parse('{"labels": ["delivery"]}') is None, "a level is no label"
    assert "one, several or none" in (run.prompt.template or "")


@pytest.mark.parametrize(
    ("said", "label", "share", "sample"),
    [
        ([["billing"], ["billing", "delivery/late"], ["billing"]], ["billing"], 2 / 3, 0),
        # No two samples agree on all, and yet each label has its majority.
        (
            [["billing", "delivery/late"], ["delivery/lost", "billing"], ["delivery/late"]],
            ["billing", "delivery/late"], 2 / 3, 0,
        ),
        ([["billing"], []], [], 0.5, 1),
        ([[], []], [], 1.0, 0),
        ([["billing"], None, ["billing"], ["billing"]], ["billing"], 0.75, 0),
        ([None, None], None, 0.0, 0),
    ],
)  # fmt: skip
def test_each_label_has_its_own_vote(
    said: list[list[str] | None], label: list[str] | None, share: float, sample: int
) -> None:
    section = _job(TOPICS).label
    [ballot] = ballots(section, _traces([said]), NAMES)
    assert section.cell_of(ballot.label) == label
    assert ballot.share == pytest.approx(share, abs=1e-6)
    assert ballot.trace == sample


def _counted(job: LabelJob, table: pa.Table) -> Counts:
    counts = Counts()
    counts.add(labeled(job, table, NAMES), job, Shown(job))
    return counts


def test_labels_are_lists_in_the_order_of_the_config_and_compared_as_sets() -> None:
    gold = [["delivery/late", "billing"], '["billing"]', "delivery/lost", None]
    said: list[list[list[str] | None]] = [
        [["delivery/late", "billing"]], [["billing", "delivery/lost"]], [["delivery/lost"]], [[]],
    ]  # fmt: skip
    job = _job({**TOPICS, "gold_column": "gold"})
    traces = _traces(said, text=[*"abcd"])
    for i, value in enumerate(gold):
        one = traces.slice(i, 1).append_column("gold", pa.array([value]))
        [row] = labeled(job, one, NAMES).to_pylist()
        assert row["review"] == ("differs from gold" if i == 1 else None), gold[i]
        assert isinstance(row["label"], list)
    both = traces.slice(0, 1).append_column("gold", pa.array([gold[0]]))
    assert labeled(job, both, NAMES)["label"].to_pylist() == [["billing", "delivery/late"]]


def test_report_counts_each_label_and_those_that_are_none() -> None:
    job = _job({**TOPICS, "gold_column": "gold"})
    said: list[list[list[str] | None]] = [[["billing", "delivery/late"]], [[]], [None]]
    gold = [["billing", "spam"], [], ["billing"]]
    lines = list(report_lines(_counted(job, _traces(said, text=[*"abc"], gold=gold)), job))
    for name in ("billing", "(no label applies)", "(none)"):
        assert f"| {name} | 1 | 33.3% |" in lines
    assert lines[-1].endswith(
        "1 rows have a label in gold that is none of the labels, such as spam"
    )


def test_metrics_of_each_label_are_those_of_scikit_learn() -> None:
    gold = [{"a", "b"}, {"a"}, set(), {"b"}, {"a"}]
    said = [{"a"}, {"a", "b"}, set(), {"b"}, None]
    pairs = {
        (json.dumps(sorted(right)), NONE if labels is None else json.dumps(sorted(labels)), True): 1
        for right, labels in zip(gold, said, strict=True)
    }
    lines = list(by_label_lines(pairs))
    with_a = [["a" in right for right in gold], ["a" in (labels or ()) for labels in said]]
    assert (
        f"| a | 3 | 2 | {precision_score(*with_a):.3f} | 0.667 | {f1_score(*with_a):.3f} |" in lines
    )
    assert "| all rows | 5 | 40.0% | 0.667 |" in lines
    only = list(by_label_lines({('["a"]', '["a"]', True): 2, ('["a"]', "[]", True): 1}))
    assert "| a | 3 | 2 | 1.000 | 0.667 | 0.800 |" in only, "a single label is no two classes"
    assert list(by_label_lines({("[]", "[]", True): 2}))[-1].endswith("| 2 | 100.0% | - |")


def test_levels_are_compared_as_deep_as_people_went() -> None:
    pairs = {
        ("a/b/c", "a/b/d", True): 4, ("a/b", "a/b/d", True): 2, ("e", "a/b", True): 1,
        ("a/x", "a", True): 1, ("a/b/c", NONE, False): 2,
    }  # fmt: skip
    lines = list(by_level_lines(pairs, several=False))
    accuracy = [line.split(" | ")[:3] for line in lines[-3:]]
    assert accuracy == [["| 1", "10", "70.0%"], ["| 2", "9", "66.7%"], ["| 3", "6", "0.0%"]]
    sets = {('["a/b", "c"]', '["a/d"]', True): 1, ("[]", '["a/b"]', True): 1}
    lines = list(by_level_lines(sets, several=True))
    assert lines[-2:] == ["| 1 | 1 | 0.0% | 0.667 |", "| 2 | 1 | 0.0% | 0.000 |"]


def test_report_of_paths_has_a_line_for_each_level() -> None:
    job = _job({**TOPICS, "paths": True, "gold_column": "gold"})
    traces = _traces([[["delivery/late"]]], text=["a"], gold=[["delivery/lost"]])
    lines = list(report_lines(_counted(job, traces), job))
    assert lines[-2:] == ["| 1 | 1 | 100.0% | 1.000 |", "| 2 | 1 | 0.0% | 0.000 |"]
