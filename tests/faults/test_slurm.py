"""The batch script on a real Slurm: its nodes are lost, its time runs out, it is cancelled."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tests.conftest import needs_program
from tests.faults.conftest import reporter_of
from tests.faults.harness import PIPELINE, Case, Output
from tests.faults.slurm import MISSING, PATH, Job, Slurm, slurm_cluster

FOLDER = Path(__file__).parents[2] / "infra" / "slurm"
SCRIPT = FOLDER / "qwq-batch.sbatch"
SMALL = ("--cpus-per-task=4", "--mem=4G")
# In place of Ray, where it does not matter: it is ready at once, and runs until it is ended.
NO_RAY = """#!/bin/bash
for word; do case $word in --temp-dir=*) folder=${word#*=} ;; esac; done
mkdir "$folder" && echo 127.0.0.1:1 > "$folder/ray_current_cluster" && exec sleep 1000
"""
# In place of the nightly job; the script itself asks Python for a port.
NO_JOB = f"""#!/bin/sh
[ "$1" = -m ] || exec {sys.executable} "$@"
exec sleep 1000
"""

pytestmark = [
    needs_program("slurm", not MISSING, "slurmctld slurmd slurm-client munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="slurmd wants to be root"),
]


@pytest.fixture
def slurm(told_to_end: None) -> Iterator[Slurm]:
    """A cluster for one case."""
    with slurm_cluster() as cluster:
        yield cluster


@pytest.mark.long
def test_job_goes_on_after_its_notice_and_after_the_loss_of_its_first_node(
    slurm: Slurm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = Case(
        "Slurm: notice of the time limit, then the driver's node lost", tmp_path,
        Output(str(tmp_path / "out"), fsspec.filesystem("file")), [60], 2, {},
        {"output": {"checkpoint_seconds": 3600}, "engine": {"replicas": 1}},
    )  # fmt: skip
    case.report = reporter_of(request)
    job = slurm.submit(tmp_path, "--nodes=2", *SMALL, SCRIPT, *PIPELINE, "run", case.config)

    job.must_reach(case.progress(), "a block")
    slurm.tell("scancel", "--batch", "--signal=USR1", job.number)
    job.must_start_again(1)
    case.remember()

    job.must_reach(case.progress(), "another block")
    case.remember()
    finished, lost = set(case.output.durable()), job.now["BatchHost"]
    slurm.lose(lost)
    job.must_start_again(2)
    job.must_complete()

    assert lost not in (job.now["BatchHost"], job.now["NodeList"]), job.now
    outcome, generated = case.check(), case.generated()
    assert outcome.carried_tokens > 0, "the driver has saved nothing at the notice"
    again = [t for t in case.output.traces() if t.key in finished and generated[t.key] > t.tokens]
    assert not again, "what was finished was generated again"


def test_workers_of_an_array_end_the_run_though_one_loses_its_node_and_one_is_preempted(
    slurm: Slurm, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    case = Case(
        "Slurm: the node of an array's task lost, then another task preempted", tmp_path,
        Output(str(tmp_path / "out"), fsspec.filesystem("file")), [420], 2, {},
        {"output": {"checkpoint_seconds": 3600}, "engine": {"replicas": 1}},
    )  # fmt: skip
    case.report = reporter_of(request)
    started = tmp_path / "out" / "__qwq" / "engines"
    loser, preempted = slurm.submit_array(
        tmp_path, 2, "--partition=preemptible", *SMALL, SCRIPT, *PIPELINE, "work", case.config
    )
    # To Slurm's commands, the number of this task is that of all.
    assert preempted.now["JobId"] == preempted.now["ArrayJobId"], preempted.now
    loser.must_reach(lambda: len(list(started.glob("*"))) == 2, "an engine of each worker")
    loser.must_reach(case.progress(), "a block")
    case.remember()
    first = case.output.workers()

    slurm.lose(loser.now["NodeList"])
    loser.must_start_again(1)
    loser.must_reach(lambda: case.output.workers() - first, "the workers again")
    assert len(case.output.workers() & first) == 1, "the other one has not gone on"
    case.remember()

    node = preempted.now["NodeList"]
    urgent = slurm.submit(tmp_path, "--gpus-per-node=8", f"--nodelist={node}", "--wrap=sleep 1000")
    urgent.must_reach(lambda: urgent.state == "RUNNING", "its turn")
    case.remember()
    slurm.tell("scancel", urgent.number)
    preempted.must_start_again(1)
    for task in (loser, preempted):
        task.must_complete()
        assert task.now["Restarts"] == "1", task.told()
    assert not case.output.workers()
    assert case.check().carried_tokens > 0, "nothing was saved at the preemption"


def test_scheduled_jobs_run_one_at_a_time_and_a_cancelled_one_does_not_come_back(
    slurm: Slurm, tmp_path: Path
) -> None:
    """The scrontab's line as cron would run it, with the resources that the script asks for."""
    checkout = tmp_path / "qwq-batch"
    programs = _programs(checkout / ".venv" / "bin")
    (checkout / "infra").symlink_to(FOLDER.parent)
    (programs / "activate").write_text(f"PATH={programs}:$PATH")
    lines = (FOLDER / "scrontab").read_text().splitlines()
    (command,) = (line.split(" ", 5)[5] for line in lines if not line.startswith("#"))

    def submit() -> Job:
        said = slurm.tell("sh", "-c", command, HOME=str(tmp_path))
        return Job(slurm, said.split()[-1], checkout / f"qwq-nightly-{said.split()[-1]}.log")

    first, second = submit(), submit()
    first.must_reach(lambda: first.state == "RUNNING", "its turn")
    assert second.now["Reason"] == "Dependency", second.now
    slurm.tell("scancel", first.number)
    second.must_reach(lambda: second.state == "RUNNING", "its turn")
    assert (first.state, first.now["Restarts"]) == ("CANCELLED", "0"), first.told()
    slurm.tell("scancel", second.number)


def test_exit_code_of_the_driver_is_that_of_the_job(slurm: Slurm, tmp_path: Path) -> None:
    path = f"{_programs(tmp_path / 'bin')}:{PATH}"
    job = slurm.submit(tmp_path, *SMALL, SCRIPT, *PIPELINE, "run", "none.yaml", path=path)
    job.must_reach(lambda: job.state == "FAILED", "its end")
    assert (job.now["ExitCode"], job.now["Restarts"]) == ("2:0", "0"), job.told()
    assert "none.yaml" in job.printed, job.told()


def _programs(folder: Path) -> Path:
    """Programs that stand in for Ray and the driver."""
    folder.mkdir(parents=True)
    for name, text in {"ray": NO_RAY, "python": NO_JOB}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder
