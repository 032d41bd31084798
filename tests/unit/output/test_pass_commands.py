"""Which passes `run` and `retry` open, in which order, and what they refuse."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.errors import OutputError, PassOpenedError
from pipeline.output.ledger import Ledger
from pipeline.output.parts import part_metadata
from pipeline.output.passes import samples_per_row, to_retry, to_run
from pipeline.planning import PartRef, Pass, Range, Shard, split_parts
from pipeline.storage import Storage
from tests.unit.output.blocks import METADATA, SCHEMA
from tests.unit.output.passes_by_hand import A0, A1, A2, B0, PARTS, SETTINGS, carry_out, work, write


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    ledger.open_run(SETTINGS, {})
    return ledger


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


def test_top_up_that_another_worker_opened_during_the_run_is_not_opened_twice(
    ledger: Ledger,
) -> None:
    """Both have looked at the passes before they did the run together."""
    for more in (3, 4):
        both = [to_run(ledger, PARTS, more) for _ in range(2)]
        for flow in both:
            carry_out(ledger, PARTS, next(flow))
        top_up = next(both[0])
        with pytest.raises(PassOpenedError):
            next(both[1])
        assert list(to_run(ledger, PARTS, more))[1:] == [top_up]
        carry_out(ledger, PARTS, top_up)


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
