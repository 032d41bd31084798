"""The public names of `pipeline`, and reading the rows of an output."""

import ast
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from tests.conftest import MakeConfig, write_shards
from tests.outputs import write_output

ROOT = Path(__file__).parents[2]
API = (ROOT / "pipeline/API.md").read_text()


def test_import_loads_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import pipeline; print(set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = ast.literal_eval(done.stdout)
    assert {name for name in loaded if name.startswith("pipeline.")} == set()
    assert loaded & {"pyarrow", "pydantic", "ray", "transformers", "yaml"} == set()


def test_every_public_name_can_be_imported_and_is_documented() -> None:
    for name in pipeline.__all__:
        assert getattr(pipeline, name).__doc__, name
        assert f"`{name}" in API or f".{name}" in API, name
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="has no attribute 'bogus'"):
        _ = pipeline.bogus  # type: ignore[attr-defined]


def test_five_lines_of_the_docstring_are_those_of_the_page() -> None:
    assert pipeline.__doc__ is not None
    lines = [line[4:] for line in pipeline.__doc__.splitlines() if line.startswith("    ")]
    assert "\n".join(lines).replace("\n\n", "\n") in API.replace("\n\n", "\n")


def test_plan_counts_rows_and_shows_prompts(make_config: MakeConfig, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [3, 2])
    plan = pipeline.plan(make_config())
    assert (plan.rows, plan.rows_todo) == (5, 5)
    assert plan.columns[:4] == ["id", "prompt", "think", "answer"]
    [first, _] = plan.prompts(2)
    assert "What is 0 + 1?" in first["prompt"]
    assert next(plan.lines()).startswith("input ")


def test_plan_counts_rows_that_would_fail(make_config: MakeConfig, tmp_path: Path) -> None:
    write_shards(tmp_path / "in", [3])
    assert "warning" not in "\n".join(pipeline.plan(make_config()).lines())
    asked = {"role": "user", "content": "q"}
    rows = [[asked], [asked, {"role": "assistant", "content": "old"}], None]
    (tmp_path / "in/shard-00000.parquet").unlink()
    pq.write_table(pa.table({"messages": rows}), tmp_path / "in/a.parquet")
    lines = "\n".join(pipeline.plan(make_config()).lines())
    assert "\nwarning   2 of the first 3 rows can't be rendered (1 x invalid_prompt: " in lines
    assert "ends with an assistant turn" in lines


STATES = ["finished"] * 12 + ["truncated"] * 3


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Fifteen traces in two parts, the last three truncated."""
    return write_output(tmp_path, [{"state": state, "think": "hm"} for state in STATES])


def test_traces_are_read_in_order_with_all_columns(output: str) -> None:
    traces = list(pipeline.read_traces(output))
    assert [trace["id"] for trace in traces] == list(range(15))
    assert list(traces[0])[:4] == ["id", "prompt", "think", "answer"]


def test_columns_and_states_can_be_chosen(output: str) -> None:
    traces = pipeline.read_traces(output, ["think", "id"], state="truncated")
    assert [list(trace.items()) for trace in traces] == [
        [("think", "hm"), ("id", number)] for number in (12, 13, 14)
    ]
    assert list(pipeline.read_traces(output, ["state"], "looped")) == []
    assert next(pipeline.read_traces(output, ["state", "id"], "finished")) == {
        "state": "finished", "id": 0,
    }  # fmt: skip


def test_only_a_batch_is_in_memory(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.output.reader.BATCH_ROWS", 4)
    sizes = []

    class Reader(pq.ParquetFile):  # type: ignore[misc]
        def iter_batches(self, *arguments: object, **options: object) -> object:
            for batch in super().iter_batches(*arguments, **options):
                sizes.append(batch.num_rows)
                yield batch

    monkeypatch.setattr("pipeline.output.reader.pq.ParquetFile", Reader)
    traces = pipeline.read_traces(output)
    next(traces)
    assert sizes == [4]
    assert len(list(traces)) == 14
    assert max(sizes) == 4


def test_column_of_a_later_version_is_null_in_older_parts(output: str) -> None:
    part = next(Path(output).glob("s.00001*.parquet"))
    older = pq.read_table(part).drop_columns(["yarn_factor"])
    pq.write_table(older.replace_schema_metadata(pq.read_metadata(part).metadata), part)
    assert [t["yarn_factor"] for t in pipeline.read_traces(output, ["yarn_factor"])] == [None] * 15


def test_what_can_not_be_read_is_refused_at_once(output: str, tmp_path: Path) -> None:
    with pytest.raises(pipeline.QwqBatchError, match="is not the output of a run"):
        pipeline.read_traces(str(tmp_path / "none"))
    with pytest.raises(pipeline.QwqBatchError, match="no state cut; states are finished, "):
        pipeline.read_traces(output, state="cut")
    with pytest.raises(pipeline.QwqBatchError, match="no column thnk in the output; its columns "):
        list(pipeline.read_traces(output, ["thnk"]))
    with pytest.raises(pipeline.QwqBatchError, match="no column raw in the output"):
        list(pipeline.read_traces(output, ["raw"]))
