"""Files that are not Parquet: what becomes of their rows, and in which words they are refused."""

import bz2
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.load import parse_config
from pipeline.errors import InputError, OutputError
from pipeline.execution.run_input import find_input
from pipeline.input import converted
from pipeline.output.ledger import Ledger
from pipeline.storage import Storage

ROWS = [{"id": i, "prompt": f"Wie groß\nist {i}?", "share": i / 4} for i in range(5)]


def text(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def config(folder: Path, path: str = "in", **section: Any) -> Any:
    return parse_config(
        {
            "input": {"path": str(folder / path), **section},
            "output": {"path": str(folder / "out")},
            "model": {"path": "qwq-nano"},
        }
    )


def read(folder: Path, path: str = "in", **section: Any) -> pa.Table:
    """All rows of the shards of the input."""
    found = find_input(config(folder, path, **section))
    assert found.url == str(folder / "out/__qwq/input")
    return pa.concat_tables([pq.read_table(shard.path) for shard in found.shards])


def begin(folder: Path, **section: Any) -> None:
    """What a run records when it begins."""
    run = config(folder, **section)
    found, ledger = find_input(run), Ledger(Storage(run.output.path))
    ledger.open_run({"x": 1}, {})
    ledger.record_shards(found.shards, found.schema, found.url)


def test_objects_of_settings_and_tools_stay_as_each_line_has_them(tmp_path: Path) -> None:
    first = {
        "prompt": "a",
        "own": {"json_schema": {"x": 1, "y": None}},
        "tools": [{"b": 1, "a": 2}],
    }
    second = {"prompt": "b", "own": {"json_schema": {"y": 2, "x": 1}}, "tools": [{"a": 2, "b": 1}]}
    put(tmp_path, "in/a.jsonl", text([first, second, {"prompt": "c"}]))
    found = read(tmp_path, sampling_column="own").to_pylist()
    for row, written in zip(found, (first, second), strict=False):
        for name in ("own", "tools"):
            assert json.dumps(json.loads(row[name])) == json.dumps(written[name])
    assert found[2] == {"prompt": "c", "own": None, "tools": None}
    put(tmp_path, "plain/a.jsonl", text([{"prompt": "c"}]))
    assert read(tmp_path, "plain").column_names == ["prompt"]


def test_objects_that_are_maps_are_refused_with_what_to_do(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", text([{"prompt": "a", "m": {f"k{i}": i}} for i in range(501)]))
    with pytest.raises(InputError, match=r"a\.jsonl:501: m has more than 500 keys.*\{m: string\}"):
        read(tmp_path)
    assert read(tmp_path, types={"m": "string"})["m"][1].as_py() == '{"k1": 1}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "prompt\ta, b, c\nhello\tx, y, z\n"),
        ("a.tsv.gz", "prompt\ta, b, c\nhello\tx, y, z\n"),
        ("a.csv", 'prompt;"a, b, c"\nhello;"x, y, z"\n'),
        ("b.csv", "sep=;\nprompt;a, b, c\nhello;x, y, z\n"),
    ],
)
def test_fields_are_divided_by_what_divides_them(tmp_path: Path, name: str, content: str) -> None:
    data = content.encode()
    put(tmp_path, f"in/{name}", gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path).to_pylist() == [{"prompt": "hello", "a, b, c": "x, y, z"}]


def test_a_json_list_is_read_item_by_item(tmp_path: Path) -> None:
    put(tmp_path, "in/a.json", json.dumps(ROWS, indent=1))
    assert read(tmp_path).to_pylist() == ROWS


@pytest.mark.parametrize(
    "ending", ["jsonl", "ndjson", "JSONL.gz", "jsonl.zst", "jsonl.bz2", "json"]
)
def test_json_lines_keep_every_value_and_type(tmp_path: Path, ending: str) -> None:
    content = ("\ufeff" + text(ROWS).replace("\n", "\n\n")).encode()
    if ending.endswith("gz"):
        content = gzip.compress(content[:100]) + gzip.compress(content[100:])
    elif ending.endswith("zst"):
        content = pa.compress(content, "zstd", asbytes=True)
    elif ending.endswith("bz2"):
        content = bz2.compress(content)
    put(tmp_path, f"in/de/a.b.{ending}", content)
    table = read(tmp_path)
    assert table.to_pylist() == ROWS
    assert table.schema.types == [pa.int64(), pa.string(), pa.float64()]
    assert [path.name for path in tmp_path.glob("out/__qwq/input/de/*")] == ["a.b.parquet"]


def test_nested_values_keep_the_order_of_their_keys(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "meta": {"z": 1, "a": None}, "n": 1},
        {"messages": [], "meta": {"a": [1.5], "y": True}, "n": 2.5, "late": "x"},
    ]
    put(tmp_path, "in/a.jsonl", text(rows))
    table = read(tmp_path)
    assert table.column_names == ["messages", "meta", "n", "late"]
    assert [field.name for field in table.schema.field("meta").type] == ["z", "a", "y"]
    assert [field.name for field in table.schema.field("messages").type.value_type] == [
        "role", "content",
    ]  # fmt: skip
    assert table["n"].to_pylist() == [1.0, 2.5]
    assert table["late"].to_pylist() == [None, "x"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:6: is not JSON: Expecting property name"),
        ("[1]", "a.jsonl:6: must be an object such as"),
        ('{"id": "x"}', "a.jsonl:6: id is text, and a whole number before; correct the value, or"),
        ('{"id": 9223372036854775808}', "a.jsonl:6: id 9223372036854775808 is too large for int64"),
        ('{"prompt": {"a": 1}}', r"a.jsonl:6: prompt is an object, and text before; .*\{prompt: string\}"),
        ('{"id": true}', "a.jsonl:6: id is true or false, and a whole number before"),
        ('{"prompt": "\\ud800"}', "a.jsonl:6: prompt has half of a surrogate pair"),
        ('{"id": 1, "id": 2}', "a.jsonl:6: is not JSON: the key id is there twice"),
        ('{"id": NaN}', "a.jsonl:6: is not JSON: NaN is not a JSON number"),
        ('{"x": {}}', "x is an object without a key, wherever it is one; .* input.types"),
        ('{"x": [1, {"y": [2, "z"]}]}', r"a.jsonl:6: x\[\] is an object, and a whole number before"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_told_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    put(tmp_path, "in/a.jsonl", text(ROWS) + line)
    with pytest.raises(InputError, match=message):
        read(tmp_path)
    assert not list(tmp_path.glob("out/__qwq/input/*.parquet"))


def test_bytes_that_are_no_text_or_end_early_are_told(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", '{"prompt": "a"}\n{"prompt": "ß"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"^a.jsonl:2: is not UTF-8"):
        read(tmp_path)
    put(tmp_path, "in/a.jsonl", "")
    with pytest.raises(InputError, match=r"have no rows"):
        read(tmp_path)
    (tmp_path / "in/a.jsonl").unlink()
    put(tmp_path, "in/a.jsonl.gz", gzip.compress(text(ROWS * 99).encode())[:-20])
    with pytest.raises(InputError, match=r"in/a.jsonl.gz can't be read: "):
        read(tmp_path)


def test_a_column_of_anything_can_be_had_as_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"answer": 5},
        {"answer": "5"},
        {"answer": [1, {"ü": {}}]},
        {"answer": None},
        {},
    ]
    put(tmp_path, "in/a.jsonl", text(rows))
    table = read(tmp_path, types={"answer": "string"})
    assert table["answer"].to_pylist() == ["5", "5", '[1, {"ü": {}}]', None, None]
    put(tmp_path, "in/a.jsonl", '{"n": 1}\n{"n": 1.5}')
    with pytest.raises(
        InputError, match=r"a.jsonl:2: n is a fraction, and input.types says a whole"
    ):
        read(tmp_path, types={"n": "int64"})
    with pytest.raises(
        InputError, match=r"input.types names m, but the files have only the keys n"
    ):
        read(tmp_path, types={"m": "int64"})


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_is_text_unless_a_type_is_given(tmp_path: Path, separator: str) -> None:
    lines = [
        ["id", "prompt", "right", "share"],
        ["007", '"Wie ""groß""\r\nist, was; 1\t?"', "true", "1e-1"],
        ["", "", "", ""],
        [" 8 ", "b", "False", "2"],
    ]
    content = "\ufeff" + "\r\n\r\n".join(separator.join(line) for line in lines)
    put(tmp_path, "in/a.csv", content)
    assert read(tmp_path).to_pylist() == [
        {"id": "007", "prompt": 'Wie "groß"\r\nist, was; 1\t?', "right": "true", "share": "1e-1"},
        {"id": "", "prompt": "", "right": "", "share": ""},
        {"id": " 8 ", "prompt": "b", "right": "False", "share": "2"},
    ]
    types = {"id": "int64", "right": "bool", "share": "float64"}
    assert read(tmp_path, types=types).select(["id", "right", "share"]).to_pylist() == [
        {"id": 7, "right": True, "share": 0.1},
        {"id": None, "right": None, "share": None},
        {"id": 8, "right": False, "share": 2.0},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,x\n\n2,y,z\n", "a.csv:4: has 3 fields, and the header has 2; put fields with a comma"),
        ('a,b\n1,"x\ny"\n2,"x"y\n', "a.csv:4: is not CSV: "),
        ('a,b\n1,"x\n2,y\n', "a.csv:2: is not CSV: "),
        ("a,b\n1,x\nx,y\n", r"a.csv:3: a is 'x', and input.types says a whole number"),
        ("a,b\n1,x\n1.5,y\n", r"a.csv:3: a is '1.5', and input.types says a whole number"),
        ("a,a\n", "a.csv:1: two columns are called a; rename one"),
        ("a,,b\n", "a.csv:1: column 2 has no name in the header"),
        ("", "a.csv has no header line"),
        ("b\n", "input.types: "),
        ("a\n1\n\xff".encode("latin-1"), "a.csv:3: is not UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_csv_line_is_told_by_file_and_number(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    put(tmp_path, "in/a.csv", content)
    with pytest.raises(InputError, match=message):
        read(tmp_path, types={"a": "int64"})
    assert not list(tmp_path.glob("out/__qwq/input/*.parquet"))


@pytest.mark.parametrize("write", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams_keep_their_types(tmp_path: Path, write: Any) -> None:
    table = pa.table({
        "prompt": pa.array(["a", "b", "c"], pa.string_view()),
        "n": pa.array([1, 2, None], pa.int16()),
        "kind": pa.array(["x", "x", "y"]).dictionary_encode(),
    })  # fmt: skip
    (tmp_path / "in").mkdir()
    with write(str(tmp_path / "in/a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    found = find_input(config(tmp_path))
    assert found.schema.types[:2] == [pa.string(), pa.int16()]
    assert read(tmp_path).to_pylist() == table.to_pylist()
    with pytest.raises(InputError, match=r"input.types is for JSON and CSV; Arrow files tell"):
        read(tmp_path, types={"n": "int64"})
    path = tmp_path / "in/a.arrow"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"in/a.arrow can't be read as an Arrow file: "):
        read(tmp_path)


def test_one_folder_is_read_in_one_format(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", text(ROWS))
    put(tmp_path, "in/notes.txt", "x")
    put(tmp_path, "in/dataset_info.json", "{}")
    [left_out, read_as] = find_input(config(tmp_path)).notes
    assert left_out.startswith("2 files or links are not read: dataset_info.json, notes.txt; JSON")
    assert read_as.startswith("JSON is read as Parquet with id int64, prompt string, share double;")
    put(tmp_path, "in/b.csv", "prompt\nx\n")
    with pytest.raises(
        InputError, match=r"several formats: a.jsonl \(JSON\), b.csv \(CSV\); choose"
    ):
        read(tmp_path)
    assert read(tmp_path, "in/*.csv").to_pylist() == [{"prompt": "x"}]
    assert read(tmp_path, "in/b.csv").to_pylist() == [{"prompt": "x"}]
    pq.write_table(pa.table({"prompt": ["p"]}), tmp_path / "in/c.parquet")
    found = find_input(config(tmp_path))
    assert [shard.name for shard in found.shards] == ["c.parquet"]
    assert found.url == str(tmp_path / "in")
    assert "a.jsonl, b.csv, dataset_info.json, notes.txt" in found.notes[0]
    put(tmp_path, "twice/a.jsonl", text(ROWS))
    put(tmp_path, "twice/a.jsonl.gz", gzip.compress(text(ROWS).encode()))
    with pytest.raises(
        InputError, match=r"a.jsonl and a.jsonl.gz would both become the shard a.par"
    ):
        read(tmp_path, "twice")


def test_before_a_run_begins_files_may_change_and_shards_follow(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", '{"prompt": "a", "n": 1}')
    put(tmp_path, "in/b.jsonl", '{"prompt": "b"}')
    assert read(tmp_path)["n"].type == pa.int64()
    shard = tmp_path / "out/__qwq/input/b.parquet"
    before = shard.stat().st_mtime_ns
    read(tmp_path)
    assert shard.stat().st_mtime_ns == before
    put(tmp_path, "in/a.jsonl", '{"prompt": "a", "n": 1.5}')
    assert read(tmp_path)["n"].type == pa.float64()
    (tmp_path / "in/a.jsonl").unlink()
    assert read(tmp_path).to_pylist() == [{"prompt": "b"}]
    put(tmp_path, "in/a.jsonl", "{")
    with pytest.raises(InputError, match=r"^a.jsonl:1: "):
        read(tmp_path)
    shard.unlink()  # as after a crash
    put(tmp_path, "in/a.jsonl", '{"prompt": "a"}')
    assert read(tmp_path).num_rows == 2


def test_a_touched_file_is_compared_by_content_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "in/a.jsonl", text(ROWS))
    begin(tmp_path)
    os.utime(path, (1, 1))
    hashed, digest = list[str](), converted._digest

    def counted(store: Storage, name: str) -> str:
        hashed.append(name)
        return digest(store, name)

    monkeypatch.setattr(converted, "_digest", counted)
    for _ in range(3):
        read(tmp_path)
    assert hashed == ["a.jsonl"]


def test_once_a_run_has_begun_types_stay_and_files_may_only_be_added(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", '{"prompt": "a", "n": 1, "meta": {"k": 1.5}}')
    begin(tmp_path)
    put(tmp_path, "in/b.jsonl", '{"prompt": "b"}\n{"n": 2.5}')
    with pytest.raises(InputError, match=r"^b.jsonl:2: n is a fraction, and a whole number before"):
        read(tmp_path)
    put(tmp_path, "in/b.jsonl", '{"meta": {"more": 1}}')
    with pytest.raises(InputError, match=r"^b.jsonl:1: meta has a key more, which no object had"):
        read(tmp_path)
    put(tmp_path, "in/b.jsonl", '{"more": 1}')
    with pytest.raises(
        InputError, match=r"^b.jsonl:1: has a key more, which the files that the run"
    ):
        read(tmp_path)
    put(tmp_path, "in/b.jsonl", '{"prompt": "b", "meta": {"k": 2}}')
    assert read(tmp_path)["meta"].to_pylist() == [{"k": 1.5}, {"k": 2.0}]
    (tmp_path / "in").rename(tmp_path / "moved")
    (tmp_path / "moved/a.jsonl").touch()
    assert read(tmp_path, "moved").num_rows == 2
    (tmp_path / "moved/a.jsonl").rename(tmp_path / "moved/c.jsonl")
    assert read(tmp_path, "moved").num_rows == 3  # the shard of a file that is taken away stays
    (tmp_path / "other").mkdir()
    put(tmp_path, "other/d.jsonl", '{"prompt": "d"}')
    with pytest.raises(OutputError, match=r"the run began with input.path .*, and .* lacks files"):
        read(tmp_path, "other")
    put(tmp_path, "moved/a.jsonl", '{"prompt": "A", "n": 1, "meta": {"k": 1.5}}')
    with pytest.raises(
        OutputError, match=r"^a.jsonl has changed since the run at .* began; put it"
    ):
        read(tmp_path, "moved")


def test_a_run_that_began_with_other_files_or_types_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "in/a.csv", "prompt,n\na,1\n")
    begin(tmp_path)
    with pytest.raises(OutputError, match=r"read as format CSV, and now it would be .*types"):
        read(tmp_path, types={"n": "int64"})
    put(tmp_path, "in/b.csv", "n,prompt,m\n1,a,2\n")
    with pytest.raises(InputError, match=r"^b.csv:1: has a column m, which the files that the run"):
        read(tmp_path)


def test_a_run_that_began_with_parquet_takes_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "in/a.parquet")
    begin(tmp_path)
    put(tmp_path, "other/a.jsonl", text(ROWS))
    with pytest.raises(OutputError, match=r"began with Parquet files, and .*other has JSON files"):
        read(tmp_path, "other")


def test_nothing_is_written_into_a_folder_of_others(tmp_path: Path) -> None:
    put(tmp_path, "in/a.jsonl", text(ROWS))
    put(tmp_path, "out/thesis.txt", "x")
    with pytest.raises(OutputError, match=r"is not empty and not the output of a run"):
        read(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
