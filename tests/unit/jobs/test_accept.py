"""The samples of a run, written again with what was decided about each."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import samples as samples_module
from jobs.accept import AcceptanceRules, SampleCounts, rejection, selection
from jobs.near_duplicates import NearDuplicates
from jobs.own_files import OwnFiles
from jobs.samples import FIELDS, FOLDER, Checks, Samples
from pipeline.answers.boxed import Boxed
from pipeline.answers.text import Text
from pipeline.config.run_config import RunConfig
from pipeline.errors import InputError, OutputError
from pipeline.execution.prepare import prepare
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

PARTS = ["shard-00000.00000", "shard-00000.00001", "shard-00001.00000", "shard-00002.00000"]
# By row of the third shard and sample: how its trace differs from a plain one.
STATES: dict[tuple[int, int], dict[str, Any]] = {
    (0, 0): {"state": "truncated", "answer": None}, (0, 1): {"correct": False},
    (1, 0): {"think_tokens": 300}, (1, 1): {"answer": "Quite another answer", "think": None},
    (2, 0): {"wasted_tokens": 7}, (2, 1): {"duplicate_of": "shard-00000.00000:0"},
}  # fmt: skip


def own(folder: Path) -> OwnFiles:
    return OwnFiles(str(folder / "job"), str(folder / "out"), (f"{FOLDER}/",), "")


def trace(row: int, sample: int) -> dict[str, Any]:
    return {"answer": f"The answer is the number {row} of sample {sample}, and so on."}


def run_config(tmp_path: Path, make_config: MakeConfig) -> RunConfig:
    """A finished run of 5 rows, none and 3, four to a part, two samples of each."""
    write_shards(tmp_path / "in", [5, 0, 3])
    output = {"path": str(tmp_path / "out"), "rows_per_part": 4, "rename": {"state": "ending"}}
    config = make_config(output=output, sampling={"n": 2})
    plain: list[dict[str, Any]] = [{}] * 10
    calls = iter([*plain, *STATES.values()])  # in the order of shards, rows and samples
    finish(config, lambda row, sample: {**trace(row, sample), **next(calls)})
    return config


def rows(samples: Samples) -> list[dict[str, Any]]:
    found = []
    for part in samples.parts:
        found += pq.read_table(samples.store.path(part)).to_pylist()
    return found


def test_every_sample_is_written_with_its_name_and_what_was_decided(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    run = prepare(run_config(tmp_path, make_config))
    samples = Samples(run, own(tmp_path), Checks(AcceptanceRules(max_tokens=200)))
    samples.add_new()
    assert samples.parts == [f"{part}.parquet" for part in PARTS]
    assert [info.name for info in samples.store.files()] == samples.parts
    assert samples.files == {f"samples/{part}.parquet" for part in PARTS}
    found = rows(samples)
    traces = pa.concat_tables(
        pq.read_table(run.ledger.store.path(part)) for part in samples.parts
    ).to_pylist()
    ours = [field.name for field in FIELDS]
    assert [{k: v for k, v in row.items() if k not in ours} for row in found] == traces
    assert [row["sample_id"] for row in found] == [
        f"{part}:{row}:{sample}"
        for part, count in zip(PARTS, (4, 1, 0, 3), strict=True)
        for row in range(count)
        for sample in range(2)
    ]
    assert [row["rejected"] for row in found] == [
        *[None] * 10, "state", "wrong", "too_long", None, None, None
    ]  # fmt: skip
    assert [row["accepted"] for row in found] == [row["rejected"] is None for row in found]
    assert {row["near_duplicate_of"] for row in found} == {None}
    empty = pq.read_table(samples.store.path(samples.parts[2]))
    assert empty.schema.names[-len(ours) :] == ours
    counts = samples.counts
    assert (counts.rows, counts.samples, counts.accepted) == (8, 16, 13)
    assert counts.rejected == {"state": 1, "wrong": 1, "too_long": 1}
    assert counts.states == {"finished": 15, "truncated": 1}
    # The copy of a duplicate was generated elsewhere.
    assert (counts.think_tokens, counts.answer_tokens) == (14 * 2 + 300, 15)
    assert (counts.wasted_tokens, counts.tokens) == (7, 328 + 15 + 7)


def test_parts_that_come_later_are_added_and_compared_with_the_earlier_ones(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [2], prompt="Always the same")
    config = make_config(sampling={"n": 1})
    finish(config, trace)
    samples = Samples(prepare(config), own(tmp_path), Checks(AcceptanceRules(near_duplicate=0.9)))
    samples.add_new()
    assert [row["near_duplicate_of"] for row in rows(samples)] == [None, None]
    before = [(info.name, info.tag) for info in samples.store.files()]
    write_shards(tmp_path / "in", [2, 2], prompt="Always  the same")
    finish(config, lambda row, _: {**trace(row, 0), "state": ("finished", "truncated")[row]})
    samples.add_new()
    assert [(info.name, info.tag) for info in samples.store.files()][:1] == before
    assert samples.parts == ["shard-00000.00000.parquet", "shard-00001.00000.parquet"]
    found = rows(samples)
    assert [row["near_duplicate_of"] for row in found] == [
        None, None, "shard-00000.00000:0:0", None
    ]  # fmt: skip
    assert [row["rejected"] for row in found] == [None, None, "duplicate", "state"]
    assert (samples.counts.samples, samples.counts.accepted) == (4, 2)
    samples.add_new()
    assert (samples.counts.samples, len(samples.parts)) == (4, 2)


def test_samples_of_another_prompt_or_without_such_a_rule_are_no_duplicates(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [2])
    config = make_config(sampling={"n": 2})
    finish(config)
    run = prepare(config)
    for threshold, repeated in ((None, False), (0.5, True)):
        samples = Samples(
            run, own(tmp_path / f"{threshold}"), Checks(AcceptanceRules(near_duplicate=threshold))
        )
        samples.add_new()
        assert [row["near_duplicate_of"] is not None for row in rows(samples)] == [
            False, repeated, False, repeated,
        ]  # fmt: skip


def test_thinking_counts_in_the_comparison(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [1])
    config = make_config(sampling={"n": 4})
    thoughts = ("one way of ten words to come to this very end", "quite another", None, None)
    finish(config, lambda _, sample: {"think": thoughts[sample], "answer": "a b c d e f"})
    samples = Samples(prepare(config), own(tmp_path), Checks(AcceptanceRules(near_duplicate=0.9)))
    samples.add_new()
    assert [row["near_duplicate_of"] for row in rows(samples)] == [
        None, None, None, "shard-00000.00000:0:2"
    ]  # fmt: skip


def test_file_of_somebody_else_is_refused_and_stays(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    run = prepare(run_config(tmp_path, make_config))
    samples = Samples(run, own(tmp_path), Checks(AcceptanceRules()))
    samples.store.put(f"{PARTS[1]}.parquet", b"of a person")
    with pytest.raises(OutputError, match=rf"that this job has not written.*samples/{PARTS[1]}"):
        samples.add_new()
    assert [info.name for info in samples.store.files()] == [f"{PARTS[1]}.parquet"]
    assert samples.store.read(f"{PARTS[1]}.parquet") == b"of a person"


@pytest.mark.parametrize("column", ["accepted", "sample_id"])
def test_input_with_a_column_of_such_a_name_is_refused(
    tmp_path: Path, make_config: MakeConfig, column: str
) -> None:
    write_shards(tmp_path / "in", [1])
    table = pq.read_table(tmp_path / "in/shard-00000.parquet")
    pq.write_table(table.append_column(column, [["x"]]), tmp_path / "in/shard-00000.parquet")
    with pytest.raises(InputError, match=rf"has a column {column}, a name that this job uses"):
        Samples(prepare(make_config()), own(tmp_path), Checks(AcceptanceRules()))


def test_unknown_token_counts_are_none() -> None:
    found = {"state": "finished", "correct": None, "prompt_tokens": None, "think_tokens": 20}
    tokens = {**found, "answer_tokens": 30}
    assert selection(tokens, AcceptanceRules(max_tokens=50), None) is None
    assert selection(tokens, AcceptanceRules(max_tokens=49), None) == "too_long"


@pytest.mark.parametrize(
    ("one", "other", "threshold", "is_near"),
    [
        ("a b c d e", "a b c d e", 1.0, True),
        ("a b c d e f", "a b c d e g", 0.6, False),  # one of three shingles is common
        ("a b c d e", "z b c d e", 0.1, False),  # none is
        ("x", "y", 0.1, False),
    ],
)
def test_similarity_is_that_of_all_runs_of_five_words(
    one: str, other: str, threshold: float, is_near: bool
) -> None:
    index = NearDuplicates(threshold)
    assert index.find_or_add("one", "p", one) is None
    assert index.find_or_add("other", "p", other) == ("one" if is_near else None)


def test_sample_that_was_asked_once_more_counts_as_a_rescued_one() -> None:
    cells = {"sample": 0, "state": "finished", "correct": True, "duplicate_of": None}
    tokens = {"prompt_tokens": 1, "think_tokens": 2, "answer_tokens": 3, "wasted_tokens": 4}
    asked = {**cells, **tokens, "asked_tokens": 5}
    assert rejection(asked, AcceptanceRules(), Text()) == "state"
    assert rejection(asked, AcceptanceRules(rescued=True), Text()) is None
    assert rejection({**asked, "asked_tokens": 0}, AcceptanceRules(), Text()) is None
    counts = SampleCounts()
    counts.add(asked, None)
    assert (counts.asked_tokens, counts.tokens) == (5, 14)


def test_sample_whose_thinking_was_closed_early_counts_as_a_rescued_one() -> None:
    closed = {
        "state": "finished", "closed_by": "early_answer", "correct": True, "parsed": "5",
        "prompt_tokens": 1, "think_tokens": 2, "answer_tokens": 3,
    }  # fmt: skip
    assert rejection(closed, AcceptanceRules(), Text()) == "state"
    assert rejection(closed, AcceptanceRules(rescued=True), Text()) is None
    assert rejection({**closed, "closed_by": None}, AcceptanceRules(), Text()) is None


def test_rejected_samples_are_counted_by_reason() -> None:
    counts = SampleCounts()
    cells = {"sample": 1, "state": "finished", "duplicate_of": "x"}
    counts.add(cells, "wrong")
    counts.add(cells, "wrong")
    assert (counts.rows, counts.samples, counts.accepted, counts.tokens) == (0, 2, 0, 0)
    assert counts.rejected == {"wrong": 2}


def test_tokens_of_probes_are_counted_where_there_are_any() -> None:
    counts = SampleCounts()
    tokens = {"think_tokens": 30, "answer_tokens": 5, "wasted_tokens": 1}
    cells = {"sample": 0, "state": "finished", "duplicate_of": None, **tokens}
    counts.add(cells, None)
    counts.add({**cells, "probe_tokens": 4}, None)
    assert (counts.probe_tokens, counts.tokens) == (4, 2 * 36 + 4)


@pytest.mark.parametrize(("parsed", "vote"), [(None, "3"), ("3", None), (None, None)])
def test_sample_without_an_answer_or_a_vote_agrees_with_nothing(
    parsed: str | None, vote: str | None
) -> None:
    cells = {"state": "finished", "correct": None, "agreement": 1.0, "parsed": parsed, "vote": vote}
    tokens = dict.fromkeys(("prompt_tokens", "think_tokens", "answer_tokens"), 1)
    rules = AcceptanceRules(min_agreement=0.5)
    assert rejection({**cells, **tokens}, rules, Boxed()) == "disagrees"


def test_samples_are_written_in_row_groups(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples_module, "ROW_GROUP_ROWS", 3)
    samples = Samples(
        prepare(run_config(tmp_path, make_config)), own(tmp_path), Checks(AcceptanceRules())
    )
    samples.add_new()
    groups = pq.read_metadata(samples.store.path(samples.parts[0]))
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [3, 3, 2]
