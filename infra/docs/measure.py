"""Count what shows whether the code stays easy to read: folders, imports, prose, functions.

python -m infra.docs.measure [FOLDER …]     # default: this checkout; a column for each folder
"""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeAlias

# The packages from left to right, as tests/unit/test_boundaries.py has them.
ORDER = (
    "errors models",
    "registry time_limits",
    "answers",
    "storage schema planning reasoning",
    "prompts input",
    "config",
    "output engines",
    "monitor",
    "execution",
    "insight",
    "starters console",
    "api",
    "cli",
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names.split()}
# What McCabe's number counts, as ruff's C901 does.
BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.match_case,
)
LONG_SENTENCE = 40
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|\n\s*\n|\n\s*[-*|#]\s")
# Front matter, code blocks, indented code and tables.
NOT_PROSE = re.compile(r"\A---\n.*?^---$|```.*?```|^    [^\n]*|^\|[^\n]*", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A parsed module of `pipeline` or `jobs`."""

    path: Path
    name: str
    tree: ast.Module

    @property
    def functions(self) -> list[Function]:
        """All functions and methods, nested ones too."""
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    @property
    def imports(self) -> Iterator[str]:
        """The modules of `pipeline` that it imports, anywhere in it."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "pipeline":
                yield from (f"pipeline.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline."):
                yield str(node.module)


def sources(root: Path, *folders: str) -> list[Source]:
    """The modules below ``folders`` of ``root``."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return [
        Source(
            path,
            ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"),
            ast.parse(path.read_text()),
        )
        for path in paths
    ]


def measure(root: Path) -> dict[str, str]:
    """Figure by name, for the checkout ``root``."""
    modules = sources(root, "pipeline")
    functions = [function for module in modules for function in module.functions]
    lines = sorted(node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno)
    folders = Counter(module.path.parent for module in modules if module.path.name != "__init__.py")
    pages = [path for path in root.rglob("*.md") if ".venv" not in path.parts]
    return {
        "modules in pipeline/": str(len(modules)),
        "most modules in one folder": str(max(folders.values())),
        "upward imports": str(upward_imports(modules)),
        "pairs of modules that import each other": str(mutual_imports(modules)),
        "lines of a function, median / 90 % / most": (
            f"{median(lines):g} / {lines[len(lines) * 9 // 10]} / {lines[-1]}"
        ),
        "functions over complexity 10": str(sum(complexity(node) > 10 for node in functions)),
        "functions with more than five arguments": str(
            sum(argument_count(node) > 5 for node in functions)
        ),
        "`Any` in signatures": str(sum(map(any_in_signature, functions))),
        "README, lines": str(len((root / "README.md").read_text().splitlines())),
        "README, words a sentence": words(prose([root / "README.md"])),
        "all pages, words a sentence": words(prose(pages)),
        "docstrings, words a sentence": words(docstrings(sources(root, "pipeline", "jobs"))),
        "error messages, words a sentence": words(messages(sources(root, "pipeline", "jobs"))),
    }


def upward_imports(modules: Iterable[Source]) -> int:
    """Imports of a package that is not before the importing one; of flat modules there are none."""
    return sum(
        room_of(name) != room_of(module.name)
        and LEVEL.get(room_of(name), -1) >= LEVEL.get(room_of(module.name), len(ORDER))
        for module in modules
        for name in module.imports
    )


def mutual_imports(modules: Sequence[Source]) -> int:
    """Pairs of modules of which each imports the other, type checking included."""
    edges = {(module.name, name) for module in modules for name in module.imports}
    return sum((b, a) in edges for a, b in edges if a < b)


def room_of(module: str) -> str:
    """The part of a module's name below `pipeline`."""
    return module.split(".")[1] if "." in module else ""


def complexity(function: Function) -> int:
    """McCabe's number: the branches of a function, and one."""
    return 1 + sum(isinstance(node, BRANCHES) for node in ast.walk(function))


def _arguments(function: Function) -> list[ast.arg]:
    args = function.args
    plain = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    return [arg for arg in plain if arg.arg not in ("self", "cls")]


def argument_count(function: Function) -> int:
    """The arguments of a function but for ``self`` and ``cls``."""
    return len(_arguments(function))


def any_in_signature(function: Function) -> int:
    """How often ``Any`` stands in the annotations of a function."""
    notes = [arg.annotation for arg in _arguments(function)] + [function.returns]
    names = [node for note in notes if note is not None for node in ast.walk(note)]
    return sum(isinstance(node, ast.Name) and node.id == "Any" for node in names)


def prose(pages: Iterable[Path]) -> Iterator[str]:
    """The sentences of Markdown pages, without code blocks and tables."""
    for page in pages:
        yield from _sentences(NOT_PROSE.sub("\n\n", page.read_text()))


def docstrings(modules: Iterable[Source]) -> Iterator[str]:
    """The sentences of all docstrings, without indented examples."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield from _sentences(NOT_PROSE.sub("\n\n", text))


def messages(modules: Iterable[Source]) -> Iterator[str]:
    """The sentences of the texts of raised errors; a value in braces counts as a word."""
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                for argument in node.exc.args:
                    yield from _sentences(_text(argument))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            _text(part) if isinstance(part, ast.Constant) else "X" for part in node.values
        )
    return ""


def _sentences(text: str) -> Iterator[str]:
    for sentence in SENTENCE_ENDS.split(text):
        if len(sentence.split()) > 2:  # headings and stray marks are no sentences
            yield sentence


def words(sentences: Iterable[str]) -> str:
    """The median of words a sentence, the most, and how many sentences are long."""
    counts = sorted(len(sentence.split()) for sentence in sentences)
    long = sum(count > LONG_SENTENCE for count in counts)
    return f"median {median(counts):g}, most {counts[-1]}, over {LONG_SENTENCE}: {long}"


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Figures by name of each checkout, as a Markdown table."""
    names = list(next(iter(columns.values())))
    head = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    rows = [f"| {name} | {' | '.join(c[name] for c in columns.values())} |" for name in names]
    return "\n".join(head + rows)


def main(folders: list[str]) -> None:
    """Print the table of these checkouts."""
    roots = [Path(folder) for folder in folders] or [Path(__file__).parents[2]]
    print(table({root.resolve().name: measure(root.resolve()) for root in roots}))


if __name__ == "__main__":
    main(sys.argv[1:])
