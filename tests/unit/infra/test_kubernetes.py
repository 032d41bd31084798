"""Rules for the fleet of plain pods that schemas can't see."""

import pytest
import yaml

from pipeline.engines.vllm_arguments import check_engine_args
from pipeline.execution.work import refuse_unshared
from pipeline.time_limits import DRIVER_CLOSE_SECONDS, DRIVER_SAVE_SECONDS
from tests.unit.infra.manifests import FOLDERS, INFRA, rendered, run_of, the

WORKERS = [folder for folder in FOLDERS if folder.startswith("kubernetes/")]
QUEUED = ["kubernetes/queued", "kuberay/overlays/queued"]
PRIORITY = yaml.safe_load((INFRA / "kubernetes" / "kueue" / "priority.yaml").read_text())
each_folder = pytest.mark.parametrize("folder", WORKERS)


@each_folder
def test_workers_fit_their_pods(folder: str) -> None:
    config = run_of(folder)
    check_engine_args(config.engine.vllm)
    refuse_unshared(config)
    assert config.ray.address is None, "each worker has a Ray of its own"
    (container,) = the("Job", folder)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["work", "/config/run.yaml"]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    engine = config.engine
    gpus = int(resources["limits"]["nvidia.com/gpu"])
    assert engine.max_replicas * engine.tensor_parallel == gpus
    volumes = {
        each["name"]: each for each in the("Job", folder)["spec"]["template"]["spec"]["volumes"]
    }
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert volumes["config"]["configMap"]["name"] == the("ConfigMap", folder)["metadata"]["name"]


@each_folder
def test_worker_that_is_told_to_end_has_time_to_save_and_is_started_again(folder: str) -> None:
    job = the("Job", folder)["spec"]
    pod = job["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > DRIVER_SAVE_SECONDS + DRIVER_CLOSE_SECONDS
    assert pod["restartPolicy"] == "Never", "Kubernetes allows no pod failure policy otherwise"
    disrupted, stopped, refused = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == stopped["action"] == "Ignore"
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert stopped["onExitCodes"]["values"] == [143]
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailIndex", [2])
    (container,) = pod["containers"]
    for rule in (stopped, refused):
        assert rule["onExitCodes"]["containerName"] == container["name"]


@each_folder
def test_first_worker_that_finds_all_rows_done_ends_the_job(folder: str) -> None:
    job = the("Job", folder)["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["completions"] == job["parallelism"] > 1
    assert job["successPolicy"] == {"rules": [{"succeededCount": 1}]}
    assert job["backoffLimitPerIndex"] > 0


@pytest.mark.parametrize("folder", QUEUED)
def test_kueue_starts_what_waits_in_its_queue(folder: str) -> None:
    (job,) = (each for each in rendered(folder) if each["kind"] in ("Job", "RayJob"))
    assert job["spec"]["suspend"] is True
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"]
    assert labels["kueue.x-k8s.io/priority-class"] == PRIORITY["metadata"]["name"]


def test_priority_is_below_that_of_other_jobs() -> None:
    assert PRIORITY["apiVersion"] == "kueue.x-k8s.io/v1beta2"
    assert PRIORITY["kind"] == "WorkloadPriorityClass"
    assert PRIORITY["value"] < 0
    assert PRIORITY.keys() == {"apiVersion", "kind", "metadata", "value", "description"}


def test_workers_start_though_the_queue_has_room_for_one_only() -> None:
    annotations = the("Job", "kubernetes/queued")["metadata"]["annotations"]
    assert annotations == {"kueue.x-k8s.io/job-min-parallelism": "1"}
