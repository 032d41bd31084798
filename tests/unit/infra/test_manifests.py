"""What is to be applied to Kubernetes: valid by its schemas, and safe."""

import json
import os
import re
from pathlib import Path

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator

from tests.unit.infra.manifests import FOLDERS, each_folder, parts, pods, rendered


def test_all_are_there() -> None:
    assert {"kuberay/overlays/one-node", "kubernetes/workers", "kubernetes/queued"} <= set(FOLDERS)


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
def test_nothing_runs_as_root(folder: str) -> None:
    for pod in pods(folder):
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"]
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod["spec"].keys()
    containers = [each for pod in pods(folder) for each in pod["spec"]["containers"]]
    options = [
        part["autoscalerOptions"] for part in parts(rendered(folder)) if "autoscalerOptions" in part
    ]
    for container in containers + options:
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
def test_nobody_gets_in_and_out_they_may_to_some_ports_only(folder: str) -> None:
    policies = {
        each["metadata"]["name"]: each
        for each in rendered(folder)
        if each["kind"] == "NetworkPolicy"
    }
    policy = policies["qwq-batch"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in policy
    assert all(rule["ports"] for rule in policy["egress"])
    for each in policies.values():
        for pod in pods(folder):
            ours = each["spec"]["podSelector"]["matchLabels"]
            assert ours.items() <= pod["metadata"]["labels"].items()
