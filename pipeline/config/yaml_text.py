"""YAML as configurations have it: no key twice, and no text of an override lost; no I/O."""

import re
from typing import Any

import yaml

# What PyYAML raises for texts that are no YAML; the last for endless nesting.
ERRORS = (yaml.YAMLError, ValueError, RecursionError)
NULLS = ("", "null", "Null", "NULL", "~")
MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"
QUOTES = ("'", '"')
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
# Numbers of YAML 1.1 that nobody means: 010 is 8, and 1:30 is 90.
ODD_NUMBER = re.compile(r"[-+]?0[0-7_]+|.*:.*")


class RefusedError(ValueError):
    """YAML takes it, but no setting can be that."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; raises `ValueError` for anything wrong with it."""
    try:
        return _constructed(_composed(text))
    except ERRORS as error:
        raise ValueError(_without_text(error)) from None


def _without_text(error: Exception) -> str:
    """The message of ``error`` without the line that PyYAML repeats: it may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return str(error)
    marks = (error.context, error.context_mark), (error.problem, error.problem_mark)
    return "; ".join(
        said if mark is None else f"{said}, line {mark.line + 1}, column {mark.column + 1}"
        for said, mark in marks
        if said is not None
    )


def override_value(text: str, is_text: bool) -> Any:
    """The value that ``key=text`` sets: YAML, of which no part is a comment.

    ``is_text``: the setting is a text. It is taken as it stands, unless all of it is in quotes;
    nothing and ``null`` reset it. Raises `RefusedError`.
    """
    _refuse_surrogates(text, "the value")
    if is_text and text.strip() in NULLS:
        return None
    try:
        node = _composed(text)
    except RefusedError:
        if is_text and not text.lstrip().startswith(QUOTES):
            return text
        raise
    except ERRORS:
        return text
    if node is None:
        return text if text.strip() else None
    is_whole = not text[node.end_mark.index :].strip()  # what follows would be a comment
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style in QUOTES
    if not is_whole or (is_text and not is_quoted):
        return text
    if node.tag == TEXT and not is_quoted:  # lines would be folded
        return text.strip()
    try:
        return _constructed(node)
    except ERRORS:
        return text


def _composed(text: str) -> yaml.Node | None:
    """The nodes of a YAML document; None if it is empty."""
    loader = yaml.SafeLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
    finally:
        loader.dispose()
    if node is not None:
        _check(node, set(), set())
    return node


def _constructed(node: yaml.Node | None) -> Any:
    return None if node is None else yaml.SafeLoader("").construct_document(node)


def _check(node: yaml.Node, above: set[int], checked: set[int]) -> None:
    """Raise `RefusedError` for what YAML takes and no setting can be.

    ``above``: ids of the nodes that ``node`` is in; ``checked``: of those that were checked.
    """
    where = f"line {node.start_mark.line + 1}"
    if id(node) in above:
        raise RefusedError(f"the value in {where} is a part of itself")
    if id(node) in checked:
        return
    checked.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        _refuse_surrogates(node.value, f"the text in {where}")
        if node.tag in NUMBERS and ODD_NUMBER.fullmatch(node.value):
            raise RefusedError(
                f"{node.value} in {where} is {_constructed(node)} in YAML: write that, or put "
                "quotes around it"
            )
        return
    inside = node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(node)
        inside = [each for pair in node.value for each in pair]
    for each in inside:
        _check(each, above | {id(node)}, checked)


def _refuse_surrogates(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{where} is not UTF-8") from None


def _refuse_repeated_keys(mapping: yaml.MappingNode) -> None:
    lines = dict[tuple[str, str], int]()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
            continue
        line = key.start_mark.line + 1
        if first := lines.get((key.tag, key.value)):
            raise RefusedError(
                f"the key {key.value} is there twice, in lines {first} and {line}; keep one of them"
            )
        lines[key.tag, key.value] = line
