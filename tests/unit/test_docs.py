"""What the pages say exists, exists: settings, links, commands and make targets."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.docs import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()
)  # fmt: skip
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"(?<!-n )qwq-batch(?: -\S+)* ([a-z][a-z-]+)")
CODE = re.compile(r"```.*?```|`[^`]+`", re.DOTALL)


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def code_of(page: Path) -> Iterator[str]:
    """What a page sets as code: its blocks and its inline spans."""
    yield from CODE.findall(page.read_text())


def test_the_configuration_reference_is_what_make_docs_writes() -> None:
    assert reference.PAGE.read_text() == reference.page(), "run `make docs`"


def test_every_setting_is_described() -> None:
    rows = [row.split(" | ") for row in reference.page().splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows if not row[3].strip(" |")] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_commands_on_pages_are_known() -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    known = set(re.findall(r"^\s+│?\s*([a-z][a-z-]+)  ", asked.stdout, re.MULTILINE))
    assert known, asked.stderr
    used = {
        command for page in PAGES for code in code_of(page) for command in COMMAND.findall(code)
    }
    assert used - known == set()


def test_modules_and_make_targets_on_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for code in code_of(page):
            for module in re.findall(r"python -m ((?:jobs|infra|pipeline|tests)[\w.]*)", code):
                path = ROOT / module.replace(".", "/")
                exists = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
                assert exists or "X" in module or "NAME" in module, f"{relative(page)}: {module}"
            for target in re.findall(r"\bmake ([a-z]+)\b", code):
                assert target in targets, f"{relative(page)}: make {target}"
