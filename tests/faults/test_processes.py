"""Processes that Ray alone would start again for ever, or would never miss."""

import os
import sys
from pathlib import Path
from signal import SIGSTOP

from tests.faults.conftest import NewCase
from tests.faults.harness import ONE_ENGINE
from tests.faults.ray_cluster import RayCluster

KILLED_AT_A_PART = """
import os, signal
from pathlib import Path
from pipeline.storage import Storage
writing = Storage.writing
def write_or_die(self, name, *rest, **more):
    if name.endswith(".parquet") and Path({flag!r}).exists():
        with open({deaths!r}, "a") as file:
            file.write(name + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
    return writing(self, name, *rest, **more)
Storage.writing = write_or_die
"""
KILLED_BY_A_PROMPT = """
import os, signal
import pipeline.prompts.render as module
render = module.render_row
def render_or_die(renderer, row, *rest):
    if row["prompt"] in ("What is 3 + 1?", "What is 13 + 1?"):
        with open({deaths!r}, "a") as file:
            file.write(row["prompt"] + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
    return render(renderer, row, *rest)
module.render_row = render_or_die
"""
IMPATIENT = (
    sys.executable,
    "-c",
    "import pipeline.time_limits as limits; "
    "limits.HUNG_LOOK_SECONDS, limits.HUNG_SECONDS, limits.HUNG_ALONE_SECONDS = 0.5, 5, 60; "
    "from pipeline.cli import main; main()",
)


def test_task_that_is_killed_whenever_it_writes_a_part_ends_the_run_with_its_name(
    new_case: NewCase, tmp_path: Path
) -> None:
    """As when the machine runs out of memory there; without a bound it went on for ever."""
    flag, deaths = tmp_path / "out-of-memory", tmp_path / "deaths"
    flag.touch()
    case = new_case(
        "the task that writes a part is killed each time", sizes=[30], engine=ONE_ENGINE,
        in_workers=KILLED_AT_A_PART.format(flag=str(flag), deaths=str(deaths)),
    )  # fmt: skip
    driver = case.start()
    assert driver.wait() == 1, driver.told()
    case.remember()
    names = deaths.read_text().split()
    assert set(names) == {"shard-00000.00000.parquet"}
    assert len(names) < 12, "two tasks may write the same part, each three times"
    [error] = [line for line in driver.printed.splitlines() if line.startswith("error:")]
    assert "of shard-00000.00000.parquet was killed 3 times" in error, driver.told()
    assert "ran out of memory" in error
    flag.unlink()
    case.finish()
    case.check()


def test_rows_whose_prompts_kill_the_engine_actor_fail_alone(
    new_case: NewCase, tmp_path: Path
) -> None:
    """Two rows, in the first blocks of an only engine, so that nothing is generated in between."""
    deaths = tmp_path / "deaths"
    case = new_case(
        "two rows whose prompts kill the actor", sizes=[30], engine={**ONE_ENGINE, "block_rows": 1},
        in_workers=KILLED_BY_A_PROMPT.format(deaths=str(deaths)),
    )  # fmt: skip
    case.finish()
    case.check(failed=[3, 13])
    errors = [trace.error or "" for trace in case.output.traces() if trace.key[0] in (3, 13)]
    assert all(error.startswith("engine_killed") for error in errors), errors
    assert len(deaths.read_text().splitlines()) <= 6


def test_engine_that_is_stopped_is_missed_and_replaced(
    new_case: NewCase, cluster: RayCluster
) -> None:
    case = new_case("one engine of two hangs (SIGSTOP)", sizes=[50, 50])
    driver = case.start(IMPATIENT)
    driver.must_reach(case.progress(), "a block")
    driver.must_reach(cluster.engines, "an engine")
    case.remember()
    hung = cluster.engines()[0]
    os.kill(hung, SIGSTOP)
    driver.must_reach(lambda: hung not in cluster.engines(), "the end of the engine that hangs")
    case.finish(driver)
    assert f"(process {hung}) had rows and did nothing" in driver.printed, driver.told()
    case.check()
