"""Top-ups and retries without engines: what each pass has still to do."""

from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.output import passes
from pipeline.output.layout import done_name
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.output.passes import samples_per_row, to_retry, to_run
from pipeline.planning import PartRef, Pass, Range
from tests.unit.output.blocks import METADATA, SCHEMA
from tests.unit.output.passes_by_hand import (
    A0,
    A1,
    A2,
    B0,
    PARTS,
    SETTINGS,
    Traces,
    carry_out,
    picked,
    retry,
    rows_to_do,
    work,
    write,
)


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    ledger.open_run(SETTINGS, {})
    return ledger


def test_what_is_done_is_not_done_again(ledger: Ledger) -> None:
    """Runs, top-ups and retries after each other, each of them twice."""
    assert work(ledger, 1) == [(0, 13)]
    assert work(ledger, 1) == [(0, 0)]
    assert work(ledger, 3) == [(0, 0), (1, 26)]
    assert work(ledger, 3) == [(0, 0)]
    assert retry(ledger, ["truncated"]) == (2, 0)
    assert work(ledger, 4) == [(0, 0), (3, 13)]
    assert work(ledger, 4) == [(0, 0)]
    assert retry(ledger, ["finished"]) == (4, 52)
    assert retry(ledger, ["truncated"]) == (5, 0)
    assert work(ledger, 4) == [(0, 0)]
    assert samples_per_row(ledger) == 4
    found = pq.read_table(ledger.store.path(A1.name))
    assert found["id"].to_pylist() == [row for row in range(4, 8) for _ in range(4)]
    assert found["sample"].to_pylist() == [0, 1, 2, 3] * 4
    assert found["attempt"].to_pylist() == [4] * 16


def test_new_shard_after_a_top_up_gets_all_samples_in_the_run_itself(ledger: Ledger) -> None:
    assert work(ledger, 1, PARTS[:3]) == [(0, 10)]
    assert work(ledger, 2, PARTS[:3]) == [(0, 0), (1, 10)]
    assert work(ledger, 2) == [(0, 6)]
    assert work(ledger, 3) == [(0, 0), (2, 13)]


def test_interrupted_top_up_does_only_what_is_missing(ledger: Ledger) -> None:
    work(ledger, 1)
    _, top_up = to_run(ledger, PARTS, 3)
    carry_out(ledger, [A0], top_up, closes=False)
    write(ledger, top_up, Range(A1, 5, 7), {})
    plan = passes.plan_pass(ledger, PARTS, top_up)
    assert rows_to_do(plan.todo) == [
        (A1.name, 4, 5), (A1.name, 7, 8), (A2.name, 8, 10), (B0.name, 0, 3)
    ]  # fmt: skip
    assert (plan.parts_done, plan.rows, plan.rows_todo) == (1, 13, 7)
    assert work(ledger, 3) == [(0, 0), (1, 14)]
    assert work(ledger, 3) == [(0, 0)]


def test_retried_trace_that_ends_so_again_is_left_by_the_same_retry(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: Traces = {(A0.name, 1, 0): {"state": "truncated"}, (A1.name, 6, 0): {"state": "truncated"}}
    carry_out(ledger, PARTS, Pass(0, 0, 1), cut)
    first = to_retry(ledger, SETTINGS, ["truncated"], None)
    assert carry_out(ledger, [A0], first, cut, closes=False) == 1
    assert to_retry(ledger, SETTINGS, ["truncated"], None) == first
    opened, open_ = list[str](), ledger.store.open

    def record(name: str) -> Any:
        opened.append(name)
        return open_(name)

    with monkeypatch.context() as patch:
        patch.setattr(ledger.store, "open", record)
        assert picked(passes.plan_pass(ledger, PARTS, first).todo) == [(A1.name, ((6, (0,)),))]
    assert A0.name not in opened  # what has finished the retry is not read again
    assert carry_out(ledger, PARTS, first, cut) == 1
    assert retry(ledger, ["truncated"]) == (2, 2)
    assert retry(ledger, ["truncated"]) == (3, 0)


def test_footer_names_all_passes_and_keeps_the_settings_of_the_run(ledger: Ledger) -> None:
    work(ledger, 1)
    retry(ledger, ["finished"])
    work(ledger, 2)
    retry(ledger, ["finished"])
    footer = part_metadata(ledger.store, A0.name)
    assert [entry["number"] for entry in footer["passes"]] == [1, 2, 3]
    assert [entry["states"] for entry in footer["passes"]] == [["finished"], [], ["finished"]]
    assert footer["settings"]["sampling.n"] == 2
    assert footer["summary"]["traces"] == 8


@pytest.mark.parametrize("number", [0, 1])
def test_fragments_and_checkpoints_stay_until_the_part_is_written(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    if number:
        work(ledger, 1)
    run_pass, delete, deleted = Pass(number, number, number + 1), ledger.store.delete, list[str]()

    def check(names: list[str]) -> None:
        if names:
            assert pq.read_table(ledger.store.path(A0.name)).num_rows == 4 * (number + 1)
            assert ledger.store.exists(done_name(PartRef.of(A0), number))
        deleted.extend(names)
        delete(names)

    monkeypatch.setattr(ledger.store, "delete", check)
    write(ledger, run_pass, Range(A0, 0, 4), {})
    assert deleted == []
    assert ledger.commit(PartRef.of(A0), run_pass, SCHEMA, METADATA)
    assert len(deleted) == 4


@pytest.mark.parametrize("is_retry", [True, False])
def test_part_that_holds_a_pass_is_marked_and_no_other(ledger: Ledger, is_retry: bool) -> None:
    """The driver died between a part and its mark; the part may have changed in a retry since."""
    work(ledger, 1)
    run_pass = Pass(1, 0, 1, ("finished",)) if is_retry else Pass(1, 1, 2)
    ledger.open_pass(run_pass)
    carry_out(ledger, [A0, A1], run_pass, closes=False)
    ledger.store.delete([done_name(PartRef.of(A0), 1)])
    write(ledger, run_pass, Range(A0, 0, 2), {})
    write(ledger, run_pass, Range(B0, 0, 1), {})
    before = ledger.store.read(A0.name)
    passes.recover_marks(ledger, PARTS, run_pass)
    assert ledger.listing().finished_parts(1) == {A0.name, A1.name}
    assert list(ledger.listing().journal[1]) == [B0.name]
    assert ledger.store.read(A0.name) == before
    passes.recover_marks(ledger, PARTS[3:], run_pass)
    assert ledger.listing().finished_parts(1) == {A0.name, A1.name}


# Plans


def test_run_has_to_do_what_is_neither_finished_nor_durable(ledger: Ledger) -> None:
    run = Pass(0, 0, 1)
    carry_out(ledger, [A1], run)
    write(ledger, run, Range(A0, 1, 3), {})
    plan = passes.plan_run(ledger, PARTS)
    assert rows_to_do(plan.todo) == [
        (A0.name, 0, 1), (A0.name, 3, 4), (A2.name, 8, 10), (B0.name, 0, 3)
    ]  # fmt: skip
    assert passes.plan_pass(ledger, PARTS, run) == plan
    assert plan.parts_done == 1


def test_pass_covers_only_parts_that_the_run_has_finished(ledger: Ledger) -> None:
    carry_out(ledger, [A0, B0], Pass(0, 0, 1))
    for run_pass in (Pass(1, 1, 2), Pass(1, 0, 1, ("finished",))):
        plan = passes.plan_pass(ledger, PARTS, run_pass)
        assert rows_to_do(plan.todo) == [(A0.name, 0, 4), (B0.name, 0, 3)]
        assert plan.parts == (A0, B0)


def test_retry_selects_by_state_or_by_the_larger_share_of_foreign_letters(ledger: Ledger) -> None:
    traces: Traces = {
        (A0.name, 0, 0): {"state": "truncated"}, (A0.name, 1, 0): {"think_foreign": 0.5},
        (A0.name, 2, 0): {"answer_foreign": 0.75, "think_foreign": 0.1},
        (A0.name, 3, 0): {"think_foreign": 0.75, "answer_foreign": 0.1},
        (A1.name, 5, 0): {"state": "failed"},
    }  # fmt: skip
    carry_out(ledger, PARTS, Pass(0, 0, 1), traces)
    by_states = passes.plan_pass(ledger, PARTS, Pass(1, 0, 1, ("failed", "truncated")))
    assert picked(by_states.todo) == [(A0.name, ((0, (0,)),)), (A1.name, ((5, (0,)),))]
    by_share = passes.plan_pass(ledger, PARTS, Pass(1, 0, 1, foreign=0.5))
    assert picked(by_share.todo) == [(A0.name, ((2, (0,)), (3, (0,))))]
    by_both = passes.plan_pass(ledger, PARTS, Pass(1, 0, 1, ("failed",), foreign=0.5))
    assert picked(by_both.todo) == [(A0.name, ((2, (0,)), (3, (0,)))), (A1.name, ((5, (0,)),))]
    nothing = passes.plan_pass(ledger, PARTS, Pass(1, 0, 1, ("looping",)))
    assert (nothing.todo, nothing.rows) == ((), 13)


def test_durable_ranges_are_those_of_finished_parts_and_fragments(ledger: Ledger) -> None:
    run = Pass(0, 0, 1)
    carry_out(ledger, [A0], run)
    write(ledger, run, Range(A1, 5, 7), {})
    found = passes.durable_ranges(ledger, PARTS, run)
    assert rows_to_do(found) == [(A0.name, 0, 4), (A1.name, 5, 7)]
    carry_out(ledger, PARTS, run)
    assert passes.durable_ranges(ledger, PARTS, Pass(1, 1, 2)) == []
    top_up = Pass(1, 1, 2)
    carry_out(ledger, [A2], top_up, closes=False)
    write(ledger, top_up, Range(B0, 0, 1), {})
    found = passes.durable_ranges(ledger, PARTS, top_up)
    assert rows_to_do(found) == [(A2.name, 8, 10), (B0.name, 0, 1)]
    assert [piece.picks for piece in found] == [None, None]


def test_durable_traces_of_a_retry_are_those_that_it_made(ledger: Ledger) -> None:
    cut: Traces = {
        (part.name, row, 0): {"state": "truncated"}
        for part, row in ((A0, 1), (A1, 4), (A1, 6), (A2, 9))
    }
    carry_out(ledger, PARTS, Pass(0, 0, 1), cut)
    first = to_retry(ledger, SETTINGS, ["truncated"], None)
    carry_out(ledger, [A0], first, cut, closes=False)  # truncated again
    write(ledger, first, Range(A1, 4, 6, ((4, (0,)),)), {})
    ledger.store.put(done_name(PartRef.of(B0), 1), b"")  # it had nothing to retry
    found = passes.durable_ranges(ledger, PARTS, first)
    assert picked(found) == [(A0.name, ((1, (0,)),)), (A1.name, ((4, (0,)),))]
