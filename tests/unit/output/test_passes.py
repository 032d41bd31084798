"""Top-ups and retries without engines: what each command has still to do, and what it refuses."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.output import passes
from pipeline.output.layout import done_name
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.output.passes import samples_per_row, to_retry, to_run
from pipeline.planning import Part, PartRef, Pass, Picks, Range, Shard, split_parts
from pipeline.storage import Storage
from tests.unit.output.test_ledger import METADATA, SCHEMA, block

SETTINGS: dict[str, Any] = {"sampling.n": 1, "sampling.temperature": 0.6, "model.path": "m"}
# Two shards: parts of 4, 4 and 2 rows, and one of 3.
PARTS = split_parts([Shard("a.parquet", "", 10, 1, "t"), Shard("b.parquet", "", 3, 1, "t")], 4)
A0, A1, A2, B0 = PARTS
Traces = dict[tuple[str, int, int], dict[str, Any]]  # by part, row and sample


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    ledger = Ledger(Storage(str(tmp_path / "out")))
    ledger.open_run(SETTINGS, {})
    return ledger


def write(ledger: Ledger, run_pass: Pass, piece: Range, traces: Traces) -> int:
    """Make the traces of ``piece`` durable; returns how many."""
    ref, made = PartRef.of(piece.part), 0
    rows: Picks = piece.picks or tuple(
        (row, run_pass.samples) for row in range(piece.start, piece.stop)
    )
    borders = [piece.start, *(row for row, _ in rows[1:]), piece.stop]
    if piece.picks is None:
        borders = list(range(piece.start, piece.stop + 1))
    for i, (row, samples) in enumerate(rows):
        table = block([row], f"p{run_pass.number}", ref, samples, [(borders[i], borders[i + 1])])
        for name, kind in (
            ("state", pa.string()), ("think_foreign", pa.float32()), ("answer_foreign", pa.float32()),
        ):  # fmt: skip
            given = [traces.get((ref.name, row, sample), {}).get(name) for sample in samples]
            values = [v or ("finished" if name == "state" else None) for v in given]
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values, kind))
        at = table.column_names.index("attempt")
        attempts = pa.array([run_pass.attempt] * len(samples), pa.int32())
        table = table.set_column(at, table.schema.field(at), attempts)
        ledger.write_block(table, run_pass.number)
        made += len(samples)
    return made


def carry_out(
    ledger: Ledger,
    parts: Iterable[Part],
    run_pass: Pass,
    traces: Traces | None = None,
    closes: bool = True,
) -> int:
    """Do what ``run_pass`` has still to do in ``parts``; returns the traces that it made."""
    made = 0
    if run_pass.number:
        passes.recover_marks(ledger, list(parts), run_pass)
    for piece in passes.plan_pass(ledger, list(parts), run_pass).todo:
        made += write(ledger, run_pass, piece, traces or {})
        metadata = {**METADATA, "settings": {"sampling.n": run_pass.stop}}
        ledger.commit(PartRef.of(piece.part), run_pass, SCHEMA, metadata)
    if run_pass.number and closes:
        ledger.close_pass(run_pass)
    return made


def work(ledger: Ledger, samples: int, parts: list[Part] = PARTS) -> list[tuple[int, int]]:
    """What `run` with ``samples`` does: the number of each pass, and the traces that it makes."""
    return [(p.number, carry_out(ledger, parts, p)) for p in to_run(ledger, parts, samples)]


def retry(ledger: Ledger, states: list[str], traces: Traces | None = None) -> tuple[int, int]:
    run_pass = to_retry(ledger, SETTINGS, states, None)
    return run_pass.number, carry_out(ledger, PARTS, run_pass, traces)


def rows_to_do(plan_or_ranges: Iterable[Range]) -> list[tuple[str, int, int]]:
    return [(piece.part.name, piece.start, piece.stop) for piece in plan_or_ranges]


def picked(ranges: Iterable[Range]) -> list[tuple[str, Picks]]:
    return [(piece.part.name, piece.picks or ()) for piece in ranges]


# No engine work


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


# Commands


def test_top_up_is_opened_when_it_is_reached(ledger: Ledger) -> None:
    flow = to_run(ledger, PARTS, 3)
    assert next(flow) == Pass(0, 0, 1)
    assert ledger.passes(ledger.listing()) == []
    assert list(flow) == [Pass(1, 1, 3)]
    assert ledger.passes(ledger.listing()) == [Pass(1, 1, 3)]
    assert list(to_run(ledger, PARTS, 3)) == [Pass(0, 0, 1), Pass(1, 1, 3)]
    assert ledger.passes(ledger.listing()) == [Pass(1, 1, 3)]
    for samples in (1, 2, 4):
        with pytest.raises(OutputError, match=r"has 3 samples .*, or is getting them; set .*n=3"):
            list(to_run(ledger, PARTS, samples))
    assert samples_per_row(ledger) == 1
    ledger.close_pass(Pass(1, 1, 3))
    assert samples_per_row(ledger) == 3
    assert list(to_run(ledger, PARTS, 3)) == [Pass(0, 0, 3)]
    with pytest.raises(OutputError, match=r"has 3 samples"):
        list(to_run(ledger, PARTS, 2))


def test_a_part_that_a_closed_top_up_has_left_out_gets_its_samples(ledger: Ledger) -> None:
    """Its shard was not among the input, or came while the driver slept."""
    work(ledger, 1)
    assert work(ledger, 2, [A0, A1, A2]) == [(0, 0), (1, 10)]
    assert work(ledger, 2, [A0, A1, A2]) == [(0, 0)]
    assert work(ledger, 2) == [(0, 0), (2, 3)]
    assert work(ledger, 2) == [(0, 0)]
    assert work(ledger, 3, [A0]) == [(0, 0), (3, 4)]
    assert work(ledger, 4) == [(0, 0), (4, 9), (5, 13)]
    for part in PARTS:
        assert part_metadata(ledger.store, part.name)["settings"]["sampling.n"] == 4


def test_rows_from_before_a_top_up_that_a_driver_closed_in_its_sleep_are_topped_up(
    ledger: Ledger,
) -> None:
    carry_out(ledger, [A0], Pass(0, 0, 1))
    top_up = list(to_run(ledger, [A0], 2))[-1]
    carry_out(ledger, [A0], top_up, closes=False)
    write(
        ledger, Pass(0, 0, 1), Range(B0, 0, 1), {}
    )  # by another driver; a shard has come meanwhile
    ledger.close_pass(top_up)
    made = [carry_out(ledger, [A0, B0], run_pass) for run_pass in to_run(ledger, [A0, B0], 2)]
    assert made == [4, 3]
    footer = part_metadata(ledger.store, B0.name)
    assert footer["settings"]["sampling.n"] == 2
    assert (footer["summary"]["rows"], footer["summary"]["traces"]) == (3, 6)


def test_every_top_up_that_is_open_is_ended(ledger: Ledger) -> None:
    """Two drivers have opened one each; one of them had slept."""
    work(ledger, 1)
    ledger.open_pass(Pass(1, 1, 3))
    ledger.open_pass(Pass(2, 1, 2))
    assert work(ledger, 3) == [(0, 0), (2, 13), (1, 26)]
    assert ledger.listing().closed == {1, 2}


def test_a_part_without_rows_is_not_short_of_samples(ledger: Ledger) -> None:
    parts = [*PARTS, *split_parts([Shard("empty.parquet", "", 0, 1, "t")], 4)]
    ledger.commit(PartRef.of(parts[-1]), Pass(0, 0, 1), SCHEMA, METADATA)
    work(ledger, 1, parts)
    assert work(ledger, 2, parts) == [(0, 0), (1, 13)]
    assert work(ledger, 2, parts) == [(0, 0)]


def test_a_top_up_for_a_part_that_was_left_out_goes_on_before_a_later_one(ledger: Ledger) -> None:
    work(ledger, 1)
    work(ledger, 2, [A0, A1, A2])
    _, catch_up = to_run(ledger, [B0], 2)
    assert catch_up == Pass(2, 1, 2)
    with pytest.raises(OutputError, match=r"set sampling\.n=2"):
        list(to_run(ledger, PARTS, 3))
    assert work(ledger, 2) == [(0, 0), (2, 3)]


def test_retry_is_no_top_up_and_its_number_counts(ledger: Ledger) -> None:
    open_retry = to_retry(ledger, SETTINGS, ["failed"], None)
    assert open_retry == Pass(1, 0, 1, ("failed",))
    assert samples_per_row(ledger) == 1
    assert list(to_run(ledger, PARTS, 1)) == [Pass(0, 0, 1)]
    assert list(to_run(ledger, PARTS, 2)) == [Pass(0, 0, 1), Pass(2, 1, 2)]
    assert to_retry(ledger, SETTINGS, ["failed"], None) == open_retry
    ledger.close_pass(Pass(2, 1, 2))
    assert (
        to_retry(ledger, SETTINGS, ["failed"], None) == open_retry
    )  # of the samples it began with
    ledger.close_pass(open_retry)
    assert samples_per_row(ledger) == 2
    assert to_retry(ledger, SETTINGS, ["failed"], None) == Pass(3, 0, 2, ("failed",))
    ledger.close_pass(Pass(3, 0, 2, ("failed",)))
    assert list(to_run(ledger, PARTS, 4)) == [Pass(0, 0, 2), Pass(4, 2, 4)]
    assert to_retry(ledger, SETTINGS, ["failed"], None) == Pass(5, 0, 2, ("failed",))


def test_another_retry_is_refused_while_one_is_open(ledger: Ledger) -> None:
    settings = {**SETTINGS, "sampling.temperature": None, "sampling.n": 5, "sampling.top_p": 0.9}
    opened = to_retry(ledger, settings, ["truncated", "failed", "failed"], 0.25)
    changed = (("sampling.temperature", None), ("sampling.top_p", 0.9))
    assert opened == Pass(1, 0, 1, ("failed", "truncated"), changed, 0.25)
    assert ledger.passes(ledger.listing()) == [opened]
    assert to_retry(ledger, settings, ["failed", "truncated"], 0.25) == opened
    command = (
        r"finish it first: qwq-batch retry CONFIG --state failed,truncated --foreign 0.25 "
        r"--set sampling.temperature=null --set sampling.top_p=0.9$"
    )
    for others, states, foreign in (
        (SETTINGS, ["failed", "truncated"], 0.25), (settings, ["failed"], 0.25),
        (settings, ["failed", "truncated"], None),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=command):
            to_retry(ledger, others, states, foreign)
    ledger.close_pass(opened)
    by_share = to_retry(ledger, SETTINGS, [], 0.5)
    assert by_share == replace(opened, number=2, states=(), changed=(), foreign=0.5)
    with pytest.raises(OutputError, match=r"first: qwq-batch retry CONFIG --foreign 0.5$"):
        to_retry(ledger, SETTINGS, ["failed"], None)


def test_retry_of_nothing_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"say which traces: --state STATE,… or --foreign SHARE"):
        to_retry(ledger, SETTINGS, [], None)
    with pytest.raises(OutputError, match=r"--state cut,lost,slow: states are finished, truncated"):
        to_retry(ledger, SETTINGS, ["slow", "lost", "failed", "cut"], None)
    with pytest.raises(OutputError, match=r"holds no run; there is nothing to retry"):
        to_retry(Ledger(Storage(str(tmp_path / "none"))), SETTINGS, ["failed"], None)
    assert ledger.passes(ledger.listing()) == []


def test_rows_that_may_agree_early_can_not_get_more_samples(tmp_path: Path) -> None:
    ledger = Ledger(Storage(str(tmp_path / "agree")))
    ledger.open_run({**SETTINGS, "sampling.n": 3, "sampling.agree": 2}, {})
    assert list(to_run(ledger, PARTS, 3)) == [Pass(0, 0, 3)]
    with pytest.raises(OutputError, match=r"sampling.n can't be raised from 3: with sampling.agr"):
        list(to_run(ledger, PARTS, 4))
