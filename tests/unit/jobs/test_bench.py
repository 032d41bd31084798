"""The arithmetic of the benchmarks, and their tables."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from jobs.bench.agreement import AGREE, SAMPLES, WAYS, simulate
from jobs.bench.agreement import table as agreement_table
from jobs.bench.engines import Killed, Result, earlier, killed_table, table
from jobs.bench.fleets import Fleet, Shape, bound, one_queue
from jobs.bench.label_confidence import (
    LabeledText,
    area_under_roc,
    by_probability,
    by_votes,
    calibration_error,
)
from jobs.bench.label_confidence import table as confidence_table
from jobs.bench.loops import Result as Loop
from jobs.bench.loops import circling_tokens, traces
from jobs.bench.loops import table as loop_table
from jobs.bench.moves import simulate as simulate_moves
from jobs.bench.moves import table as moves_table
from jobs.bench.pools import Policy, claiming, slowness_of
from jobs.bench.queues import Way, draw, efficiency
from jobs.bench.tails import SLOTS, elapsed
from jobs.bench.virtual_time import Clock
from jobs.bench.virtual_workers import LATENCY_SECONDS, MemoryStorage

RESULTS = [
    Result("raw", seconds, 1000, 2**30, seconds - 1, 0) for seconds in (90.0, 110.0, 100.0)
] + [Result("ours", 120, 1200, 2**31, 30, 40)]
KILLED = [Killed("ours", 60, 40, 66)]


def test_times_are_medians_and_multiples_of_raw_vllm() -> None:
    lines = table(RESULTS, 100).splitlines()
    assert lines[2].startswith("| raw | 100 (90–110) | 1.00 | 10 (9–11) |")
    assert lines[3].startswith("| ours | 120 | 1.20 | 10 | 30 | 40% | 2.0 |")
    assert killed_table(RESULTS, KILLED, 100).splitlines()[2] == "| ours | 60 | 40% | 126 | 1.05 |"


def test_earlier_runs_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    figures = {"results": [asdict(r) for r in RESULTS], "killed": [asdict(k) for k in KILLED]}
    path.write_text(json.dumps(figures))
    assert earlier(path) == (RESULTS, KILLED)


def test_confidence_of_votes_and_of_probabilities_are_of_the_first_samples() -> None:
    probabilities = np.array([[0.6, 0.4], [0.1, 0.9], [0.2, 0.8], [0.9, 0.1]] * 2)
    text = LabeledText(1, [0, 1, 1, -1, 0, 0, 0, 0], [10] * 8, probabilities)
    assert [by_votes(text, n) for n in (1, 2, 4, 8)] == [(0, 1), (0, 0.5), (1, 0.5), (0, 0.625)]
    for samples, expected in ((1, (0, 0.6)), (2, (1, 0.65))):
        label, share = by_probability(text, samples)
        assert label == expected[0]
        assert share == pytest.approx(expected[1])
    assert by_votes(LabeledText(0, [-1, -1], [1, 1], probabilities), 2) == (-1, 0)
    other = LabeledText(0, [0] * 8, [20] * 8, probabilities)
    lines = confidence_table([text, other]).splitlines()
    assert lines[2].startswith("| votes, n = 1 | 50.0% | 0.500 (")
    assert len(lines) == 10
    assert lines[-1].endswith("| 120 |")


def test_calibration_error_is_the_gap_between_confidence_and_success() -> None:
    sure, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(sure, right) == pytest.approx((0.45 + 0.45) / 2)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0
    assert area_under_roc(sure, right) == pytest.approx(1 / 6)
    assert np.isnan(area_under_roc(np.ones(3), np.ones(3, bool)))


def test_no_way_beats_the_bound_and_known_lengths_come_close() -> None:
    lengths, _ = draw(1000, seed=0)
    shares = {way: efficiency(lengths, lengths, 2, way) for way in (Way(1, 1.25), Way(16, 1))}
    known = efficiency(lengths, lengths, 2, Way(1, 1.25, ordered=True))
    assert shares[Way(16, 1)] < shares[Way(1, 1.25)] < known <= 1
    assert known > 0.97
    one_each = efficiency([1000] * SLOTS, [1000] * SLOTS, 1, Way(1, 1.25))
    assert one_each == pytest.approx(1)


def test_samples_that_are_to_agree_are_the_same_however_they_are_drawn() -> None:
    runs = [simulate(way, rows=6, seed=1) for way in WAYS]
    waves, beside, ahead = (result for result, _ in runs)
    assert runs[0][1] == runs[1][1] == runs[2][1]
    assert {AGREE <= len(seeds) <= SAMPLES for seeds in runs[0][1]} == {True}
    assert waves.output_tokens == waves.spent_tokens == beside.spent_tokens == ahead.output_tokens
    assert ahead.spent_tokens > ahead.output_tokens
    assert ahead.seconds < beside.seconds <= waves.seconds
    assert agreement_table([waves, beside, ahead]).count("\n") == 4


def test_time_begins_when_slots_are_filled(tmp_path: Path) -> None:
    steps = [("a", 0, 5), ("b", 2, 8), ("c", 5, 9), ("a", 0, 4)]
    log = tmp_path / "steps.jsonl"
    lines = [json.dumps({"id": name, "begun": begun, "at": at}) for name, begun, at in steps]
    log.write_text("\n".join(lines))
    assert elapsed(log, slots=2) == (8, 4 + 6 + 4)


def test_what_circles_is_counted_from_where_it_begins() -> None:
    new = list(range(5000))
    assert circling_tokens(new) == 0
    assert circling_tokens(new + new[:700]) == 0
    # A window may have 30 % that is new, and 11 tokens of the first passage.
    assert circling_tokens([*new, *new[:3000]]) == 3000 + 1024 * 3 // 10 - 11
    assert circling_tokens([*new[:100] * 30, *range(5000, 7000)]) == 0
    assert circling_tokens([]) == 0


def test_loops_that_were_found_and_traces_that_would_have_been_stopped_are_counted() -> None:
    results = [
        Loop(False, 9000, 5000, 5500, 0.01, 4300),
        Loop(False, 4000, 1500, None, 0.01),
        Loop(False, 4000, 0, None, 0.01),
        Loop(True, 3000, 0, 2500, 0.01),
        Loop(True, 3000, 0, None, 0.01),
    ]
    lines = loop_table(results).splitlines()
    circling = "| cut off, circling for"
    assert lines[2] == f"{circling} 4,096 tokens or more | 1 | 1 | 100.00% | 1,500 | 1 | 1,200 |"
    assert lines[3] == f"{circling} 1,024 tokens or more | 2 | 1 | 50.00% | 1,500 | 1 | 1,200 |"
    assert lines[4] == "| cut off otherwise | 1 | 0 | 0.00% | – | 0 | – |"
    assert lines[5] == "| ended by themselves | 2 | 1 | 50.00% | – | 0 | – |"


def test_traces_of_other_programs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text('{"text": "a", "ended": true}\n{"text": "b", "ended": false}\n')
    assert list(traces(str(path))) == [("a", True), ("b", False)]


def test_processes_of_a_clock_take_turns_and_do_not_wait() -> None:
    clock, seen = Clock(), list[tuple[str, float]]()

    def sleeper(name: str, seconds: float) -> None:
        for _ in range(2):
            clock.sleep(seconds)
            seen.append((name, clock.monotonic()))

    clock.start(lambda: sleeper("a", 3600))
    clock.start(lambda: sleeper("b", 5000))
    clock.run()
    assert seen == [("a", 3600), ("b", 5000), ("a", 7200), ("b", 10_000)]


def test_storage_in_memory_counts_requests_as_s3fs_makes_them() -> None:
    clock = Clock()
    store = MemoryStorage(clock)

    def use() -> None:
        assert store.create("a/x", b"1")
        assert not store.create("a/x", b"2")
        assert store.read("a/x") == b"1"
        assert not store.exists("a/y")
        assert [info.name for info in store.files("a")] == ["a/x"]
        assert store.files("b") == []
        store.delete(["a/x"])

    clock.start(use)
    clock.run()
    assert store.requests == {"PUT": 2, "HEAD": 3, "GET": 1, "LIST": 4, "DELETE": 1}
    assert store.lost_creates == 1
    assert clock.monotonic() == pytest.approx(11 * LATENCY_SECONDS)


def test_fleet_does_each_row_once_and_no_better_than_the_bound() -> None:
    slowness = slowness_of(4, 3)
    lengths, _ = draw(8 * SLOTS * 4, seed=0)
    best, fleet = bound(lengths, slowness), Fleet(Shape(slowness), lengths)
    seconds = fleet.run()
    assert fleet.twice == 0
    assert fleet.store.lost_creates > 0, "they do claim at the same time"
    assert best < seconds
    assert best < one_queue(lengths, slowness)
    assert fleet.moves > 0, "slow ones hand their last rows over"
    assert seconds < one_queue(lengths, slowness)
    for policy in (Policy(4, 4), Policy(faster=math.inf)):
        with claiming(policy):
            assert Fleet(Shape(slowness), lengths).run() > seconds


def test_moving_the_last_traces_saves_engine_time_and_takes_longer() -> None:
    results = simulate_moves(2, seed=0)
    plain, *moved = results
    assert plain.used < plain.held
    assert plain.moves == 0
    assert moved[-1].used < plain.used
    assert moved[-1].tail_seconds > plain.tail_seconds
    assert [r.moves for r in moved] == sorted(r.moves for r in moved)
    assert len(moves_table(results).splitlines()) == 2 + 2 + len(moved)
