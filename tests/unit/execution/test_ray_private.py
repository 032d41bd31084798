"""What we use of Ray beyond its documented API: still there, and used in one module only."""

import ast
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
import ray.data
from ray import _raylet
from ray._private import services, state
from ray.data import DataContext, Dataset

from pipeline.config.load import parse_config
from pipeline.execution.cluster import configure_ray_data

PIPELINE = Path(__file__).parents[3] / "pipeline"
NAMES: dict[str, Callable[[], bool]] = {
    "_metrics_export_port": lambda: '"_metrics_export_port"' in inspect.getsource(ray.init),
    "_node_ip_address": lambda: '"_node_ip_address"' in inspect.getsource(ray.init),
    "resolve_ip_for_localhost": lambda: hasattr(services, "resolve_ip_for_localhost"),
    "_max_num_blocks_in_streaming_gen_buffer": lambda: hasattr(
        DataContext(), "_max_num_blocks_in_streaming_gen_buffer"
    ),
    "map_batches_internal": lambda: hasattr(Dataset, "map_batches_internal"),
    "get_current_task_attempt_number": lambda: hasattr(
        vars(_raylet)["CoreWorker"], "get_current_task_attempt_number"
    ),
    "get_draining_nodes": lambda: hasattr(state.state, "get_draining_nodes"),
    "_map_actor_context": lambda: hasattr(ray.data, "_map_actor_context"),
}


@pytest.mark.parametrize("name", NAMES)
def test_ray_still_has(name: str) -> None:
    assert NAMES[name](), (
        f"Ray {ray.__version__} no longer has {name}; see pipeline/execution/ray_private.py"
    )


def test_ray_still_replaces_the_loopback_address_by_that_function() -> None:
    """Else `on_loopback` changes a function that nobody calls, and Ray listens for everybody."""
    assert "services.resolve_ip_for_localhost(_node_ip_address)" in inspect.getsource(ray.init)


@pytest.mark.parametrize("name", ["num_cpus", "num_gpus", "compute", "ray_remote_args_fn"])
def test_map_batches_internal_still_takes(name: str) -> None:
    assert name in inspect.signature(Dataset.map_batches_internal).parameters


def test_ray_data_still_has_each_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Data takes a setting that it does not know without a word."""
    context = DataContext()
    known = set(vars(context))
    monkeypatch.setattr(DataContext, "get_current", lambda: context)
    sections = {"input": {"path": "-"}, "output": {"path": "-"}, "model": {"path": "qwq-nano"}}
    configure_ray_data(parse_config(sections))
    assert set(vars(context)) - known == set()


def private_names(path: Path) -> set[str]:
    """The names of Ray's private API that a module uses."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray."):
            names |= {part for part in str(node.module).split(".") if part.startswith("_")}
        if isinstance(node, ast.Attribute):
            names |= {node.attr} & NAMES.keys()
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} & NAMES.keys()
    return names


def test_private_names_of_ray_are_used_in_one_module() -> None:
    users = {path.name for path in PIPELINE.rglob("*.py") if private_names(path)}
    assert users == {"ray_private.py"}
