"""Checkpoints: the furthest progress continues, durable traces are forgotten."""

from array import array
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.checkpoints import Checkpoints
from pipeline.output.layout import RUNNING, checkpoint_name
from pipeline.output.ledger import Ledger
from pipeline.planning import PartRef, Pass
from pipeline.reasoning.early_answer import Probe
from pipeline.reasoning.policy import ClosedBy
from tests.unit.output.blocks import METADATA, PART, SCHEMA, block

OTHER = PartRef("en/shard-0.00002.parquet", 100, 110)
KEYS = [(PART, 100, 0), (PART, 100, 1), (PART, 101, 0)]


def saved(ledger: Ledger) -> list[str]:
    return [info.name for info in ledger.store.files() if info.name.endswith(RUNNING)]


def test_next_engine_continues_from_the_last_save(ledger: Ledger) -> None:
    first = Checkpoints(ledger, "one", 0)
    a, b, c = first.start(KEYS, set())
    a.report([1, 2])
    b.report([3, 4, 5])
    b.finish_reason = "stop"
    first.save()
    c.report([9])  # after the last save: lost
    a, b, c = Checkpoints(ledger, "two", 0).start(KEYS, set())
    assert (a.token_ids, a.finish_reason, a.carried) == (array("i", [1, 2]), None, 2)
    assert (b.token_ids, b.finish_reason, b.carried) == (array("i", [3, 4, 5]), "stop", 3)
    assert (c.token_ids, c.carried) == (array("i"), 0)


def test_furthest_checkpoint_counts_and_a_finished_trace_before_all(ledger: Ledger) -> None:
    for engine, tokens, reason in (("x", [1], None), ("y", [1, 2], "stop"), ("z", [1, 2, 3], None)):
        checkpoints = Checkpoints(ledger, engine, 0)
        [trace] = checkpoints.start(KEYS[:1], {"x", "y", "z"})
        trace.report(tokens)
        trace.finish_reason = reason
        checkpoints.save()
    [trace] = Checkpoints(ledger, "new", 0).start(KEYS[:1], set())
    assert (trace.token_ids.tolist(), trace.finish_reason) == ([1, 2], "stop")
    [trace] = Checkpoints(ledger, "newer", 0).start(KEYS[:1], {"y"})
    assert trace.token_ids.tolist() == [1, 2, 3]


def test_engine_continues_its_own_trace_when_its_block_is_repeated(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    [trace] = checkpoints.start(KEYS[:1], set())
    trace.report([1, 2, 3])
    [again] = checkpoints.start(KEYS[:1], set())
    assert (again.token_ids.tolist(), again.carried) == ([1, 2, 3], 3)


def test_passes_and_parts_have_separate_checkpoints(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    [trace] = checkpoints.start(KEYS[:1], set())
    trace.report([1])
    checkpoints.save()
    assert len(Checkpoints(ledger, "two", 1).start(KEYS[:1], set())[0].token_ids) == 0
    assert len(Checkpoints(ledger, "two", 0).start([(OTHER, 100, 0)], set())[0].token_ids) == 0


def test_durable_traces_are_forgotten(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    for trace in checkpoints.start(KEYS, set()):
        trace.report([1])
        trace.finish_reason = "stop"
    checkpoints.save()
    assert len(saved(ledger)) == 1
    ledger.write_block(block([100], samples=(0, 1)))
    checkpoints.save()
    restarted = Checkpoints(ledger, "two", 0).start(KEYS, set())
    assert [len(trace.token_ids) for trace in restarted] == [0, 0, 1]
    ledger.write_block(block([101]))
    checkpoints.save()
    assert saved(ledger) == []


def test_sample_that_was_ended_because_its_siblings_agree_goes_with_its_row(
    ledger: Ledger,
) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    needed, ended = checkpoints.start(KEYS[:2], set())
    needed.report([1])
    needed.finish_reason = "stop"
    ended.report([1, 2])
    checkpoints.save()
    [name] = saved(ledger)
    assert pq.read_table(BytesIO(ledger.store.read(name)))["sample"].to_pylist() == [0, 1]
    ledger.write_block(block([100]))
    checkpoints.save()
    assert saved(ledger) == []


@pytest.mark.parametrize("harm", ["torn", "cut", "flipped", "empty", "other columns"])
def test_damaged_checkpoint_costs_only_its_tokens_and_is_named(
    ledger: Ledger, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Checkpoints(ledger, "dead", 0)
    [trace] = first.start(KEYS[:1], set())
    trace.report(range(5000))
    first.save()
    name = checkpoint_name(PART, "dead", 0)
    data = ledger.store.read(name)
    middle = len(data) // 2
    sink = BytesIO()
    pq.write_table(pa.table({"row": [100], "sample": [None]}), sink)
    ledger.store.put(name, {
        "torn": b"PAR1 torn", "cut": data[:middle], "empty": b"",
        "flipped": data[: middle - 40] + bytes(80) + data[middle + 40 :],
        "other columns": sink.getvalue(),
    }[harm])  # fmt: skip
    [trace] = Checkpoints(ledger, "one", 0).start(KEYS[:1], set())
    assert trace.carried == 0
    assert f"{name} can't be read" in caplog.text


def test_rescue_continues_and_its_phrase_does_not_count_as_carried(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    [trace] = checkpoints.start(KEYS[:1], set())
    trace.report([1, 2, 3])
    trace.begin_again()
    trace.report([4, 5])
    trace.close([7, 8, 9], ClosedBy.LOOP)
    trace.report([6])
    checkpoints.save()
    [again] = Checkpoints(ledger, "two", 0).start(KEYS[:1], set())
    assert again == replace(trace, carried=3)
    assert again.token_ids.tolist() == [4, 5, 7, 8, 9, 6]
    assert (again.closed_at, again.closing_tokens, again.tries, again.wasted_tokens) == (2, 3, 1, 3)


def test_block_starts_while_a_save_is_being_written(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    [trace] = checkpoints.start(KEYS[:1], set())
    trace.report([1, 2])
    writes, may_end, put = Event(), Event(), ledger.store.put

    def slow_put(name: str, data: bytes) -> None:
        writes.set()
        assert may_end.wait(30)
        put(name, data)

    monkeypatch.setattr(ledger.store, "put", slow_put)
    with ThreadPoolExecutor() as threads:
        try:
            save = threads.submit(checkpoints.save)
            assert writes.wait(30)
            [other] = threads.submit(checkpoints.start, KEYS[1:2], set()).result(30)
            other.report([3])
            trace.report([4])
        finally:
            may_end.set()
        save.result(30)
    a, b = Checkpoints(ledger, "two", 0).start(KEYS[:2], set())
    assert (a.token_ids.tolist(), b.token_ids.tolist()) == ([1, 2], [])
    checkpoints.save()
    a, b = Checkpoints(ledger, "three", 0).start(KEYS[:2], {"two"})
    assert (a.token_ids.tolist(), b.token_ids.tolist()) == ([1, 2, 4], [3])


@pytest.mark.parametrize(("broken", "whole"), [(PART, OTHER), (OTHER, PART)])
def test_part_that_can_not_be_saved_does_not_stop_the_others(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, broken: PartRef, whole: PartRef
) -> None:
    checkpoints, put = Checkpoints(ledger, "one", 0), ledger.store.put
    for trace in checkpoints.start([(broken, 100, 0), (whole, 100, 0)], set()):
        trace.report([1])

    def fails(name: str, data: bytes) -> None:
        if name == checkpoint_name(broken, "one", 0):
            raise OSError("no space left on device")
        put(name, data)

    monkeypatch.setattr(ledger.store, "put", fails)
    with pytest.raises(OSError, match="no space"):
        checkpoints.save()
    assert saved(ledger) == [checkpoint_name(whole, "one", 0)]


def test_own_progress_that_is_ahead_of_a_checkpoint_stays(ledger: Ledger) -> None:
    other = Checkpoints(ledger, "dead", 0)
    other.start(KEYS[:1], set())[0].report([1])
    other.save()
    checkpoints = Checkpoints(ledger, "one", 0)
    [trace] = checkpoints.start(KEYS[:1], {"dead"})
    trace.report([1, 2, 3])
    [again] = checkpoints.start(KEYS[:1], set())
    assert again is trace


def test_trace_that_has_not_begun_is_not_saved(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    begun, *_ = checkpoints.start(KEYS, set())
    checkpoints.save()
    assert saved(ledger) == []
    begun.report([1])
    checkpoints.save()
    [name] = saved(ledger)
    assert pq.read_table(BytesIO(ledger.store.read(name))).num_rows == 1


def test_durable_traces_leave_the_memory_while_others_run(ledger: Ledger) -> None:
    checkpoints = Checkpoints(ledger, "one", 0)
    first, second, running = checkpoints.start(KEYS, set())
    for trace in (first, second, running):
        trace.report([1, 2])
    first.finish_reason = second.finish_reason = "stop"
    ledger.write_block(block([100], samples=(0, 1)))
    checkpoints.save()
    [name] = saved(ledger)
    assert pq.read_table(BytesIO(ledger.store.read(name)))["row"].to_pylist() == [101]
    again = checkpoints.start(KEYS, set())
    assert [trace.token_ids.tolist() for trace in again] == [[], [], [1, 2]]
    assert again[2] is running


def test_nothing_is_kept_of_a_part_that_is_finished(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another engine may have done its rows too."""
    checkpoints = Checkpoints(ledger, "one", 0)
    for trace in checkpoints.start(KEYS, set()):
        trace.report([1])
        trace.finish_reason = "stop"
    checkpoints.save()
    ledger.write_block(block([*range(100, 110)]))
    assert ledger.commit(PART, Pass(0, 0, 1), SCHEMA, METADATA)
    checkpoints.start([(OTHER, 100, 0)], set())[0].report([1])
    checkpoints.save()
    assert saved(ledger) == [checkpoint_name(OTHER, "one", 0)]
    assert set(checkpoints._progress) == {OTHER}
    monkeypatch.setattr(ledger.store, "delete", lambda names: pytest.fail(f"{names} again"))
    checkpoints.save()


def test_checkpoint_that_is_removed_while_it_is_read_is_passed_over(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Checkpoints(ledger, "dead", 0)
    dead.start(KEYS[:1], set())[0].report([1])
    dead.save()
    read = ledger.store.read

    def removed(name: str) -> bytes:
        ledger.store.delete([name])
        return read(name)

    monkeypatch.setattr(ledger.store, "read", removed)
    [trace] = Checkpoints(ledger, "one", 0).start(KEYS[:1], set())
    assert (trace.token_ids.tolist(), caplog.text) == ([], "")


def test_next_engine_knows_the_probes_of_a_trace(ledger: Ledger) -> None:
    first = Checkpoints(ledger, "one", 0)
    a, b, _ = first.start(KEYS, set())
    for trace in (a, b):
        trace.report([1, 2, 3])
    probes = [Probe(1, 4, "1/2", 1), Probe(2, 6, None, 0)]
    a.probes += probes
    first.save()
    a, b, _ = Checkpoints(ledger, "two", 0).start(KEYS, set())
    assert (a.probes, b.probes) == (probes, [])


def test_checkpoint_of_an_older_version_has_no_probes(ledger: Ledger) -> None:
    first = Checkpoints(ledger, "one", 0)
    first.start(KEYS, set())[0].report([1, 2, 3])
    first.save()
    [name] = saved(ledger)
    table = pq.read_table(BytesIO(ledger.store.read(name))).drop_columns(["probes"])
    sink = BytesIO()
    pq.write_table(table, sink)
    ledger.store.put(name, sink.getvalue())
    [trace, *_] = Checkpoints(ledger, "two", 0).start(KEYS, set())
    assert (trace.token_ids.tolist(), trace.probes) == ([1, 2, 3], [])
