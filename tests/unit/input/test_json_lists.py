"""JSON files that hold one list: read object by object, in bounded memory."""

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.input import json_rows
from pipeline.input.json_rows import rows_with_places
from pipeline.storage import Storage


def rows_of(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return rows_with_places(Storage(str(folder)), "a.json")


def test_what_is_no_list_of_objects_is_refused_with_its_line(tmp_path: Path) -> None:
    for text, reason in (
        ('[{"prompt": "a"},\n{"prompt": "b"}\n{"prompt": "c"}]', r"2: .*no comma or \] follows"),
        ('[{"prompt": "a"},\n{"prompt": "b"}', r"2: .*no comma or \] follows"),
        ('[{"prompt": "a"},\n{"prompt": NaN}]', "2: .*NaN is not a JSON number"),
        ('[{"prompt": "a"},\n{"prompt": "b]', "2: .*Unterminated string"),
        ('[{"prompt": "a"},\n7]', "2: must be an object"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', "2: .*something follows the end of the list"),
    ):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=f"^a.json:{reason}"):
            list(rows_of(tmp_path))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list_is_the_same_however_little_of_it_is_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None
) -> None:
    rows = [{"prompt": f"{i}: \\ \U0001f600 ]," * (i % 40), "n": [i, -i / 7]} for i in range(200)]
    text = json.dumps(rows, indent=indent)
    (tmp_path / "a.json").write_text(text)
    lines = [2 + 7 * i for i in range(200)] if indent else [1] * 200
    for characters in (1, 7, 1000):
        monkeypatch.setattr(json_rows, "READ_CHARACTERS", characters)
        places, found = zip(*rows_of(tmp_path), strict=True)
        assert list(found) == rows
        assert list(places) == [f"a.json:{line}" for line in lines]


def test_a_json_list_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("w") as file:
        file.write("[" + ",".join([json.dumps({"prompt": "x" * 20_000})] * 1500) + "]")
    tracemalloc.start()
    try:
        count = sum(1 for _ in rows_of(tmp_path))
        assert (
            tracemalloc.get_traced_memory()[1] < 10_000_000 < (tmp_path / "a.json").stat().st_size
        )
    finally:
        tracemalloc.stop()
    assert count == 1500
