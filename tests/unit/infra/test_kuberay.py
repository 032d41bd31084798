"""Rules for RayJobs that schemas can't see."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engines.vllm_arguments import check_engine_args
from pipeline.time_limits import DRIVER_SAVE_SECONDS, ENGINE_CLOSE_SECONDS, ENGINE_SAVE_SECONDS
from tests.unit.infra.manifests import FOLDERS, KUBECTL, parts, pods, rendered, run_of, the

ON_KUBERAY = [folder for folder in FOLDERS if folder.startswith("kuberay/")]
ON_SPOT = [
    "kuberay/overlays/many-nodes",
    "kuberay/scheduled/cronjob",
    "kuberay/scheduled/raycronjob",
    "kuberay/overlays/queued",
]
TITLES = {
    "ray-worker": ["ray::MapWorker(MapBatches(EngineActor)).submit"],
    "ray-head": [
        "/usr/local/bin/python3.11 /usr/local/bin/qwq-batch run /config/run.yaml",
        "python -m jobs.nightly /config/run.yaml --set limits.minutes=1380",
    ],
}
each_folder = pytest.mark.parametrize("folder", ON_KUBERAY)


def job_of(folder: str) -> dict[str, Any]:
    """The spec of the RayJob, or of those that the RayCronJob makes."""
    kinds = [each["kind"] for each in rendered(folder)]
    found: dict[str, Any] = (
        the("RayJob", folder)["spec"]
        if "RayJob" in kinds
        else the("RayCronJob", folder)["spec"]["jobTemplate"]
    )
    return found


def hooks(folder: str) -> Iterator[tuple[str, str, int]]:
    """Of the head and the workers: the container's name, its preStop script, the grace period."""
    for pod in pods(folder):
        for container in pod["spec"]["containers"]:
            if "lifecycle" in container:
                *_, script = container["lifecycle"]["preStop"]["exec"]["command"]
                yield container["name"], script, pod["spec"]["terminationGracePeriodSeconds"]


def test_all_are_there() -> None:
    assert {"kuberay/overlays/one-node", *ON_SPOT} <= set(ON_KUBERAY)


@each_folder
def test_run_fits_the_cluster(folder: str) -> None:
    config = run_of(folder)
    check_engine_args(config.engine.vllm)
    assert config.ray.address is None, "the run must use the RayJob's own cluster"
    (workers,) = job_of(folder)["rayClusterSpec"]["workerGroupSpecs"]
    resources = workers["template"]["spec"]["containers"][0]["resources"]
    assert resources["requests"] == resources["limits"]
    gpus, engine = int(resources["limits"]["nvidia.com/gpu"]), config.engine
    assert gpus % engine.tensor_parallel == 0, "an engine's GPUs are those of one pod"
    # Not more than are needed either: what Ray Data asks of the autoscaler is a guess.
    assert engine.max_replicas * engine.tensor_parallel == workers["maxReplicas"] * gpus
    # Ray Data asks one CPU for each engine, too.
    assert int(resources["limits"]["cpu"]) > gpus // engine.tensor_parallel
    # Without the autoscaler all workers are there from the start.
    fewest = (
        0 if job_of(folder)["rayClusterSpec"]["enableInTreeAutoscaling"] else workers["maxReplicas"]
    )
    assert workers["minReplicas"] == workers["replicas"] == fewest


@each_folder
def test_light_tasks_have_cpus_on_the_head(folder: str) -> None:
    head = job_of(folder)["rayClusterSpec"]["headGroupSpec"]
    container = head["template"]["spec"]["containers"][0]
    assert (
        3 <= int(head["rayStartParams"]["num-cpus"]) <= int(container["resources"]["limits"]["cpu"])
    )
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


@pytest.mark.parametrize("folder", ON_SPOT)
def test_the_head_stays_and_workers_may_go(folder: str) -> None:
    cluster = job_of(folder)["rayClusterSpec"]
    on = cluster["headGroupSpec"], *cluster["workerGroupSpecs"]
    head, workers = (group["template"]["spec"].get("nodeSelector", {}) for group in on)
    assert head == {"karpenter.sh/capacity-type": "on-demand"}
    assert workers == {"karpenter.sh/capacity-type": "spot"}


@each_folder
def test_a_try_has_an_end_and_another(folder: str) -> None:
    job = job_of(folder)
    assert job["backoffLimit"] > 0
    assert job["activeDeadlineSeconds"] > job["preRunningDeadlineSeconds"]
    assert job["shutdownAfterJobFinishes"]
    assert (
        job["ttlSecondsAfterFinished"] <= 60
    )  # a run that passed its deadline goes on for so long


@each_folder
def test_grace_is_longer_than_saving_takes(folder: str) -> None:
    assert [name for name, *_ in hooks(folder)] == ["ray-head", "ray-worker"]
    engine_saves = ENGINE_SAVE_SECONDS + ENGINE_CLOSE_SECONDS
    for name, script, grace in hooks(folder):
        (seconds,) = map(int, re.findall(r"\{1\.\.(\d+)\}", script))
        assert 60 <= seconds <= grace - 20
        if name == "ray-worker":
            assert seconds > engine_saves
        else:
            (told_after,) = map(int, re.findall(r"-eq (\d+)", script))
            assert told_after >= ENGINE_SAVE_SECONDS
            assert seconds > told_after + DRIVER_SAVE_SECONDS
    (wait,) = (
        int(env["value"])
        for env in parts(rendered(folder))
        if env.get("name") == "RAY_JOB_STOP_WAIT_TIME_S"
    )
    assert wait > DRIVER_SAVE_SECONDS


@each_folder
def test_hooks_find_whom_they_are_for_but_not_themselves(folder: str) -> None:
    for name, script, _ in hooks(folder):
        [pattern] = re.findall(r"(?:pgrep -f |driver=)'(.*)'", script)
        for title in TITLES[name]:
            assert re.search(pattern, title)
        assert not re.search(pattern, script)
    entrypoint = job_of(folder)["entrypoint"]
    assert entrypoint.startswith(("exec qwq-batch run /config/", "exec python -m jobs.nightly /"))


def test_scheduled_runs_end_by_themselves_before_the_next() -> None:
    for folder in ("kuberay/scheduled/cronjob", "kuberay/scheduled/raycronjob"):
        job = job_of(folder)
        (minutes,) = map(int, re.findall(r"--set limits\.minutes=(\d+)$", job["entrypoint"]))
        assert minutes * 60 < job["activeDeadlineSeconds"]
        assert minutes < 24 * 60
        assert the("CronJob" if folder.endswith("/cronjob") else "RayCronJob", folder)["spec"][
            "schedule"
        ].endswith(" * * *")


def test_kueue_would_take_the_run() -> None:
    """Its webhook's rules for RayJobs; it reserves as many workers as ``replicas`` says."""
    job = job_of("kuberay/overlays/queued")
    assert job["suspend"] is True
    assert job["shutdownAfterJobFinishes"] is True
    assert "clusterSelector" not in job
    cluster = job["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is False
    groups = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(groups) <= 7
    assert "head" not in groups


def test_worker_hook_waits_for_the_engines(tmp_path: Path) -> None:
    script = {name: text for name, text, _ in hooks("kuberay/overlays/one-node")}["ray-worker"]
    with subprocess.Popen(["sleep", "60"]) as engine:
        stub(tmp_path, "pgrep", f"echo {engine.pid}")
        with run_script(script, tmp_path) as hook:
            assert engine.wait(10) == -15
            assert hook.wait(10) == 0
    stub(tmp_path, "pgrep", "exit 1")
    with run_script(script, tmp_path) as hook:
        assert hook.wait(10) == 0


def test_head_hook_tells_the_driver_once(tmp_path: Path) -> None:
    script = {name: text for name, text, _ in hooks("kuberay/overlays/one-node")}["ray-head"]
    stub(tmp_path, "sleep", "echo slept >> slept")
    stub(tmp_path, "pgrep", "test $(cat slept 2> /dev/null | wc -l) -lt 40")
    stub(tmp_path, "pkill", 'echo "$@" >> told')
    with run_script(script, tmp_path) as hook:
        assert hook.wait(20) == 0
    assert (tmp_path / "told").read_text() == "-TERM -f [q]wq-batch r|python.* -m [j]obs[.]\n"
    assert len((tmp_path / "slept").read_text().split()) == 40


@each_folder
def test_only_the_operator_gets_in(folder: str) -> None:
    policies = {
        each["metadata"]["name"]: each
        for each in rendered(folder)
        if each["kind"] == "NetworkPolicy"
    }
    policy = policies["qwq-batch-ray"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ours = policy["podSelector"]["matchLabels"]
    among_us, operator = policy["ingress"]
    assert among_us == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    to_us, api_server = policy["egress"]
    assert to_us == {"to": [{"podSelector": {"matchLabels": ours}}]}
    assert [port["port"] for port in api_server["ports"]] == [6443]


def test_cron_job_keeps_two_runs_apart() -> None:
    cron = the("CronJob", "kuberay/scheduled/cronjob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert the("RayJob", "kuberay/scheduled/cronjob")["spec"]["suspend"] is True
    assert "suspend" not in job_of("kuberay/scheduled/raycronjob")


@pytest.mark.parametrize(("ends", "code"), [("state: Complete", 0), ("state: Failed", 1), ("", 1)])
def test_cron_job_creates_a_ray_job_and_waits_for_it(tmp_path: Path, ends: str, code: int) -> None:
    (container,) = the("CronJob", "kuberay/scheduled/cronjob")["spec"]["jobTemplate"]["spec"][
        "template"
    ]["spec"]["containers"]
    (tmp_path / "template.json").write_text(json.dumps(the("RayJob", "kuberay/scheduled/cronjob")))
    stub(tmp_path, "sleep", "echo slept >> slept")
    stub(
        tmp_path,
        "kubectl",
        f"""case "$*" in
            "get rayjob qwq-batch-29384756") test -e created.json ;;
            "get rayjob qwq-batch -o json") cat template.json ;;
            "patch --local "*) exec {KUBECTL} "$@" ;;
            "create -f -") cat > created.json ;;
            "get rayjob qwq-batch-29384756 --ignore-not-found "*)
                if [ -e slept ]; then printf '%s' '{ends}'; else printf 'state: Running'; fi ;;
            *) echo "not expected: $*"; exit 9 ;;
        esac""",
    )
    job = {"JOB": "qwq-batch-schedule-29384756", "UID_OF_JOB": "some-uid"}
    for _ in range(2):  # the second is what follows a pod that was lost
        with run_script(container["args"][0], tmp_path, "-ec", **job) as script:
            assert script.wait(30) == code
    created = json.loads((tmp_path / "created.json").read_text())
    assert created["metadata"]["name"] == "qwq-batch-29384756"
    assert created["metadata"]["ownerReferences"][0]["uid"] == "some-uid"
    template = the("RayJob", "kuberay/scheduled/cronjob")["spec"]
    assert created["spec"] == {**template, "suspend": False}


def stub(folder: Path, name: str, script: str) -> None:
    """Put a program of that name in the way."""
    (folder / name).write_text(f"#!/bin/bash\n{script}\n")
    (folder / name).chmod(0o755)


def run_script(
    script: str, folder: Path, flags: str = "-c", **env: str
) -> "subprocess.Popen[bytes]":
    path = f"{folder}:{os.environ['PATH']}"
    command = ["/bin/bash", flags, script]
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "PATH": path, **env})
