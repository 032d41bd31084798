"""A run's output as another run's input: nothing clashes, and every row can be followed back."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import InputError, OutputError
from pipeline.execution.prepare import PreparedRun, prepare
from pipeline.input import shards as source
from pipeline.input.query import InputQuery
from pipeline.input.shards import find_shards
from pipeline.insight.status import status
from pipeline.output.layout import MANIFEST, SHARDS
from pipeline.planning import Part, Range, RowSelection, Shard
from pipeline.schema import FOOTER_KEY, OUR_COLUMNS
from tests.conftest import MakeConfig, write_shards
from tests.outputs import finish

SEEDS = 10


@pytest.fixture
def stage(tmp_path: Path, make_config: MakeConfig) -> Any:
    """Makes the config of stage 1, 2 or 3, each of which reads the one before; sections override."""
    write_shards(tmp_path / "in", [7, SEEDS - 7])

    def make(number: int, **sections: dict[str, Any]) -> RunConfig:
        before = tmp_path / ("in" if number == 1 else f"out{number - 1}")
        places = {
            "input": {"path": str(before)},
            "output": {"path": str(tmp_path / f"out{number}")},
        }
        output = {"rows_per_part": 4, **places["output"], **sections.pop("output", {})}
        return make_config(
            **{
                "input": {**places["input"], **sections.pop("input", {})},
                "output": output,
                **sections,
            }
        )

    return make


def states(row: int, sample: int) -> dict[str, Any]:
    """A row in three is wrong in its first sample, and right in its second one."""
    return {"answer": f"{row}-{sample}", "state": "finished" if (row + sample) % 3 else "truncated"}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return rows


def test_rows_of_three_stages_are_followed_from_the_last_to_the_seeds(
    tmp_path: Path, stage: Any
) -> None:
    finish(stage(1, sampling={"n": 2}), states)
    second = stage(
        2, input={"where": "state = 'finished'", "prompt_column": "answer"}, sampling={"n": 2}
    )
    finish(second, states)
    third = stage(3, input={"length_column": "think_tokens", "prompt_column": "answer"})
    finish(third)
    first, last = rows_of(tmp_path / "out1"), rows_of(tmp_path / "out3")
    expected = [row for row in first if row["state"] == "finished"]
    assert len(last) == 2 * len(expected) == 2 * 13
    for row in last:
        file, number, sample1, sample2 = row["source_row"].split(":")
        seed = rows_of(tmp_path / "in" / file)[int(number)]
        assert (row["id"], row["prompt"]) == (seed["id"], seed["prompt"])
        [trace] = [r for r in first if r["id"] == seed["id"] and str(r["sample"]) == sample1]
        assert (row["stage1_answer"], row["stage1_sample"]) == (trace["answer"], trace["sample"])
        assert row["stage2_sample"] == int(sample2)
    assert len({row["source_row"] for row in last}) == len(last)
    names = list(last[0])
    assert len(set(names)) == len(names)
    assert not [n for n in names if n.count("stage") > 1]
    [part, *_] = sorted((tmp_path / "out3").glob("*.parquet"))
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    assert [run["output"] for run in footer["lineage"]] == [
        str(tmp_path / f"out{i}") for i in (1, 2)
    ]
    assert footer["settings"]["input.prompt_column"] == "stage2_answer"


def test_all_that_counts_rows_counts_those_that_are_taken(tmp_path: Path, stage: Any) -> None:
    finish(stage(1, sampling={"n": 2}), states)
    config = stage(2, input={"where": "state = 'finished'"}, sampling={"n": 3})
    prepared = prepare(config)
    assert prepared.plan.rows == prepared.plan.rows_todo == 13
    assert prepared.notes[0] == "13 of 20 rows are taken, by input.where and input.unit"
    summary = finish(config)
    assert (summary.traces, summary.expected, summary.is_complete) == (39, 39, True)
    assert status(config.output.path).rows == 13
    assert prepare(config).plan.rows_todo == 0


def test_recorded_selections_are_not_made_again(
    tmp_path: Path, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(stage(1), states)
    config = stage(2, input={"where": "state = 'finished'"})
    first = prepare(config)
    first.open_output()
    monkeypatch.setattr(source, "RowSelector", lambda *_: pytest.fail("selects again"))
    again = prepare(config)
    assert again.shards == first.shards
    assert again.prompts == first.prompts
    moved = shutil.copytree(tmp_path / "out1", tmp_path / "moved")
    assert _rows(
        prepare(stage(2, input={"path": str(moved), "where": "state = 'finished'"}))
    ) == _rows(first)


def _rows(prepared: PreparedRun) -> list[tuple[str, int]]:
    return [(part.name, part.rows) for part in prepared.parts]


def test_each_row_is_its_first_trace_for_which_the_condition_holds(
    tmp_path: Path, stage: Any
) -> None:
    finish(stage(1, sampling={"n": 2}), states)
    finish(stage(2, input={"unit": "rows", "where": "state = 'finished'"}))
    answers = [(row["id"], row["stage1_answer"]) for row in rows_of(tmp_path / "out2")]
    traces = rows_of(tmp_path / "out1")
    right = [(row["id"], row["answer"]) for row in traces if row["state"] == "finished"]
    assert answers == list({row: (row, answer) for row, answer in reversed(right)}.values())[::-1]
    assert len(answers) == SEEDS
    everything = find_shards(str(tmp_path / "out1"), query=InputQuery(unit="rows"))
    assert sum(shard.rows for shard in everything.shards) == SEEDS
    with pytest.raises(InputError, match=r"input.unit is rows, but input.path is not the output"):
        find_shards(str(tmp_path / "in"), query=InputQuery(unit="rows"))


def test_only_chosen_columns_are_carried(tmp_path: Path, stage: Any) -> None:
    finish(stage(1), states)
    chosen = {"columns": ["id", "answer"], "where": "state = 'finished'"}
    template = {"template": "Is {answer:answer} right? {{}}"}
    prepared = prepare(stage(2, input=chosen, prompt=template))
    assert prepared.prompts.names == ["id", "stage1_answer", "source_row"]
    assert prepared.columns.template == "Is {stage1_answer:answer} right? {{}}"
    with pytest.raises(InputError, match=r"columns: id, stage1_answer, .*; input.columns leaves"):
        prepare(stage(2, input=chosen))
    with pytest.raises(
        InputError, match=r"input.columns: unknown column anwser; did you mean answer"
    ):
        prepare(stage(2, input={"columns": ["anwser"]}))


def test_finished_parts_that_come_later_are_taken_too(tmp_path: Path, stage: Any) -> None:
    finish(stage(1), states)
    held_back = [
        path.rename(tmp_path / path.name) for path in (tmp_path / "out1").glob("shard-00001*")
    ]
    config = stage(2, input={"where": "state = 'finished'"})
    assert finish(config).traces == 4
    for path in held_back:
        path.rename(tmp_path / "out1" / path.name)
    summary = finish(config)
    assert (summary.traces, summary.is_complete) == (6, True)
    with pytest.raises(OutputError, match=r"input.where: there \"state = 'finished'\", now None"):
        prepare(stage(2))


def test_a_condition_keeps_its_types_as_the_input_grows(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()

    def write(name: str, **columns: Any) -> None:
        pq.write_table(pa.table({"prompt": ["x"] * 4, **columns}), tmp_path / "in" / name)

    write("a.parquet", level=[1, 5, 9, 10])
    config = make_config(input={"columns": ["prompt"], "where": "level > '4'"})
    assert finish(config).rows == 3
    write("b.parquet", level=["1", "5", "9", "10"])
    with pytest.raises(InputError, match=r"column level is string in b.parquet, and int64 in the"):
        prepare(config)
    for columns in ({}, {"level": pa.nulls(4)}, {"level": pa.array([1, 2, 3, 30], pa.int8())}):
        write("b.parquet", **columns)
        [_, later] = prepare(config).shards
        assert later.rows == ("level" in columns and columns["level"].type == pa.int8())
    finish(config)
    assert [shard.rows for shard in prepare(config).shards] == [3, 1]
    write("c.parquet", level=[1.5] * 4)
    with pytest.raises(InputError, match=r"column level is double in c.parquet"):
        prepare(config)


SOURCES = {
    "list": pa.array([[1], [2]]),
    "struct": pa.array([{"a": 1}] * 2),
    "bytes": pa.array([b"\xff", None]),
    "number": pa.array([5, 6]),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_users_source_row_of_any_type_is_carried_as_it_is(
    tmp_path: Path, stage: Any, kind: str
) -> None:
    rows = pa.table({"id": [0, 1], "prompt": ["x"] * 2, "source_row": SOURCES[kind]})
    for name in ("shard-00000.parquet", "shard-00001.parquet"):
        pq.write_table(rows, tmp_path / "in" / name)
    pq.write_table(rows.drop_columns("source_row"), tmp_path / "in" / "shard-00001.parquet")
    finish(stage(1, input={"where": "id >= 0"}))
    [*here, first, second] = [row["source_row"] for row in rows_of(tmp_path / "out1")]
    assert here == SOURCES[kind].to_pylist()
    assert (first, second) == (None, None)
    if kind == "number":
        finish(stage(2))
        assert [row["source_row"] for row in rows_of(tmp_path / "out2")][:2] == ["5:0", "6:0"]
    else:
        with pytest.raises(
            InputError, match=r"shard-0000\S+: the column source_row is .* must be text"
        ):
            prepare(stage(2))


def test_a_users_column_with_the_name_of_a_carried_one_is_named(tmp_path: Path, stage: Any) -> None:
    for path in (tmp_path / "in").glob("*.parquet"):
        rows = pq.read_table(path)
        pq.write_table(rows.append_column("stage1_answer", rows["prompt"]), path)
    finish(stage(1))
    with pytest.raises(InputError, match=r"has a column stage1_answer, .* which answer of the run"):
        prepare(stage(2))
    columns = ["id", "prompt", "answer"]
    assert "stage1_answer" in prepare(stage(2, input={"columns": columns})).prompts.names


def test_a_part_that_was_replaced_is_refused_and_its_rows_can_be_done_again(
    tmp_path: Path, stage: Any
) -> None:
    finish(stage(1), states)
    config = stage(2, input={"where": "state = 'finished'"})
    finish(config)
    [replaced] = (tmp_path / "out1").glob("shard-00001.00000*")
    _rewritten(replaced)
    with pytest.raises(
        OutputError, match=r"a retry or a top-up has replaced traces.* do only the rows"
    ):
        prepare(config)
    for path in (tmp_path / "out2").glob("shard-00001.00000.*"):
        path.unlink()
    record = tmp_path / "out2" / SHARDS
    record.write_text(re.sub(r"shard-00001\.00000\.parquet: \{[^}]*\}\n", "", record.read_text()))
    assert prepare(config).plan.rows_todo == 3
    assert finish(config).is_complete
    assert len(rows_of(tmp_path / "out2")) == 4 + 3


def _rewritten(path: Path) -> None:
    """As a retry leaves it: all its traces are finished now."""
    table = pq.read_table(path)
    index = table.column_names.index("state")
    states = pa.array(["finished"] * table.num_rows)
    footer = pq.read_metadata(path).metadata[FOOTER_KEY]
    table = table.set_column(index, table.schema.field(index), states)
    pq.write_table(table.replace_schema_metadata({FOOTER_KEY: footer}), path)


def test_files_of_different_runs_and_files_of_none_do_not_mix(tmp_path: Path, stage: Any) -> None:
    finish(stage(1), states)
    mixed = tmp_path / "mixed"
    shutil.copytree(tmp_path / "out1", mixed)
    shutil.copy(tmp_path / "in" / "shard-00000.parquet", mixed / "z.parquet")
    with pytest.raises(
        InputError, match=r"z.parquet is not the output of a run; an input must come"
    ):
        find_shards(str(mixed))
    (mixed / "z.parquet").unlink()
    finish(stage(2, input={"path": str(mixed)}))
    shutil.copy(tmp_path / "out2" / "shard-00000.00000.00000.parquet", mixed / "z.parquet")
    with pytest.raises(InputError, match=r"is output of run 1 of a chain, .*is output of run 2"):
        find_shards(str(mixed))
    with pytest.raises(
        InputError, match=r"z.parquet is output of run 2 .* come from run 1 of a chain"
    ):
        prepare(stage(2, input={"path": str(mixed)}))
    (mixed / "z.parquet").unlink()
    other = stage(1, output={"path": str(tmp_path / "other")}, sampling={"seed": 5})
    finish(other)
    shutil.copy(tmp_path / "other" / "shard-00000.00000.parquet", mixed / "z.parquet")
    with pytest.raises(InputError, match=r"new files, which another run has written"):
        prepare(stage(2, input={"path": str(mixed)}))


def test_an_output_without_its_bookkeeping_is_the_same_and_one_without_footers_is_refused(
    tmp_path: Path, stage: Any
) -> None:
    finish(stage(1), states)
    expected = find_shards(str(tmp_path / "out1"))
    shutil.rmtree(tmp_path / "out1" / MANIFEST.partition("/")[0])
    assert find_shards(str(tmp_path / "out1")).schema == expected.schema
    bare = tmp_path / "bare"
    bare.mkdir()
    pq.write_table(
        pq.read_table(tmp_path / "out1").replace_schema_metadata(None), bare / "a.parquet"
    )
    with pytest.raises(
        InputError, match=r"already has a column think.* take its output files as they"
    ):
        prepare(stage(2, input={"path": str(bare)}))


def test_an_output_without_a_finished_part_says_so(tmp_path: Path, stage: Any) -> None:
    prepare(stage(1)).open_output()
    with pytest.raises(InputError, match=r"a run that has not finished a part yet"):
        prepare(stage(2))
    assert source.MANIFEST == MANIFEST


def test_renamed_columns_keep_the_names_of_the_user(tmp_path: Path, stage: Any) -> None:
    rename = {"answer": "translation", "state": "ending"}
    finish(stage(1, output={"rename": rename}))
    prepared = prepare(stage(2, input={"unit": "rows", "where": "ending = 'finished'"}))
    assert {"translation", "ending", "stage1_think"} <= set(prepared.prompts.names)
    assert not set(prepared.prompts.names).intersection(OUR_COLUMNS)
    with pytest.raises(InputError, match=r"already has a column translation"):
        prepare(stage(2, output={"rename": rename}))


def test_a_selection_survives_its_record() -> None:
    import numpy as np

    for chosen in (np.zeros(0, bool), np.zeros(9, bool), np.arange(1000) % 7 == 3):
        selection = RowSelection.of(chosen)
        shard = Shard("a.parquet", "a", len(chosen), 5, "t", "d").selecting(selection)
        read = Shard("a.parquet", "a", len(chosen), 5, "t", "d").selecting_as(shard.identity)
        assert read == shard
        assert shard.is_unchanged(read.identity)
        assert selection.numbers.tolist() == np.flatnonzero(chosen).tolist()


def test_chosen_rows_of_a_large_file_are_read_wherever_they_begin(tmp_path: Path) -> None:
    table = pa.table({"prompt": [str(i) for i in range(5000)], "n": range(5000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    found = find_shards(str(tmp_path), query=InputQuery(where="n % 9 = 0 OR n > 4990"))
    [shard] = found.shards
    expected = [n for n in range(5000) if n % 9 == 0 or n > 4990]
    for start, stop in ((0, shard.rows), (100, 101), (77, 400), (shard.rows, shard.rows)):
        piece = Range(Part("p", shard, 0, shard.rows), start, stop)
        tables = list(source_rows(str(tmp_path), piece, found.schema))
        read = [row for table in tables for row in table.to_pylist()]
        assert [row["n"] for row in read] == expected[start:stop]
        assert all(row["source_row"] == f"a.parquet:{row['n']}" for row in read)


def source_rows(url: str, piece: Range, schema: pa.Schema) -> Any:
    from pipeline.input.rows import read_rows

    return read_rows(url, piece, schema)


def test_a_column_that_decides_must_be_readable(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["x"] * 3000, "n": range(3000)})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    data, chunk = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(0).column(1)
    data[chunk.data_page_offset + 200] ^= 255
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.parquet is damaged, column n: .* can't be told"):
        find_shards(str(tmp_path), query=InputQuery(where="n > 1"))
    assert find_shards(str(tmp_path), query=InputQuery(where="prompt = 'x'")).shards[0].rows == 3000
