"""A job replaces and removes only what it has written itself."""

from pathlib import Path

import pytest

from jobs.own_files import OwnFiles
from pipeline.errors import OutputError
from tests.outputs import write_output


def own(folder: Path) -> OwnFiles:
    return OwnFiles(
        str(folder), str(folder / "traces"), ("labels/", "report.md"), r"labels/.*\.pq|report.md"
    )


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")


def test_files_of_others_are_refused_and_named(tmp_path: Path) -> None:
    put(tmp_path, "labels/by-hand.csv", "report.md", "elsewhere/x")
    with pytest.raises(OutputError, match=r"them: labels/by-hand.csv, report.md; move them, or"):
        own(tmp_path).refuse_others()
    put(tmp_path, *(f"labels/{i}" for i in range(4)))
    with pytest.raises(OutputError, match=r"labels/1, labels/2 and 3 more"):
        own(tmp_path).refuse_others()


def test_outdated_files_of_its_own_are_removed_and_no_others(tmp_path: Path) -> None:
    files = own(tmp_path)
    files.refuse_others()
    files.claim(["labels/a", "labels/b", "report.md"])
    put(tmp_path, "labels/a", "labels/b", "report.md", "labels/mine", "other/labels/c")
    own(tmp_path).remove_all_but(["labels/a", "report.md"])
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert there == {"labels/a", "report.md", "labels/mine", "other/labels/c", "__qwq/files.txt"}
    with pytest.raises(OutputError, match="labels/mine"):
        own(tmp_path).refuse_others()


@pytest.mark.parametrize(
    "name", ["a\nb", "a\r\nb", "a\u2028b", "a\x0c\x1cb", '"quoted"', "\\n", "é", "a b"]
)
def test_names_with_line_breaks_stay_its_own(tmp_path: Path, name: str) -> None:
    own(tmp_path).claim([f"labels/{name}"])
    put(tmp_path, f"labels/{name}")
    own(tmp_path).refuse_others()
    own(tmp_path).remove_all_but([])
    assert not (tmp_path / "labels" / name).exists()


def test_output_of_a_version_without_a_list_goes_on(tmp_path: Path) -> None:
    Path(write_output(tmp_path, [{}])).rename(tmp_path / "traces")
    put(tmp_path, "labels/a.pq", "report.md")
    own(tmp_path).refuse_others()
    put(tmp_path, "labels/notes.txt")
    with pytest.raises(OutputError, match=r"them: labels/notes.txt; move"):
        own(tmp_path).refuse_others()


def test_a_file_that_somebody_puts_there_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    files = own(tmp_path)
    files.refuse_others()
    files.claim(())
    put(tmp_path, "labels/a")
    with pytest.raises(OutputError, match="labels/a; move"):
        files.claim(["labels/a", "labels/b"])
    files.claim(["labels/b"])
