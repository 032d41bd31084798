"""Rules that matter: imports go one way, and every file can be read at one sitting."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
MAX_LINES = 400
# The packages from left to right: each imports only from those before it. Packages that stand
# together do not import each other.
ORDER = (
    ("errors", "models"),
    ("registry", "time_limits", "local_disk", "printing", "strict_json"),
    ("answers", "starters", "object_stores"),
    ("storage", "schema", "planning", "reasoning"),
    ("prompts", "input"),
    ("config",),
    ("output", "engines"),
    ("monitor",),
    ("execution",),
    ("insight", "console"),
    ("api",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
# Plain data and rules: loading them loads no heavy package.
LIGHT = ("answers", "config", "errors", "input", "planning", "prompts", "reasoning", "schema")
HEAVY = ("ray", "vllm", "torch", "transformers", "s3fs")


def room_of(module: str) -> str:
    """The package below `pipeline` (or the module directly in it) that ``module`` is in."""
    return module.split(".")[1]


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            if node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            else:
                yield node.module


def importers(package: str) -> set[str]:
    """The files that import ``package``, relative to `pipeline`."""
    return {
        str(path.relative_to(ROOT / "pipeline"))
        for path in SOURCES
        if any(name.split(".")[0] == package for name in imports(path))
    }


def test_every_package_has_a_place_in_the_order() -> None:
    rooms = {path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for path in SOURCES}
    assert rooms - {"__init__", "__main__"} == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    here = path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py")
    if here not in LEVEL:  # the public names and `python -m pipeline` see everything
        return
    upward = [
        name
        for name in imports(path)
        if name.startswith("pipeline.")
        and room_of(name) != here
        and LEVEL[room_of(name)] >= LEVEL[here]
    ]
    assert upward == []


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").rglob("*.py")), ids=lambda path: path.name)
def test_jobs_do_not_import_the_command_line_that_imports_them(path: Path) -> None:
    """Only ``python -m jobs.X``, which is the same command, may call it."""
    tree = ast.parse(path.read_text())
    importing = [
        statement
        for statement in tree.body
        for node in ast.walk(statement)
        if isinstance(node, ast.ImportFrom) and node.module == "pipeline.cli"
    ]
    assert all(ast.unparse(s).startswith("if __name__ == '__main__'") for s in importing)


def test_vllm_is_imported_in_one_file() -> None:
    assert importers("vllm") == {"engines/vllm.py"}


def test_servers_are_asked_in_the_endpoint_alone() -> None:
    """A time limit for the client of Google Cloud Storage is another matter."""
    endpoint = {"engines/endpoint.py", "engines/endpoint_client.py"}
    assert importers("aiohttp") - {"object_stores.py"} == endpoint


def test_ray_is_imported_where_it_runs_only() -> None:
    allowed = {"monitor", "execution"}
    assert {name for name in importers("ray") if name.split("/")[0] not in allowed} == {
        "engines/vllm.py"
    }


def test_light_packages_load_nothing_heavy() -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in SOURCES
        if path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") in LIGHT
    ]
    code = (
        f"import sys, {', '.join(modules)}\nprint(sorted(set({HEAVY!r}) & set(sys.modules)))"
    ).replace(".__init__", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_file_is_longer_than_one_sitting() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
