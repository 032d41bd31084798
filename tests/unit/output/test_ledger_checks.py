"""What the ledger refuses, passes over and leaves behind."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.output import shard_record
from pipeline.output.layout import (
    LEASE,
    MANIFEST,
    checkpoint_name,
    done_name,
    journal_folder,
    pass_name,
)
from pipeline.output.ledger import Ledger, differences
from pipeline.output.parts import AGREE, part_metadata
from pipeline.output.yaml_files import read_yaml
from pipeline.planning import Pass, Shard
from pipeline.storage import Storage
from tests.unit.output.blocks import METADATA, PART, RUN, SCHEMA, block, read

ROWS = list(range(100, 110))


# The run that owns the output


def test_changed_settings_are_named_in_order() -> None:
    many = {f"model.{letter}": 1 for letter in "fedcbag"}
    assert [key for key, _ in differences({}, many)] == sorted(many)


def test_retry_may_change_only_what_its_prefixes_name(ledger: Ledger) -> None:
    settings: dict[str, Any] = {"sampling.n": 2, "model.path": "m", AGREE: None}
    ledger.open_run(settings, {})
    may_change = ["sampling.", "thinking."]
    ledger.check_run({**settings, "sampling.top_p": 1}, may_change)
    for changed in ({"model.path": "x"}, {AGREE: 2}, {"thinking.early_answer.agree": 3}):
        with pytest.raises(OutputError, match="holds a run with other settings"):
            ledger.check_run({**settings, **changed}, may_change)


def test_folder_with_only_a_lease_is_empty(ledger: Ledger) -> None:
    ledger.store.put(f"{LEASE}/00000001.yaml", b"host: x")
    ledger.open_run({"a": "ü"}, {})
    assert "ü".encode() in ledger.store.read(MANIFEST)


@pytest.mark.parametrize(("theirs", "is_refused"), [({"a": 1}, False), ({"a": 2}, True)])
def test_run_that_another_driver_opened_first_must_be_the_same(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, theirs: dict[str, int], is_refused: bool
) -> None:
    create = ledger.store.create

    def late(name: str, data: bytes) -> bool:
        monkeypatch.setattr(ledger.store, "create", create)
        ledger.open_run(theirs, {})
        return create(name, data)

    monkeypatch.setattr(ledger.store, "create", late)
    if is_refused:
        with pytest.raises(OutputError, match="a: there 2, now 1"):
            ledger.open_run({"a": 1}, {})
    else:
        ledger.open_run({"a": 1}, {})
    manifest = ledger.manifest()
    assert manifest is not None
    assert manifest["settings"] == theirs


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"- 1", "it is not a mapping"), (b"a: 1", "it has no settings"), (b"\xff", "it is not YAML")],
)
def test_manifest_that_is_none_is_damaged(ledger: Ledger, data: bytes, what: str) -> None:
    ledger.store.put(MANIFEST, data)
    with pytest.raises(OutputError, match=rf"manifest.yaml is damaged: {what}"):
        ledger.manifest()


def test_shards_are_recorded_with_the_schema_of_the_last_time(ledger: Ledger) -> None:
    shards = [Shard(f"s{i}.parquet", "", 5, 100, "tag") for i in range(2)]
    first, second = pa.schema([("a", pa.int32())]), pa.schema([("a", pa.int64())])
    ledger.record_shards(shards[:1], first, "in")
    ledger.record_shards(shards, second, "elsewhere")
    known = ledger.known_shards()
    assert (known.schema, known.location, set(known.identities)) == (
        second, "elsewhere", {"s0.parquet", "s1.parquet"}
    )  # fmt: skip


@pytest.mark.parametrize("begun", [False, True])
def test_shards_that_workers_record_at_the_same_time_are_all_recorded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    shards = [Shard(f"s{i}.parquet", "", 5, 100, "tag") for i in range(3)]
    schema = pa.schema([("a", pa.int32())])
    if begun:
        ledger.record_shards(shards[:1], schema, "in")

    def read_late(store: Storage, name: str) -> dict[str, Any] | None:
        seen = read_yaml(store, name)
        monkeypatch.setattr(shard_record, "read_yaml", read_yaml)
        ledger.record_shards(shards, schema, "in")
        return seen

    monkeypatch.setattr(shard_record, "read_yaml", read_late)
    ledger.record_shards(shards[:2], schema, "in")
    assert len(ledger.known_shards().identities) == 3


# Passes


def test_passes_come_in_the_order_of_their_numbers(ledger: Ledger) -> None:
    late, early = Pass(8, 0, 2, ("failed",), (("b", 1), ("a", None))), Pass(1, 1, 2)
    ledger.open_pass(late)
    ledger.open_pass(early)
    sorted_late = Pass(8, 0, 2, ("failed",), (("a", None), ("b", 1)))
    assert ledger.passes(ledger.listing()) == [early, sorted_late]
    with pytest.raises(OutputError, match="another driver has opened pass 8; run the command"):
        ledger.open_pass(Pass(8, 2, 3))
    assert ledger.passes(ledger.listing()) == [early, sorted_late]


def test_closed_pass_and_finished_part_leave_no_folders(ledger: Ledger) -> None:
    ledger.open_pass(Pass(1, 1, 2))
    ledger.store.put(done_name(PART, 1), b"")
    ledger.close_pass(Pass(1, 1, 2))
    assert not Path(ledger.store.path(pass_name(1))).exists()
    ledger.store.put(checkpoint_name(PART, "e", 0), b"")
    ledger.write_block(block(ROWS))
    assert Path(ledger.store.path(journal_folder(PART))).exists()
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert not Path(ledger.store.path(journal_folder(PART))).exists()
    assert {info.name.split("/")[1] for info in ledger.store.files("__qwq")} == {"passes"}


# Fragments


def test_stray_files_in_the_journal_are_passed_over(ledger: Ledger) -> None:
    ledger.store.put(f"{journal_folder(PART)}/._100-105.rows", b"x")
    ledger.write_block(block(ROWS))
    assert ledger.commit(PART, RUN, SCHEMA, METADATA)
    assert read(ledger)["id"].to_pylist() == ROWS


def test_each_fragment_holds_the_rows_of_its_name(ledger: Ledger) -> None:
    ledger.write_block(block([101, 103, 104, 107, 109]))
    found = {
        entry.rows: pq.read_table(ledger.store.path(entry.file.name))["id"].to_pylist()
        for entry in ledger.fragments(PART, 0)
    }
    assert found == {
        (101, 102): [101], (103, 105): [103, 104], (107, 108): [107], (109, 110): [109]
    }  # fmt: skip


def test_block_of_two_rows_leaves_out_the_durable_one(ledger: Ledger) -> None:
    ledger.write_block(block([100]))
    ledger.write_block(block([100, 101], "late"))
    assert sorted(ledger.listing().durable_ranges(0)[PART.name]) == [(100, 101), (101, 102)]


def test_block_of_one_row_lists_no_files(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """There can be thousands, and a row of 32,768 tokens is one block."""
    files = ledger.store.files
    monkeypatch.setattr(ledger.store, "files", lambda folder="": pytest.fail("listed"))
    ledger.write_block(block([105]))
    ledger.write_block(block([105], "late"))
    monkeypatch.setattr(ledger.store, "files", files)
    [entry] = ledger.fragments(PART, 0)
    assert pq.read_table(ledger.store.path(entry.file.name))["think"].to_pylist() == ["t"]


@pytest.mark.parametrize("is_committed", [True, False])
def test_fragments_that_vanish_mean_that_another_was_faster(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    ledger.write_block(block(ROWS))
    read_all = ledger.store.read_all

    def late(names: Iterable[str]) -> Any:
        monkeypatch.setattr(ledger.store, "read_all", read_all)
        names = list(names)
        if is_committed:
            assert ledger.commit(PART, RUN, SCHEMA, METADATA)
        ledger.store.delete(names)
        return read_all(names)

    monkeypatch.setattr(ledger.store, "read_all", late)
    assert ledger.commit(PART, RUN, SCHEMA, METADATA) is is_committed
    assert ledger.is_done(PART, 0) is is_committed


@pytest.mark.parametrize(
    ("samples", "is_enough"), [((0,), False), ((0, 1), True), ((0, 1, 2), True)]
)
def test_rows_that_agree_may_have_fewer_samples(
    ledger: Ledger, samples: tuple[int, ...], is_enough: bool
) -> None:
    metadata = {**METADATA, "settings": {"sampling.n": 3, AGREE: 2}}
    ledger.write_block(block(ROWS, samples=samples))
    if is_enough:
        assert ledger.commit(PART, Pass(0, 0, 3), SCHEMA, metadata)
    else:
        with pytest.raises(OutputError, match=r"make 10 traces of 10 rows, not 30 of 10"):
            ledger.commit(PART, Pass(0, 0, 3), SCHEMA, metadata)


def test_more_to_agree_than_samples_asks_for_all_samples(ledger: Ledger) -> None:
    metadata = {**METADATA, "settings": {"sampling.n": 2, AGREE: 5}}
    ledger.write_block(block(ROWS, samples=(0, 1)))
    assert ledger.commit(PART, Pass(0, 0, 2), SCHEMA, metadata)


def test_agreement_lets_no_pass_leave_samples_out(ledger: Ledger) -> None:
    metadata = {**METADATA, "settings": {"sampling.n": 1, AGREE: 1}}
    ledger.write_block(block(ROWS))
    assert ledger.commit(PART, RUN, SCHEMA, metadata)
    ledger.write_block(block(ROWS, samples=(1,)), 1)
    with pytest.raises(OutputError, match=r"make 20 traces of 10 rows, not 30 of 10"):
        ledger.commit(PART, Pass(1, 1, 3), SCHEMA, metadata)


def test_row_without_its_first_sample_is_no_row(ledger: Ledger) -> None:
    ledger.write_block(block(ROWS[:9], samples=(0, 1)))
    ledger.write_block(block(ROWS[9:], samples=(1, 2)))
    with pytest.raises(OutputError, match=r"make 20 traces of 9 rows, not 20 of 10"):
        ledger.commit(PART, Pass(0, 0, 2), SCHEMA, METADATA)


def test_footer_has_each_pass_once_though_it_is_merged_twice(ledger: Ledger) -> None:
    ledger.write_block(block(ROWS))
    ledger.commit(PART, RUN, SCHEMA, METADATA)
    for number in (1, 2):
        more = Pass(number, number, number + 1)
        for _ in range(2):
            ledger.store.delete([done_name(PART, number)])
            ledger.write_block(block(ROWS, "new", samples=(number,)), number)
            assert ledger.commit(PART, more, SCHEMA, METADATA)
    footer = part_metadata(ledger.store, PART.name)
    assert [entry["number"] for entry in footer["passes"]] == [1, 2]
    assert read(ledger)["sample"].to_pylist() == [0, 1, 2] * 10
