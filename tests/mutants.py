"""Change the modules that keep data in one place at a time: do the unit tests notice?

    python -m tests.mutants                                    # all of `MODULES`
    python -m tests.mutants pipeline/output/lease.py           # some
    python -m tests.mutants --sample 200 --seed 7              # some mutants of each

The tests are collected and run once, in this process; that tells which lines each of them reaches.
For each mutant a fork of the process gets the changed code and runs the tests that reach its line,
the fastest first, until one fails. Printed are the mutants that survived, and the score: the share
that a test kills, or that end no more. Only code in functions is changed, and no message or log
line. (mutmut leaves out functions with decorators and deletes no statement; cosmic-ray starts
pytest for each mutant.)
"""

import argparse
import ast
import difflib
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
# The modules, and the tests that are meant to notice.
MODULES = {
    "pipeline/planning.py": ("test_planning.py", "input", "execution/test_many_rows.py"),
    "pipeline/storage.py": ("test_storage.py", "test_storage_s3.py"),
    "pipeline/local_disk.py": ("test_storage.py", "output"),
    "pipeline/output/layout.py": ("output",),
    "pipeline/output/parts.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/merge.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/ledger.py": ("output", "execution/test_duplicates.py"),
    "pipeline/output/passes.py": ("output",),
    "pipeline/output/lease.py": ("output/test_lease.py",),
    "pipeline/output/checkpoints.py": ("output/test_checkpoints.py",),
    "pipeline/monitor/limits.py": ("monitor/test_limits.py",),
    "jobs/accept.py": ("jobs/test_accept.py", "jobs/test_synthesize.py", "jobs/test_selection.py"),
    "jobs/near_duplicates.py": ("jobs/test_accept.py", "jobs/test_synthesize.py"),
    "jobs/samples.py": ("jobs/test_accept.py", "jobs/test_selection.py"),
    "jobs/chats.py": ("jobs/test_chats.py", "jobs/test_synthesize.py", "jobs/test_selection.py"),
    "jobs/export.py": ("jobs/test_chats.py", "jobs/test_selection.py"),
}
BAR = 0.9
# Changes that no test can notice: (module, code before, after): why.
_MINHASH = "minhash = MinHash(PERMUTATIONS, {})"
_KEY = "key = hashlib.blake2b(' '.join(prompt.split()).encode(){}).digest()"
EQUIVALENT: dict[tuple[str, str, str], str] = {
    **{
        (
            "jobs/near_duplicates.py",
            _MINHASH.format("seed=1, hashfunc=zlib.crc32"),
            _MINHASH.format(other),
        ): ("signatures are only compared with each other")
        for other in ("hashfunc=zlib.crc32", "seed=1", "seed=2, hashfunc=zlib.crc32")
    },
    **{
        (
            "jobs/near_duplicates.py",
            _KEY.format(", digest_size=16"),
            _KEY.format(other),
        ): "a longer key"
        for other in ("", ", digest_size=17")
    },
    (
        "pipeline/monitor/limits.py",
        "return None if cost is None or cost_per_minute is None else cost / cost_per_minute",
        "return None if cost_per_minute is None else cost / cost_per_minute",
    ): "there is no cost per minute without a cost",
    (
        "pipeline/monitor/limits.py",
        "return None if cost is None or cost_per_minute is None else cost / cost_per_minute",
        "return None if cost is None else cost / cost_per_minute",
    ): "a cost without a price is refused by the configuration",
}

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
COMPUTED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
DELETED = (ast.AugAssign, ast.Delete, ast.Raise, ast.Continue, ast.Break)

# What only describes, or is run when the module is imported.
NO_CODE: dict[type[ast.AST], tuple[str, ...]] = {
    ast.FunctionDef: ("args", "decorator_list", "returns"), ast.AnnAssign: ("annotation",),
    ast.Lambda: ("args",),
}  # fmt: skip
# Arguments that change how something looks or how fast it is.
QUIET = frozenset("daemon name compression sort_keys Dumper exc_info timespec strict".split())

Change = tuple[ast.AST, str, int | None, ast.AST | list[ast.stmt]]  # node, field, index, new value


@dataclass(frozen=True)
class Mutant:
    """One change of a module: its line, the changed source lines, the code of all functions."""

    module: str
    line: int
    before: str
    after: str
    codes: dict[tuple[str, int], CodeType]

    def __str__(self) -> str:
        return f"{self.module}:{self.line}\n    - {self.before}\n    + {self.after}"


@singledispatch
def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What else could stand in place of ``node``, an expression or a statement."""
    if isinstance(node, DELETED):
        yield ast.Pass()


@variants.register
def _(node: ast.Compare) -> Iterator[ast.AST]:
    if len(node.ops) == 1:
        for other in COMPARED[type(node.ops[0])]:
            yield ast.Compare(node.left, [other()], node.comparators)


@variants.register
def _(node: ast.BoolOp) -> Iterator[ast.AST]:
    for i in range(len(node.values)):
        rest = [*node.values[:i], *node.values[i + 1 :]]
        yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


@variants.register
def _(node: ast.UnaryOp) -> Iterator[ast.AST]:
    yield node.operand


@variants.register
def _(node: ast.BinOp) -> Iterator[ast.AST]:
    is_text = any(
        isinstance(side, ast.JoinedStr | ast.List)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )
    if type(node.op) in COMPUTED and not is_text:
        yield ast.BinOp(node.left, COMPUTED[type(node.op)](), node.right)


@variants.register
def _(node: ast.Constant) -> Iterator[ast.AST]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1)


@variants.register
def _(node: ast.Call) -> Iterator[ast.AST]:
    if isinstance(node.func, ast.Name) and node.func.id in CALLED:
        other = ast.Name(CALLED[node.func.id], ast.Load())
        yield ast.Call(other, node.args, node.keywords)
    for i, keyword in enumerate(node.keywords):
        if keyword.arg not in QUIET:
            yield ast.Call(node.func, node.args, [*node.keywords[:i], *node.keywords[i + 1 :]])


@variants.register
def _(node: ast.Slice) -> Iterator[ast.AST]:
    if node.lower:
        yield ast.Slice(None, node.upper, node.step)
    if node.upper:
        yield ast.Slice(node.lower, None, node.step)


@variants.register
def _(node: ast.Return) -> Iterator[ast.AST]:
    if node.value is None:
        yield ast.Pass()
    elif not isinstance(node.value, ast.Constant):
        yield ast.Return(ast.Constant(None))


@variants.register
def _(node: ast.Expr) -> Iterator[ast.AST]:
    if isinstance(node.value, ast.Call | ast.Yield | ast.YieldFrom):
        yield ast.Pass()


@variants.register
def _(node: ast.Assign) -> Iterator[ast.AST]:
    if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
        yield ast.Pass()


@variants.register(ast.If)
@variants.register(ast.While)
@variants.register(ast.IfExp)
def _(node: Any) -> Iterator[ast.AST]:
    if not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):  # they have their own
        fields = {name: getattr(node, name) for name in node._fields}
        yield type(node)(**{**fields, "test": ast.UnaryOp(ast.Not(), node.test)})


def changes(node: ast.AST) -> Iterator[Change]:
    """All changes of ``node`` and what is below it."""
    if isinstance(node, ast.comprehension) and node.ifs:
        for i in range(len(node.ifs)):
            yield node, "ifs", i, ast.Constant(True)
    if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        yield node, "body", None, [ast.Raise()]
    for field, value in ast.iter_fields(node):
        if field in NO_CODE.get(type(node), ()):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or _says_only(child) or _is_typed(node, child):
                continue
            for other in variants(child):
                yield node, field, index, other
            if not isinstance(child, ast.Raise):  # a message
                yield from changes(child)


def _is_typed(node: ast.AST, child: ast.AST) -> bool:
    """Whether ``child`` is the constructor in ``list[str | None]()``."""
    return isinstance(node, ast.Call) and isinstance(child, ast.Subscript)


def _says_only(node: ast.AST) -> bool:
    """Whether it is a message, a line for the log, or one of the arguments `QUIET`."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.unparse(node.value.func).startswith(("logger.", "_warn"))
    is_quiet = isinstance(node, ast.keyword) and node.arg in QUIET
    return is_quiet or isinstance(node, ast.JoinedStr | ast.Assert)


def mutants_of(module: str) -> Iterator[Mutant]:
    """All mutants of ``module`` whose code differs."""
    path = ROOT / module
    tree = ast.parse(path.read_text())
    original = codes_of(compile(tree, str(path), "exec"))
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and not any(node in other.body for other in ast.walk(tree) if isinstance(other, ast.FunctionDef))
    ]  # fmt: skip
    for function in functions:
        before = ast.unparse(function).splitlines()
        for node, field, index, new in list(changes(function)):
            value = getattr(node, field)
            old = value if index is None else value[index]
            line = min((n.lineno for n in _located(old)), default=function.lineno)
            for part in new if isinstance(new, list) else [new]:
                for at in ast.walk(part):
                    if "lineno" in at._attributes and not hasattr(at, "lineno"):
                        at.lineno, at.col_offset = line, 0  # type: ignore[attr-defined]
                        at.end_lineno, at.end_col_offset = line, 0  # type: ignore[attr-defined]
            _put(node, field, index, new)
            codes = codes_of(compile(tree, str(path), "exec"))
            changed = {key: code for key, code in codes.items() if original.get(key) != code}
            after = ast.unparse(function).splitlines()
            _put(node, field, index, old)
            if changed:
                yield Mutant(module, line, *_difference(before, after), changed)


def _put(node: ast.AST, field: str, index: int | None, value: Any) -> None:
    if index is None:
        setattr(node, field, value)
    else:
        getattr(node, field)[index] = value


def _located(old: Any) -> Iterator[Any]:
    for part in old if isinstance(old, list) else [old]:
        yield from (node for node in ast.walk(part) if "lineno" in node._attributes)


def _difference(before: Sequence[str], after: Sequence[str]) -> tuple[str, str]:
    """The lines that differ, each side in one line."""
    sides: tuple[list[str], list[str]] = ([], [])
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if tag != "equal":
            sides[0].extend(map(str.strip, before[a:b]))
            sides[1].extend(map(str.strip, after[c:d]))
    return "; ".join(sides[0]), "; ".join(sides[1])


def codes_of(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """The code of all functions of a module but nested ones, by name and line."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & 1:  # a function's; a class's has no fast locals
                found[constant.co_qualname, constant.co_firstlineno] = constant
            else:
                found.update(codes_of(constant))
    return found


class Runner:
    """The pytest plugin that runs the mutants of ``modules`` in place of the tests."""

    def __init__(self, modules: Sequence[str], sample: int | None, seed: int) -> None:
        self.modules, self._sample, self._seed = modules, sample, seed
        self.killed, self.tried, self.survivors = Counter[str](), Counter[str](), list[Mutant]()
        self.has_failed = False
        self._seconds: dict[pytest.Item, float] = {}
        self._reached: dict[tuple[str, int], set[pytest.Item]] = defaultdict(set)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self) -> None:
        """A failing example is enough; nobody reads a small one."""
        from hypothesis import Phase, settings  # pytest must be the first to import it

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", settings.get_profile("patient"), phases=phases)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has failed."""
        self.has_failed |= report.failed

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All tests once, then all mutants."""
        for item in session.items:
            self._trace(item)
            if self.has_failed:
                pytest.exit(f"{item.nodeid} fails without any change", 3)
        functions: dict[str, list[FunctionType]] = defaultdict(list)
        for thing in gc.get_objects():
            if isinstance(thing, FunctionType):
                functions[thing.__code__.co_filename].append(thing)
        gc.freeze()  # forks share the memory
        for module in self.modules:
            mutants = [
                m for m in mutants_of(module) if (module, m.before, m.after) not in EQUIVALENT
            ]
            if self._sample is not None:
                count = min(self._sample, len(mutants))
                mutants = random.Random(self._seed).sample(mutants, count)
            for mutant in mutants:
                self._try(mutant, functions[str(ROOT / module)])
            print(f"{module}: {self.killed[module]} of {self.tried[module]} noticed", flush=True)
        return True

    def _trace(self, item: pytest.Item) -> None:
        """Run a test, and note the lines that it reaches."""
        files = {str(ROOT / module): module for module in self.modules}
        lines = set[tuple[str, int]]()

        def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
            module = files.get(frame.f_code.co_filename)
            if module is None:
                return None
            lines.add((module, frame.f_lineno))
            return trace

        started = time.perf_counter()
        threading.settrace(trace)
        sys.settrace(trace)
        try:
            self._run(item)
        finally:
            sys.settrace(None)
            threading.settrace(None)
        self._seconds[item] = time.perf_counter() - started
        for line in lines:
            self._reached[line].add(item)

    def _run(self, item: pytest.Item) -> None:
        class Next:  # the fixtures of the session stay
            listchain = staticmethod(lambda: [item.session])

        item.config.hook.pytest_runtest_protocol(item=item, nextitem=Next)

    def _try(self, mutant: Mutant, functions: Sequence[FunctionType]) -> None:
        items = sorted(self._reached[mutant.module, mutant.line], key=self._seconds.__getitem__)
        self.tried[mutant.module] += 1
        if items and self._fails(items, mutant, functions):
            self.killed[mutant.module] += 1
        else:
            self.survivors.append(mutant)
            print(f"{mutant}\n    {len(items)} tests reach it", flush=True)

    def _fails(
        self, items: Sequence[pytest.Item], mutant: Mutant, functions: Sequence[FunctionType]
    ) -> bool:
        """Whether a test fails in a fork with the changed code, or takes too long."""
        child = os.fork()
        if child == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            limit = 64 * 2**30
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for function in functions:
                code = function.__code__
                if new := mutant.codes.get((code.co_qualname, code.co_firstlineno)):
                    function.__code__ = new
            for item in items:
                self._run(item)
                if self.has_failed:
                    os._exit(1)
            os._exit(0)
        deadline = time.monotonic() + 5 + 3 * sum(map(self._seconds.__getitem__, items))
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status != 0
            time.sleep(0.002)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True

    def report(self) -> float:
        """Print the scores; returns that of all modules together."""
        print("\n| module | mutants | killed |\n|---|---|---|")
        for module in (*self.modules, None):
            tried, killed = (
                sum(counts.values()) if module is None else counts[module]
                for counts in (self.tried, self.killed)
            )
            print(f"| {module or 'all'} | {tried} | {killed / max(tried, 1):.0%} |")
        return sum(self.killed.values()) / max(sum(self.tried.values()), 1)


def main() -> int:
    """Print survivors and scores; 1 if the score of all is below `BAR`, 3 if a test fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("modules", nargs="*", default=MODULES)
    parser.add_argument("--sample", type=int, help="only so many mutants of each module")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    given = parser.parse_args()
    os.environ["CI"] = "1"  # the same examples every time
    runner = Runner(given.modules, given.sample, given.seed)
    tests = sorted({f"tests/unit/{test}" for module in given.modules for test in MODULES[module]})
    tests = [test for test in tests if os.path.exists(test)]
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files that nobody waits for
    with TemporaryDirectory(dir=memory) as folder:
        plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "--basetemp", f"{folder}/tests"]
        code = pytest.main(["-s", *plugins, *tests], [runner])
    if code:
        return int(code)
    return int(runner.report() < BAR)


if __name__ == "__main__":
    raise SystemExit(main())
