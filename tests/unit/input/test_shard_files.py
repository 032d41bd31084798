"""Which files are shards: all that people call Parquet; the others are told, with what to do."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.execution.prepare import prepare
from pipeline.input import hive
from pipeline.input.shards import find_shards
from pipeline.insight import preview
from tests.conftest import MakeConfig
from tests.outputs import finish

ONE = pa.table({"prompt": ["x"]})


def names(folder: Path) -> list[str]:
    return [shard.name for shard in find_shards(str(folder)).shards]


def test_all_common_endings_are_read_and_their_parts_have_names_of_their_own(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()
    endings = ("a.parquet", "b.PARQUET", "b.pq", "b.parq", "b.parquet.gzip", "b.snappy.parquet")
    for name in endings:
        pq.write_table(ONE, tmp_path / "in" / name)
    assert names(tmp_path / "in") == sorted(endings)
    prepared = prepare(make_config())
    assert prepared.notes == ()
    parts = [part.name for part in prepared.parts]
    assert len(set(parts)) == len(endings)
    assert all(name.endswith(".00000.parquet") for name in parts)


def test_what_is_not_read_is_told_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "real").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for path in ("in/a.parquet", "in/real/b.parquet", "far/c.parquet"):
        pq.write_table(ONE, tmp_path / path)
    for name in ("x.jsonl", "notes.txt", "_SUCCESS", ".a.parquet.crc"):
        (folder / name).write_text("x")
    os.symlink(tmp_path / "far", folder / "linked")
    os.symlink("real", folder / "latest")
    os.symlink(".", folder / "loop")
    os.symlink("self.parquet", folder / "self.parquet")
    os.symlink("/nowhere", folder / "gone.parquet")
    found = find_shards(str(folder))
    assert [shard.name for shard in found.shards] == [
        "a.parquet", "linked/c.parquet", "real/b.parquet",
    ]  # fmt: skip
    [note] = found.notes
    assert note.startswith("6 files or links are not read: ")
    assert " and 1 more; the names of Parquet files must end in " in note
    globbed = find_shards(f"{folder}/*.parquet")
    assert [shard.name for shard in globbed.shards] == ["a.parquet"]
    assert "gone.parquet (a link that leads nowhere)" in globbed.notes[0]


def test_a_file_is_no_pattern_though_its_name_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    for name in ("train[0].parquet", "train0.parquet", "a[1]/x?.parquet", "a[1]/xy.parquet"):
        pq.write_table(ONE, tmp_path / name)
    for name in ("train[0].parquet", "a[1]/x?.parquet", "train0.parquet/"):
        found = find_shards(f"{tmp_path}/{name}").shards
        assert [shard.name for shard in found] == [name.rstrip("/").split("/")[-1]]


def test_patterns_follow_links_and_tell_what_folders_they_leave_out(tmp_path: Path) -> None:
    (tmp_path / "in/table.parquet").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    for path in ("in/a.parquet", "in/table.parquet/part-0.parquet", "far/c.parquet"):
        pq.write_table(ONE, tmp_path / path)
    os.symlink(tmp_path / "far", tmp_path / "in/linked")
    os.symlink(".", tmp_path / "in/loop")
    os.symlink("/nowhere", tmp_path / "in/gone.parquet")
    os.symlink("/nowhere", tmp_path / "in/gone.txt")
    deep = find_shards(f"{tmp_path}/in/**/*.parquet")
    assert [shard.name for shard in deep.shards] == [
        "a.parquet", "linked/c.parquet", "table.parquet/part-0.parquet",
    ]  # fmt: skip
    assert deep.notes[0].startswith("2 files or links are not read: ")
    flat = find_shards(f"{tmp_path}/in/*.parquet")
    assert [shard.name for shard in flat.shards] == ["a.parquet"]
    assert "table.parquet (a folder; add /*.parquet to the path to have its files)" in flat.notes[0]
    with pytest.raises(
        InputError, match=r"no Parquet, .* files there, but table.parquet \(a folder; "
    ):
        find_shards(f"{tmp_path}/in/t*.parquet")


def test_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.parquet")).write_bytes(b"")
    except OSError:
        pytest.skip("this disk takes no such names")
    with pytest.raises(InputError, match="not UTF-8; rename it"):
        find_shards(str(tmp_path))


def test_name_too_long_for_the_output_is_refused_before_anything_runs(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()
    longest = "é" * 120 + "x" + ".parquet"  # 249 bytes; a part has 6 more
    pq.write_table(ONE, tmp_path / "in" / longest)
    prepared = prepare(make_config())
    prepared.ledger.store.put(prepared.parts[0].name, b"")
    (tmp_path / "out" / prepared.parts[0].name).unlink()
    (tmp_path / "in" / longest).rename(tmp_path / "in" / f"x{longest}")
    with pytest.raises(
        InputError, match=r"xé+x\.parquet has too long a name: .* have 1 bytes more"
    ):
        prepare(make_config())


def test_folder_names_are_columns_for_templates_conditions_and_outputs(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    for folder in (
        "day=2026-01-01/lang=en",
        "day=2026-01-01/lang=pt%20BR",
        "lang=__HIVE_DEFAULT_PARTITION__",
    ):
        (tmp_path / "in" / folder).mkdir(parents=True)
        pq.write_table(ONE, tmp_path / "in" / folder / "a.parquet")
    template = {"template": "In {lang}: {prompt}"}
    prepared = prepare(make_config(prompt=template))
    assert prepared.traces.names[:3] == [*ONE.column_names, "day", "lang"]
    first, second, third = preview.prompts(prepared, 3)
    assert "In en: " in first["prompt"]
    assert "In pt BR: " in second["prompt"]
    assert third["error"] == "invalid_prompt: lang is null"
    # pandas reads a folder by Arrow, which takes the folder's name for a category.
    out = tmp_path / "read/lang=en"
    out.mkdir(parents=True)
    pq.write_table(prepared.traces.empty_table().select(["lang"]), out / "a.parquet")
    assert pq.read_table(tmp_path / "read").column_names == ["lang"]
    some = prepare(make_config(input={"where": "lang = 'en'"}))
    assert [part.rows for part in some.parts] == [1, 0, 0]
    fewer = prepare(make_config(input={"columns": ONE.column_names}))
    assert "lang" not in fewer.traces.names


def test_folders_of_whole_numbers_are_for_conditions_and_are_not_carried(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    for year in (2024, 2025, 2026):
        (tmp_path / f"in/year={year}").mkdir(parents=True)
        pq.write_table(ONE, tmp_path / f"in/year={year}/a.parquet")
    assert "year" not in prepare(make_config()).traces.names
    with pytest.raises(InputError, match=r"names year, .*year=2026 are not carried, since"):
        prepare(make_config(prompt={"template": "In {year}: {prompt}"}))
    config = make_config(input={"where": "year % 2 = 0 AND year > 2024"})
    prepared = prepare(config)
    assert [part.rows for part in prepared.parts] == [0, 0, 1]
    assert "year" not in prepared.traces.names
    finish(config)
    (tmp_path / "in/year=2028").mkdir()
    pq.write_table(ONE, tmp_path / "in/year=2028/a.parquet")
    assert [part.rows for part in prepare(config).parts] == [0, 0, 1, 1]


@pytest.mark.parametrize("type_", [pa.int32(), pa.int64(), pa.string(), hive.TEXT])
def test_readers_would_refuse_a_carried_column_beside_a_folder_of_whole_numbers(
    tmp_path: Path, type_: pa.DataType
) -> None:
    """Why these are not carried."""
    (tmp_path / "year=2026").mkdir()
    year = pa.array(["2026"]).cast(type_)
    pq.write_table(ONE.append_column("year", year), tmp_path / "year=2026/a.parquet")
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError), match="Unable to merge: Field year"):
        pq.read_table(tmp_path)
    pq.write_table(ONE, tmp_path / "year=2026/a.parquet")
    assert pq.read_table(tmp_path)["year"].to_pylist() == [2026]


@pytest.mark.parametrize(
    ("folders", "type_"),
    [
        (["k=1", "k=-2", "k=__HIVE_DEFAULT_PARTITION__"], hive.WHOLE),
        (["k=1", "k=x"], hive.TEXT),
        (["k=1234567890123456789"], hive.TEXT),
        (["k=--1"], hive.TEXT),
        (["k=1.5"], hive.TEXT),
        (["k=__HIVE_DEFAULT_PARTITION__"], None),
    ],
)
def test_all_values_of_a_key_decide_its_type(folders: list[str], type_: pa.DataType | None) -> None:
    assert hive.folder_types([f"{each}/a.parquet" for each in folders]).get("k") == type_


def test_a_file_list_names_what_is_read(tmp_path: Path, make_config: MakeConfig) -> None:
    for name in ("a.parquet", "de/b.parquet", "c.parquet"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(ONE, tmp_path / "in" / name)
    listed = tmp_path / "list.txt"
    listed.write_text("de/b.parquet\n\na.parquet\n")
    config = make_config(input={"files": str(listed)})
    prepared = prepare(config)
    assert [shard.name for shard in prepared.shards] == ["a.parquet", "de/b.parquet"]
    assert prepared.notes == ()
    listed.write_text("a.parquet\nb.parquet\n")
    with pytest.raises(InputError, match=r"list.txt:2: b.parquet is no file below input.path "):
        prepare(config)
    listed.write_text("")
    with pytest.raises(InputError, match=r"names no file"):
        prepare(config)
    listed.unlink()
    with pytest.raises(InputError, match=r"list.txt is not there"):
        prepare(config)


def test_link_from_the_input_to_the_output_is_refused(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    pq.write_table(ONE, tmp_path / "in/a.parquet")
    pq.write_table(ONE, tmp_path / "out/a.00000.parquet")
    os.symlink(tmp_path / "out", tmp_path / "in/last")
    with pytest.raises(Exception, match=r"in/last in the input leads to output\.path"):
        prepare(make_config())
