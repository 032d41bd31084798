"""Prompts from seeds: all combinations, reproducible, never rewritten."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.seeds import PromptShards, combinations, expanded
from jobs.synthesize import _prompt_shards
from jobs.synthesize_config import Synthesis
from pipeline.config.input import InputConfig
from pipeline.config.load import parse_as
from pipeline.errors import InputError, OutputError
from pipeline.execution.run_input import find_input
from tests.hub import Hub
from tests.outputs import write_output

VALUES: dict[str, list[str | int | float]] = {"style": ["brief", "full"], "of": [1, 2, 3]}


def seeds(folder: Path, sizes: list[int], row_group_size: int = 5) -> str:
    folder.mkdir(exist_ok=True)
    for shard, size in enumerate(sizes):
        rows = [{"seed": f"{shard}-{i}"} for i in range(size)]
        table = pa.Table.from_pylist(rows, pa.schema([("seed", pa.string())]))
        pq.write_table(table, folder / f"s{shard}.parquet", row_group_size=row_group_size)
    return str(folder)


def shards(
    folder: Path, rows: int, values: dict[str, Any] | None = None, **query: Any
) -> PromptShards:
    section = InputConfig(path=str(folder / "in"), **query)
    values = VALUES if values is None else values
    return PromptShards(section, str(folder), values, rows)


def test_each_seed_is_expanded_with_each_combination() -> None:
    table = expanded(pa.table({"seed": ["a", "b"]}), VALUES)
    assert table.to_pylist() == [
        {"seed": seed, "style": style, "of": of}
        for seed in "ab" for style in ("brief", "full") for of in (1, 2, 3)
    ]  # fmt: skip
    assert table.schema.types == [pa.string(), pa.string(), pa.int64()]


@settings(max_examples=30)  # each writes its files
@given(st.lists(st.integers(0, 13), min_size=1, max_size=3), st.integers(1, 30))
def test_shards_hold_all_prompts_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int
) -> None:
    if not sum(sizes):
        return
    folder = tmp_path_factory.mktemp("shards")
    seeds(folder / "in", sizes)
    whole = shards(folder, rows)
    assert whole.rows == 6 * sum(sizes)
    first = whole.write(rows)
    assert first == whole.rows_written
    assert first + whole.write(whole.rows) == whole.rows == whole.rows_written
    prompts = pq.read_table(folder / "prompts", schema=None).to_pylist()
    expected = pa.concat_tables(
        expanded(pq.read_table(folder / f"in/s{i}.parquet"), VALUES) for i in range(len(sizes))
    )
    assert prompts == expected.to_pylist()
    for file in (folder / "prompts").iterdir():
        assert pq.read_metadata(file).num_rows <= max(6, rows)


def test_shards_are_reproducible_and_never_rewritten(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [7, 3])
    shards(tmp_path, 12).write(100)
    files = sorted((tmp_path / "prompts").iterdir())
    assert [file.name for file in files] == [
        *(f"s0.{i:05}.parquet" for i in range(4)), "s1.00000.parquet", "s1.00001.parquet",
    ]  # fmt: skip
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[2].unlink()
    again = shards(tmp_path, 12)
    assert again.rows - again.rows_written == 12
    assert again.write(1) == 12
    after = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    assert [data for data, _ in before] == [data for data, _ in after]
    assert [time for _, time in before][:2] == [time for _, time in after][:2]


def test_changed_seeds_or_values_are_refused_and_copied_seeds_are_not(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [7])
    shards(tmp_path, 12).write(24)
    seeds(tmp_path / "in", [7])  # written again: another time of change
    assert shards(tmp_path, 12).rows_written == 24
    seeds(tmp_path / "in", [7, 2])
    assert shards(tmp_path, 12).rows == 54
    for values, rows, message in (
        ({"style": ["brief"]}, 12, r"synthesize.expand: was \[\['style', .* now \[\['style'"),
        (None, 6, r"output.rows_per_part: was 12, is now 6"),
    ):
        with pytest.raises(OutputError, match=message):
            shards(tmp_path, rows, values)
    pq.write_table(pa.table({"seed": list("abcdefg")}), tmp_path / "in/s0.parquet")
    with pytest.raises(OutputError, match=r"s0.parquet has other rows"):
        shards(tmp_path, 12)
    (tmp_path / "in/s0.parquet").unlink()
    with pytest.raises(OutputError, match=r"has s0.00000.parquet, which no seeds"):
        shards(tmp_path, 12)


def test_only_the_chosen_seeds_are_expanded_and_others_are_refused_later(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [3, 3])
    chosen = shards(tmp_path, 12, where="seed LIKE '%-1'")
    assert chosen.rows == 2 * len(combinations(VALUES))
    chosen.write(chosen.rows)
    table = pq.read_table(chosen.folder)
    assert set(table["seed"].to_pylist()) == {"0-1", "1-1"}
    assert sorted(table["source_row"].to_pylist()) == [
        f"s{file}.parquet:1:{number}"
        for file in range(2)
        for number in range(len(combinations(VALUES)))
    ]
    shards(tmp_path, 12, where="seed LIKE '%-1'")
    with pytest.raises(OutputError, match=r"input.where: was \"seed LIKE '%-1'\", is now None"):
        shards(tmp_path, 12)


def expanding(folder: Path, path: str, **section: Any) -> tuple[PromptShards, list[dict[str, Any]]]:
    """The prompts of a job, all of them written, and what its run reads."""
    sections = {
        "input": {"path": path, **section},
        "output": {"path": str(folder / "out")},
        "model": {"path": "qwq-nano"},
        "prompt": {"template": "{prompt}, {style}"},
        "synthesize": {"expand": {"style": ["brief", "full"]}},
    }
    job = parse_as(Synthesis, sections, "config")
    prompts = _prompt_shards(job, None, False)
    prompts.write(prompts.rows)
    read = find_input(job.run).shards
    return prompts, [row for shard in read for row in pq.read_table(shard.path).to_pylist()]


def test_seeds_are_read_as_the_input_of_a_run_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.csv").write_text("prompt,level\np,1\nq,2\n")
    (tmp_path / "in/b.csv").write_text("prompt,level\nr,3\n")
    (tmp_path / "list.txt").write_text("a.csv\n")
    path = str(tmp_path / "in")
    section = {
        "files": str(tmp_path / "list.txt"),
        "types": {"level": "int64"},
        "where": "level > 1",
    }
    for _ in range(2):  # the second time there are the prompts of the first
        _, rows = expanding(tmp_path, path, **section)
        assert [(row["prompt"], row["level"], row["style"]) for row in rows] == [
            ("q", 2, "brief"), ("q", 2, "full"),
        ]  # fmt: skip
    with pytest.raises(OutputError, match=r"input.types: was {'level': 'int64'}, is now None"):
        expanding(tmp_path, path, **{**section, "types": {}, "where": "level > '1'"})
    assert expanding(tmp_path, path, **section)[1] == rows


def test_only_the_split_that_is_asked_for_becomes_prompts(tmp_path: Path, hub: Hub) -> None:
    line = '{{"prompt": "{}"}}\n'
    first = hub.add("org/sums", {
        "train.jsonl": line.format("train").encode(), "test.jsonl": line.format("test").encode(),
    })  # fmt: skip
    path = "hf://datasets/org/sums"
    with pytest.raises(InputError, match=r"has the splits test, train; choose"):
        expanding(tmp_path, path)
    _, rows = expanding(tmp_path, path, split="train")
    assert [row["prompt"] for row in rows] == ["train", "train"]
    second = hub.add("org/sums", {"train.jsonl": line.format("other").encode()})
    assert expanding(tmp_path, path, split="train")[1] == rows
    with pytest.raises(OutputError, match=rf"commit {second}, and the run began with {first}"):
        expanding(tmp_path, f"{path}@{second}", split="train")


def test_traces_of_a_run_are_not_copied_as_seeds(tmp_path: Path) -> None:
    output = write_output(tmp_path, [{"answer": "1"}])
    (tmp_path / "in").symlink_to(output)
    with pytest.raises(
        InputError, match=r"is the output of a run; synthesize.expand, accepted and"
    ):
        shards(tmp_path, 12)


def test_seeds_that_cannot_be_expanded_are_refused(tmp_path: Path) -> None:
    seeds(tmp_path / "in", [3])
    with pytest.raises(InputError, match=r"expand has seed, and the input has a column"):
        shards(tmp_path, 12, {"seed": ["x"]})
    seeds(tmp_path / "in", [0])
    with pytest.raises(InputError, match=r"have no rows"):
        shards(tmp_path, 12)
