"""Long rows on engines of their own, on a model whose context is set short."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config.run_config import RunConfig
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from pipeline.monitor.history import all_figures
from pipeline.storage import Storage
from tests.conftest import PROMPTS, MakeConfig
from tests.outputs import finish

# Characters are tokens; the template adds some twenty.
SHORT, DOUBLE, LONG, TOO_LONG = 10, 500, 1000, 5000
LENGTHS = [SHORT, LONG, SHORT, SHORT, TOO_LONG, DOUBLE, LONG, SHORT, 0, SHORT] * 7
FACTORS = {SHORT: None, DOUBLE: 2.0, LONG: 4.0, TOO_LONG: None, 0: None}


@pytest.fixture
def make(tmp_path: Path, make_config: MakeConfig) -> Callable[..., RunConfig]:
    """A run with contexts of 400, 800 and 1,600 tokens; rows of all lengths in one shard."""
    shutil.copytree(Path(pipeline.__file__).parent / "models/qwq-nano", tmp_path / "model")
    file = tmp_path / "model/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 400}))
    (tmp_path / "in").mkdir()
    rows = [{"id": i, "prompt": "x" * length} for i, length in enumerate(LENGTHS)]
    pq.write_table(pa.Table.from_pylist(rows, PROMPTS), tmp_path / "in/a.parquet")
    simulated = {
        "tokens_median": 60, "seconds_per_token": 0.0002, "log": str(tmp_path / "log"),
    }  # fmt: skip

    def made(**sampling: Any) -> RunConfig:
        return make_config(
            model={"path": str(tmp_path / "model")},
            output={"rows_per_part": 32},
            sampling={"max_tokens": 200, **sampling},
            thinking={"answer_tokens": 50},
            engine={"context": "auto", "block_rows": 4, "simulated": simulated},
        )

    return made


def traces(config: RunConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(config.output.path).to_pylist()
    return rows


def generated(tmp_path: Path) -> set[int]:
    """The rows that engines have worked at."""
    lines = (tmp_path / "log").read_text().splitlines()
    return {int(json.loads(line)["id"].split(":")[1]) for line in lines}


def of_length(*lengths: int) -> set[int]:
    return {i for i, length in enumerate(LENGTHS) if length in lengths}


def test_each_row_runs_where_it_fits_and_a_run_goes_on_with_the_tiers_that_are_left(
    tmp_path: Path, make: Callable[..., RunConfig]
) -> None:
    config, seen = make(n=2), []
    tiers = [
        ("400 tokens", 35), ("800 tokens, YaRN 2", 7), ("1,600 tokens, YaRN 4", 14), ("no engine", 14),
    ]  # fmt: skip

    def watch(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:
        seen.append((tier, rows))
        return nullcontext()

    def killed(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:
        if "YaRN" in tier:
            raise RuntimeError("killed")
        return watch(coordinator, rows, tier)

    assert [line for line in preview.plan_lines(prepare(config)) if "tier" in line] == [
        "tier      400 tokens: 35 rows",
        "tier      800 tokens, YaRN 2: 7 rows",
        "tier      1,600 tokens, YaRN 4: 14 rows",
        "tier      no engine: 14 rows",
    ]
    with pytest.raises(RuntimeError, match="killed"):
        flow.run(config, killed)
    assert seen == tiers[:1]
    assert generated(tmp_path) == of_length(SHORT)
    assert prepare(config).plan.rows_todo == 35
    (tmp_path / "log").unlink()
    summary = flow.run(config, watch)
    assert summary.is_complete
    assert seen == tiers
    kept = {
        run[-1].tier: run[-1].engine_pool.replicas
        for run in all_figures(Storage(config.output.path))
    }
    assert kept == {**dict.fromkeys((tier for tier, _ in seen), 1), "no engine": 0}
    rows = traces(config)
    assert [(r["id"], r["sample"]) for r in rows] == [(i, s) for i in range(70) for s in (0, 1)]
    for row in rows:
        length = LENGTHS[row["id"]]
        assert row["yarn_factor"] == FACTORS[length]
        assert (row["state"] == "failed") == (length in (TOO_LONG, 0))
        if length == TOO_LONG:
            assert row["error"].startswith(
                "prompt_too_long: the prompt has 5021 tokens, the context 1600"
            )
        if length == 0:
            assert row["error"] == "invalid_prompt: prompt is empty"
    assert generated(tmp_path) == of_length(DOUBLE, LONG)


def test_retry_takes_chosen_rows_to_their_tiers_and_an_engine_to_none_of_them(
    tmp_path: Path, make: Callable[..., RunConfig]
) -> None:
    """First without tiers, where long rows fail; a retry may bring the tiers in."""
    auto = make()
    native = auto.model_copy(
        update={
            "engine": auto.engine.model_copy(
                update={"context": "native", "vllm": {"max_model_len": 400}}
            )
        }
    )
    states = ["failed" if length > SHORT or not length else "finished" for length in LENGTHS]
    assert finish(native, lambda row, _: {"state": states[row]}).states["failed"] == 35
    before = traces(native)
    tiers: list[str] = []

    def watch(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:
        tiers.append(tier)
        return nullcontext()

    assert flow.retry(auto, ["failed"], observer=watch).states["failed"] == 14
    assert tiers == ["800 tokens, YaRN 2", "1,600 tokens, YaRN 4", "no engine"]
    for old, new in zip(before, traces(auto), strict=True):
        assert (old == new) == (old["state"] != "failed")
        assert new["yarn_factor"] == FACTORS[LENGTHS[new["id"]]]
    tiers.clear()

    def killed(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:
        tiers.append(tier)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        flow.retry(auto, ["failed"], observer=killed)
    assert tiers == ["no engine"]
