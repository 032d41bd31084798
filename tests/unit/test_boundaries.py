"""Rules that matter: what may import what, and files that one can read at one sitting."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "pipeline").rglob("*.py"))
PURE = [
    "config",
    "errors",
    "figures",
    "json_form",
    "lanes",
    "loops",
    "plan",
    "policy",
    "prompts",
    "reasoning",
    "suspects",
    "verify",
    "sampling",
    "schema",
    "sections",
    "sizes",
    "templates",
    "scripts",
    "engines.protocol",
]


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_vllm_is_imported_in_one_file() -> None:
    importers = [path.name for path in SOURCES if "vllm" in imports(path)]
    assert importers == ["vllm.py"]


@pytest.mark.parametrize("module", PURE)
def test_pure_module_loads_neither_ray_nor_vllm_nor_torch(module: str) -> None:
    code = (
        f"import sys, pipeline.{module}\n"
        "print(sorted({'ray', 'vllm', 'torch', 'transformers', 's3fs'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr


def test_no_file_is_longer_than_one_sitting() -> None:
    assert [p.name for p in SOURCES if len(p.read_text().splitlines()) > 400] == []
