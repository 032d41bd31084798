"""Whether a version of vLLM has all names that the pipeline uses, from its source.

    python -m infra.vllm_names 0.33.0

Nothing is installed: the source distribution is downloaded and read. Whether the names still mean
the same, only a run can tell.
"""

import ast
import re
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urljoin

from pipeline.engines.vllm import USED_NAMES
from pipeline.engines.vllm_arguments import RESERVED, RESULT_ARGS

INDEX = "https://pypi.org/simple/vllm/"
SECONDS = 120


def nested(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, those below ``if`` and ``try`` too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            handlers = [s for h in getattr(node, "handlers", []) for s in h.body]
            yield from nested([*node.body, *handlers, *node.orelse])


def defined(body: Iterable[ast.stmt]) -> set[str]:
    """The names that statements define."""
    names = set[str]()
    for node in nested(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def members(node: ast.ClassDef) -> set[str]:
    """What a class defines: in its body, and as attributes of ``self``."""
    attributes = {
        found.attr
        for found in ast.walk(node)
        if isinstance(found, ast.Attribute)
        and isinstance(found.ctx, ast.Store)
        and isinstance(found.value, ast.Name)
        and found.value.id == "self"
    }
    return defined(node.body) | attributes


@cache
def names_of(package: Path, module: str) -> frozenset[str]:
    """The names of a module of vLLM, ``Class.member`` too, from its source; empty if it is gone.

    ``package``: the folder of a vLLM.
    """
    path = Path(package, *module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text())
    classes = {
        f"{node.name}.{member}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for member in members(node)
    }
    return frozenset(classes | defined(tree.body))


def installed() -> Path:
    """The folder of the installed vLLM."""
    spec = find_spec("vllm")
    assert spec is not None
    return Path(next(iter(spec.submodule_search_locations or ())))


def download(version: str, folder: Path) -> Path:
    """Unpack the source of a version below ``folder``; the folder of its package.

    Raises `OSError` if it can't be downloaded.
    """
    with urllib.request.urlopen(INDEX, timeout=SECONDS) as answer:
        page = answer.read().decode()
    found = re.search(rf'href="([^"]*/vllm-{re.escape(version)}\.tar\.gz[^"]*)"', page)
    if found is None:
        raise FileNotFoundError(f"{INDEX} has no source of vLLM {version}")
    address = urljoin(INDEX, found.group(1))
    with (
        urllib.request.urlopen(address, timeout=SECONDS) as answer,  # noqa: S310
        tarfile.open(fileobj=answer, mode="r|gz") as archive,
    ):
        archive.extractall(folder, filter="data")
    return next(folder.glob("vllm-*/vllm"))


def missing(package: Path) -> list[str]:
    """What the pipeline uses and this vLLM does not have."""
    names = [f"{module}.{name}" for module, used in USED_NAMES.items() for name in used
             if name not in names_of(package, module)]  # fmt: skip
    accepted = names_of(package, "vllm.engine.arg_utils")
    arguments = {*RESERVED, *RESULT_ARGS, "gpu_memory_utilization"} - {"hf_token"}
    return names + [f"engine argument {a}" for a in sorted(arguments)
                    if f"EngineArgs.{a}" not in accepted]  # fmt: skip


def main() -> None:
    """Print what is missing; exit code 1 if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        gone = missing(download(sys.argv[1], Path(folder)))
    print("\n".join(gone) or f"vLLM {sys.argv[1]} has all names that the pipeline uses")
    sys.exit(bool(gone))


if __name__ == "__main__":
    main()
