"""What `tests.mutants` changes in a module: one expression or statement at a time."""

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).parents[1]

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
