"""How a run's references are read is decided from all over the input, and said before it starts."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline
from pipeline.answers.choice import Choice
from pipeline.errors import InputError, OutputError
from pipeline.execution.prepare import prepare
from pipeline.input.references import SAMPLE_ROWS, sample_references
from pipeline.input.shards import find_shards
from tests.conftest import MakeConfig


def write(folder: Path, name: str, right: list[Any], group: int = 1000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"prompt": [f"q{i}" for i in range(len(right))], "right": right})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=group)


def plan_of(make_config: MakeConfig, answer_format: str = "choice") -> list[str]:
    answer = {"format": answer_format, "reference_column": "right"}
    lines = list(pipeline.plan(make_config(answer=answer)).lines())
    at = next(i for i, line in enumerate(lines) if line.startswith("answers"))
    return [line for line in lines[at:] if line.startswith(("answers", "  "))]


def test_plan_says_how_references_are_read_and_shows_five(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write(
        tmp_path / "in",
        "a",
        ["proof", "#### 42", r"\frac{1}{2}", "5", "x\x1b[31m", "7", "word " * 300],
    )
    first, *examples = plan_of(make_config, "boxed")
    assert first == (
        "answers   column right is read as numbers, formulas or short texts, worked solutions "
        "ending in #### N (7 rows sampled: 1 without a reference, 1 that can't be read (column "
        "correct will be null))"
    )
    assert len(examples) == 5
    assert [line.split(": ")[0].strip() for line in examples[:2]] == ["'proof'", "'#### 42'"]
    assert examples[1].endswith(": '42'")
    assert "\x1b" not in "".join(examples)


def test_the_sample_is_from_all_shards_and_row_groups(tmp_path: Path) -> None:
    """The first thousand rows have no 0 and would be refused, or read as if 1 were A."""
    write(tmp_path, "a", [1, 2, 3, 4] * 500, group=500)
    write(tmp_path, "b", [1, 2, 3, 4] * 250 + [0, 1, 2, 3] * 250, group=500)
    sample = sample_references(str(tmp_path), find_shards(str(tmp_path)).shards, "right", Choice())
    assert sample.reading.kind == "numbers from 0"
    assert 0.9 * SAMPLE_ROWS <= sample.rows <= SAMPLE_ROWS


@pytest.mark.parametrize("right", [[1, 2, 3] * 20, ["the heart", "the liver"]])
def test_what_can_not_be_decided_is_refused_before_anything_starts(
    tmp_path: Path, make_config: MakeConfig, right: list[Any]
) -> None:
    write(tmp_path / "in", "a", [None, *right])
    with pytest.raises(
        InputError, match=r"answer\.reference_column is right, but .*write .* row 1 of a\.parquet"
    ):
        plan_of(make_config)
    assert not (tmp_path / "out").exists()


def test_new_shards_that_are_read_in_another_way_are_refused(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """The finished rows were compared in the first way. Older versions recorded no way."""
    config = make_config(answer={"format": "choice", "reference_column": "right"})
    write(tmp_path / "in", "a", [1, 2, 3, 4] * 20)
    prepare(config).open_output()
    write(tmp_path / "in", "b", [0, 1, 2, 3] * 20)
    with pytest.raises(OutputError, match=r"answer\.references: there 'numbers from 1', now"):
        prepare(config)
    path = tmp_path / "out/__qwq/manifest.yaml"
    manifest = yaml.safe_load(path.read_text())
    del manifest["settings"]["answer.references"]
    path.write_text(yaml.safe_dump(manifest))
    prepare(config).open_output()


def test_a_damaged_shard_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    write(tmp_path, "a", ["A"] * 50)
    write(tmp_path, "b", ["B"] * 50)
    shards = find_shards(str(tmp_path)).shards
    (tmp_path / "a.parquet").write_bytes(b"damaged")
    sample = sample_references(str(tmp_path), shards, "right", Choice())
    assert (sample.rows, sample.reading.description) == (50, "letters B to B")
