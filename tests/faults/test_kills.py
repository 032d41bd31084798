"""Processes are killed, stopped and lost; nothing that was finished is."""

import os
import random
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.output import engine_starts
from pipeline.reasoning.early_answer import is_control
from pipeline.storage import Storage
from tests.conftest import LONG_ON_AZURE
from tests.faults.conftest import NewCase
from tests.faults.harness import ONE_ENGINE, Case, wait_until
from tests.faults.ray_cluster import WORKER_GPUS, RayCluster

# Traces of the same length, of which none ends before another, all running at once, none saved.
LONG_TOKENS = 700
LONG: dict[str, dict[str, Any]] = {
    "output": {"checkpoint_seconds": 3600},
    "engine": {
        "simulated": {"tokens_median": LONG_TOKENS, "tokens_sigma": 0.02},
        **ONE_ENGINE,
    },
}
NAMES = {"disk": "disk", "s3": "S3", "google_cloud": "Google Cloud", "azure": "Azure"}
EXPIRE_SECONDS = 8
# At the end of a run, Ray Data asks all processes of the cluster for statistics, and waits two minutes
# for one that is stopped. It does without them if it can't.
HASTY_LEASE = (
    sys.executable,
    "-c",
    "import pipeline.output.lease as lease; import ray.data.dataset as dataset; "
    f"lease.RENEW_SECONDS, lease.EXPIRE_SECONDS = 1, {EXPIRE_SECONDS}; "
    "dataset.get_memory_info_reply = None; "
    "from pipeline.cli import main; main()",
)

STOPPED_BEFORE_A_PART = """
import contextlib, os, signal
from pipeline.storage import Storage
writing = Storage.writing
@contextlib.contextmanager
def write_after_a_sleep(self, name, *rest, **more):
    sleeps = False
    try:
        with writing(self, name, *rest, **more) as file:
            yield file
            if name.endswith(".parquet"):
                with contextlib.suppress(FileExistsError), open({committer!r}, "x") as told:
                    told.write(f"{{os.getpid()}} {{name}}")
                    sleeps = True
            if sleeps:
                os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        if sleeps:
            open({woken!r}, "x").close()
Storage.writing = write_after_a_sleep
"""


@pytest.mark.parametrize(
    "place",
    ["disk", "s3", pytest.param("google_cloud", marks=pytest.mark.long), LONG_ON_AZURE],
)
def test_driver_killed_at_random_moments_loses_nothing(
    place: str, kills: int, new_case: NewCase, request: pytest.FixtureRequest
) -> None:
    server = None if place == "disk" else request.getfixturevalue(f"{place}_server")
    case = new_case("", sizes=[20 * kills, 0, 20 * kills], server=server)
    moments, done = random.Random(0), 0
    while done < kills:
        driver = case.start()
        if not driver.reaches(case.progress(), "a block of its own"):
            case.finish(driver)
            break
        time.sleep(moments.uniform(0, 3))
        driver.kill()
        case.remember()
        done += 1
    assert done, "the run was over before the first kill, so this shows nothing"
    case.finish()
    case.fault = f"driver killed {done} times in a row, output on {NAMES[place]}"
    case.check()


def test_engine_killed_and_engine_told_to_end_while_the_driver_lives(
    new_case: NewCase, cluster: RayCluster
) -> None:
    """Its thinking is probed meanwhile, and closed early but in the control group."""
    early = {"agree": 4, "every_tokens": 64, "signs": [], "control_share": 0.2}
    case = new_case(
        "one engine SIGKILLed, one SIGTERMed, while traces are probed",
        sizes=[50, 50],
        engine={"simulated": {"tokens_median": 400}},
        thinking={"early_answer": early},
        answer={"format": "boxed"},
    )
    driver = case.start()
    for number in (SIGKILL, SIGTERM):
        driver.must_reach(case.progress(), "another block")
        driver.must_reach(cluster.engines, "an engine")
        case.remember()
        os.kill(cluster.engines()[0], number)
    case.finish(driver)
    case.check()
    group = [is_control(0, f"shard-{row // 50:05}", row % 50, 0.2) for row in range(100)]
    traces = pq.read_table(case.output.url).to_pylist()
    assert [trace["control"] for trace in traces] == [group[trace["id"]] for trace in traces]
    settled = [trace for trace in traces if trace["early_answer"] is not None]
    for trace in settled:  # each point was probed once, whoever did it
        assert (trace["probes"], trace["early_tokens"], trace["early_agrees"]) == (4, 256, True)
    closed = [trace for trace in traces if trace["closed_by"] == "early_answer"]
    assert {trace["think_tokens"] for trace in closed} == {256}
    assert not any(trace["control"] for trace in closed)
    late = [t for t in settled if not t["control"] and t["closed_by"] is None]
    assert all(t["think_tokens"] < 256 + 200 for t in late), "a trace that should have been closed"
    assert any(trace["control"] for trace in settled), "no control group to speak of"


@pytest.mark.long
def test_node_lost_with_an_engine_on_it_and_another_joins(
    new_case: NewCase, cluster: RayCluster
) -> None:
    cluster.add_worker()
    case = new_case("a node lost, another joins", sizes=[40, 40])
    driver = case.start()
    driver.must_reach(case.progress(), "a block")
    case.remember()
    cluster.lose(next(worker for worker in cluster.workers if worker.engines()))
    cluster.add_worker()
    case.finish(driver)
    case.check()
    cluster.lose(cluster.workers[-1])


def test_long_traces_go_on_after_a_signal_and_are_whole_after_sigkill(new_case: NewCase) -> None:
    """After SIGKILL they start anew, unless Ray's own SIGTERM leaves the engines time to save."""
    cases = {
        SIGTERM: new_case("SIGTERM, long traces, nothing finished", sizes=[16], **LONG),
        SIGHUP: new_case("SIGHUP (the terminal has gone), the same", sizes=[16], **LONG),
        SIGKILL: new_case("SIGKILL, the same", sizes=[16], **LONG),
    }
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(_end_while_all_run, cases.values(), cases))
        assert codes == [128 + SIGTERM, 128 + SIGHUP, -SIGKILL], cases[SIGTERM].drivers[0].told()
        for number in (SIGTERM, SIGHUP):
            told = cases[number].drivers[0]
            assert not cases[number].output.finished(), "a trace had finished: this shows nothing"
            assert f"ended by {number.name}; " in told.printed, told.told()
        list(pool.map(Case.finish, cases.values()))
    for number in (SIGTERM, SIGHUP):
        assert cases[number].check().carried_tokens > 0
    cases[SIGKILL].check()


def _end_while_all_run(case: Case, number: signal.Signals) -> int:
    """Send ``number`` to a driver when each trace has a quarter of its tokens; its exit code."""
    driver = case.start()
    driver.must_reach(
        lambda: sum(n >= LONG_TOKENS / 4 for n in case.generated().values()) == case.traces,
        "a quarter of each trace",
    )
    driver.signal(number)
    return driver.wait()


def test_of_two_drivers_started_at_once_one_is_told_who_holds_the_run(new_case: NewCase) -> None:
    case = new_case("two drivers at once", sizes=[40], engine=ONE_ENGINE)
    first, second = case.start(), case.start()
    assert sorted([first.wait(), second.wait()]) == [0, 2], first.told() + second.told()
    winner, loser = (first, second) if first.code == 0 else (second, first)
    assert socket.gethostname() in loser.printed, loser.told()
    assert str(winner.pid) in loser.printed, loser.told()
    case.check()


def test_driver_and_committer_that_wake_up_after_a_takeover_and_a_retry_change_nothing(
    new_case: NewCase, tmp_path: Path
) -> None:
    """The committer is stopped when it is about to write a part; then others write it twice."""
    committer, woken = tmp_path / "committer", tmp_path / "woken"
    case = new_case(
        "driver and committer stopped, run taken over, some retried, both wake up",
        sizes=[50, 50],
        engine=ONE_ENGINE,
        output={"rows_per_part": 8},
        sampling={"max_tokens": 250},
        thinking={"rescue": False, "detect_loops": False},
        in_workers=STOPPED_BEFORE_A_PART.format(committer=str(committer), woken=str(woken)),
    )
    sleeper = case.start(HASTY_LEASE)
    sleeper.must_reach(lambda: committer.exists() and committer.read_text(), "a part to write")
    sleeper.signal(SIGSTOP)
    case.remember()
    lease = case.output.leases()
    heir = case.start(HASTY_LEASE)  # it watches the lease until that has expired
    heir.must_reach(lambda: case.output.leases() != lease, "the lease")
    case.remember()
    assert heir.wait() == 0, heir.told()
    case.forget()
    process, part = committer.read_text().split()
    states = pq.read_table(Path(case.output.url, part))["state"].to_pylist()
    assert "truncated" in states, "nothing to retry in this part, so this shows nothing"
    case.finish(case.start(HASTY_LEASE, ["sampling.max_tokens=4000"], retry="truncated"))
    case.remember()
    os.kill(int(process), SIGCONT)
    wait_until(woken.exists, "the end of the committer's write", sleeper.told)
    sleeper.signal(SIGCONT)
    assert sleeper.wait() in (1, 2), sleeper.told()
    assert "taken this run over" in sleeper.printed, sleeper.told()
    case.check()


def test_row_that_kills_every_engine_fails_alone(new_case: NewCase) -> None:
    case = new_case(
        "a row that kills every engine",
        sizes=[30],
        engine={"simulated": {"dies_of": "What is 13 + 1?"}},
    )
    case.finish()
    case.check(failed=[13])
    errors = [trace.error or "" for trace in case.output.traces() if trace.key[0] == 13]
    assert all(error.startswith("engine_killed") for error in errors), errors


@pytest.mark.long
def test_engine_that_can_not_start_again_on_a_node_starts_on_another(
    new_case: NewCase, cluster: RayCluster, tmp_path: Path
) -> None:
    """Two engines that take a node each, one of them with GPUs that go bad; then a node joins."""
    bad = cluster.add_worker(BAD_GPUS=str(tmp_path / "bad-gpus"))
    case = new_case(
        "an engine can't start again on its node",
        sizes=[40, 40],
        engine={
            "device": "gpu", "tensor_parallel": WORKER_GPUS,
            "simulated": {"fails_to_start_with": "$BAD_GPUS"},
        },
    )  # fmt: skip
    driver = case.start()
    driver.must_reach(lambda: all(worker.engines() for worker in cluster.workers), "two engines")
    driver.must_reach(case.progress(), "a block")
    case.remember()
    (tmp_path / "bad-gpus").mkdir()
    good = [pid for pid in cluster.engines() if pid not in bad.engines()]
    for pid in good:
        os.kill(pid, SIGSTOP)  # else it might do all that is left before a node has joined
    os.kill(bad.engines()[0], SIGKILL)
    starts = Storage(case.output.url)
    driver.must_reach(
        lambda: any(start.reason for start in engine_starts.read(starts)), "a start that fails"
    )
    spare = cluster.add_worker()
    driver.must_reach(spare.engines, "an engine on the spare node")
    for pid in good:
        os.kill(pid, SIGCONT)
    case.finish(driver)
    case.check()
    for worker in (bad, spare):
        cluster.lose(worker)
