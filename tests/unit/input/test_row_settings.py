"""The check of all rows' settings before a run: what is counted, what is refused and where."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, InputError
from pipeline.execution.prepare import PreparedRun, prepare
from tests.conftest import MakeConfig

OWN = {"sampling_column": "own"}
FORM = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def prepared(make_config: MakeConfig, *shards: list[Any], **sections: Any) -> PreparedRun:
    config = make_config(**{"input": OWN, **sections})
    folder = Path(config.input.path)
    folder.mkdir(exist_ok=True)
    for number, cells in enumerate(shards):
        rows = [{"prompt": f"What is {i} + 1?", "own": cell} for i, cell in enumerate(cells)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet")
    return prepare(config)


def test_settings_of_all_rows_are_counted(make_config: MakeConfig) -> None:
    cells = [
        {"temperature": 0.0, "max_tokens": 70_000},
        {"temperature": 0.7, "max_tokens": None},
        None,
    ]
    run = prepared(make_config, cells, [{"temperature": None, "max_tokens": 8}])
    assert run.by_row is not None
    assert (run.by_row.rows, run.by_row.own, run.by_row.greedy) == (4, 3, 1)
    assert run.by_row.fields == {"temperature": 2, "max_tokens": 2}
    assert run.sized(run.config).sampling.max_tokens == 70_000
    assert run.config.sampling.max_tokens == 32_768
    assert run.notes == (
        "3 of 4 rows have settings of their own, which go before the run's (input.sampling_column "
        "own: temperature, max_tokens)",
        "1 rows ask for greedy decoding (temperature 0 or top_k 1), with which reasoning models "
        "loop",
    )
    assert run.settings["input.sampling_column"] == "own"
    assert run.traces.names[-1] == "sampled_with"


def test_where_no_row_can_have_settings_nothing_changes(make_config: MakeConfig) -> None:
    run = prepared(make_config, [None], input={})
    assert run.by_row is None
    assert "input.sampling_column" not in run.settings
    assert "sampled_with" not in run.traces.names
    assert run.sized(run.config) is run.config


def test_smaller_limits_of_all_rows_are_the_largest_one(make_config: MakeConfig) -> None:
    run = prepared(make_config, ['{"max_tokens": 300}', '{"max_tokens": 200}'])
    assert run.sized(run.config).sampling.max_tokens == 300


def test_wrong_rows_are_named_by_file_row_column_and_field(make_config: MakeConfig) -> None:
    many = ['{"top_p": 9}'] * 30
    with pytest.raises(InputError) as caught:
        prepared(make_config, ["{}", '{"n": 2}', "{"], many)
    first, *named, more = str(caught.value).splitlines()
    assert first.startswith("32 rows have settings that can't be used, so nothing was started")
    assert named[0] == (
        "  0.parquet, row 1, column own: n: all rows of a run have the same number of samples; set "
        "sampling.n"
    )
    assert named[1].startswith("  0.parquet, row 2, column own: is not JSON: ")
    assert named[2].startswith("  1.parquet, row 0, column own: top_p: Input should be less than")
    assert (len(named), more) == (20, "  and 12 more")


def test_only_rows_that_the_run_takes_are_checked(make_config: MakeConfig) -> None:
    where = {"input": {**OWN, "where": "prompt <> 'What is 1 + 1?'"}}
    run = prepared(make_config, ["{}", '{"n": 2}', '{"seed": 3}'], **where)
    assert run.by_row is not None
    assert run.by_row.rows == 2
    (Path(run.config.input.path) / "0.parquet").unlink()
    with pytest.raises(InputError, match=r"0.parquet, row 1, column own: n: "):
        prepared(make_config, ["{}", '{"n": 2}', '{"n": 3}'], **where)


def test_text_that_is_no_text_is_refused(make_config: MakeConfig) -> None:
    config = make_config(input=OWN)
    Path(config.input.path).mkdir()
    own = pa.array([b"{}", b"\xff"], pa.binary()).view(pa.string())
    table = pa.table({"prompt": ["a", "b"], "own": own})
    pq.write_table(table, Path(config.input.path) / "0.parquet")
    with pytest.raises(InputError, match="row 1, column own: is not UTF-8"):
        prepare(config)


def test_columns_that_can_hold_no_settings_are_refused(make_config: MakeConfig) -> None:
    with pytest.raises(InputError, match="sampling_column own is of type int64; it must hold obje"):
        prepared(make_config, [7])
    with pytest.raises(
        InputError, match="sampling_column is x, but the input has only the columns"
    ):
        prepared(make_config, [None], input={"sampling_column": "x"})


@pytest.mark.parametrize(
    "sections",
    [
        {"answer": {"format": "boxed"}},
        {
            "answer": {"format": "json", "json_schema": FORM},
            "thinking": {"early_answer": {}},
        },
    ],
)
def test_schemas_by_row_are_refused_where_they_would_be_misread(
    make_config: MakeConfig, sections: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"1 rows have a json_schema of their own \(column own\)"):
        prepared(make_config, [{"json_schema": '{"type": "object"}'}], **sections)
    assert prepared(make_config, [{"json_schema": None, "top_p": 0.5}], **sections).by_row
