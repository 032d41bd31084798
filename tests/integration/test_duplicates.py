"""Rows with the same prompt are generated once, whatever happens in between."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.execution import run as flow
from pipeline.execution.copies import Copies
from pipeline.reasoning.think_format import State
from tests.conftest import MakeConfig

OWN = ("id", "prompt", "reference", "correct", "duplicate_of")


def write(folder: Path, name: str, prompts: list[str | None]) -> None:
    """A shard; each row has an id and a reference answer of its own."""
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"{name}.parquet:{i}", "prompt": prompt, "reference": "42" if i % 2 else "none"}
        for i, prompt in enumerate(prompts)
    ]
    schema = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("reference", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{name}.parquet")


def traces(config: RunConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(config.output.path).to_pylist()
    return rows


class Log:
    """What the engines were asked to generate since it was last read: (shard, row, sample)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[str]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.unlink(missing_ok=True)
        return sorted({json.loads(line)["id"] for line in lines})


def check(config: RunConfig, samples: int) -> None:
    """Each row once per sample, in order, its traces those of the row that it names."""
    rows = traces(config)
    ids = [
        row["id"]
        for path in sorted(Path(config.input.path).iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    keys = [(row["id"], row["sample"]) for row in rows]
    assert keys == [(row, sample) for row in ids for sample in range(samples)]
    by_key = dict(zip(keys, rows, strict=True))
    first: dict[Any, str] = {}
    for row in rows:
        assert row["correct"] == (row["parsed"] == row["reference"] if row["parsed"] else False)
        if row["prompt"] is None:
            assert (row["state"], row["duplicate_of"]) == ("failed", None)
            continue
        source = row["duplicate_of"] or row["id"]
        assert first.setdefault((row["prompt"], row["sample"]), source) == source
        other = by_key[source, row["sample"]]
        assert {k: v for k, v in row.items() if k not in OWN} == {
            k: v for k, v in other.items() if k not in OWN
        }
        assert other["duplicate_of"] is None


@pytest.fixture
def config(tmp_path: Path, make_config: MakeConfig) -> Any:
    simulated = {
        "tokens_median": 80, "tokens_sigma": 0.5, "seconds_per_token": 0.0002, "right": 0.5,
        "log": str(tmp_path / "log"),
    }  # fmt: skip

    def make(max_tokens: int = 100, **sampling: Any) -> RunConfig:
        return make_config(
            input={"path": str(tmp_path / "in"), "dedupe": True},
            output={"rows_per_part": 8},
            sampling={"max_tokens": max_tokens, **sampling},
            thinking={"rescue": False},
            answer={"format": "boxed", "reference_column": "reference"},
            engine={"simulated": simulated, "block_rows": 4},
        )

    return make


def test_equal_rows_are_generated_once_through_kill_new_shard_top_up_and_retry(
    tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, seen = Log(tmp_path / "log"), list[int]()

    def watch(coordinator: Any, rows: int, tier: str) -> AbstractContextManager[None]:
        seen.append(rows)
        return flow.no_observer(coordinator, rows, tier)

    # Duplicates within parts, across parts and across shards; 11 prompts, and rows without any.
    write(tmp_path / "in", "b", [*(f"question {i % 9}" for i in range(20)), None, None])
    write(tmp_path / "in", "c", ["question 2", "other", "other", "question 8", "more"])
    with monkeypatch.context() as patch:
        patch.setattr(Copies, "write", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            flow.run(config(n=2), watch)
    assert seen == [13]
    once = log.read()
    assert once == sorted(
        f"{shard}:{row}:{sample}"
        for shard, rows in (("b", range(9)), ("c", (1, 4)))
        for row in rows
        for sample in range(2)
    )
    summary = flow.run(config(n=2), watch)
    assert log.read() == []
    assert len(seen) == 1, "copies need no engine"
    check(config(), 2)
    assert summary.is_complete
    assert summary.duplicates == 2 * (27 - 11 - 2)
    own = [row for row in traces(config()) if row["duplicate_of"] is None]
    assert len(own) == 2 * 13
    assert summary.think_tokens == sum(row["think_tokens"] for row in own)

    # A shard that comes first now, with two new prompts of which one is twice in it; and a top-up.
    write(tmp_path / "in", "a", ["question 5", "new", "newer", "new", "question 0", "other"])
    assert flow.run(config(n=3)).is_complete
    made = log.read()
    assert [key for key in made if key[-1] != "2"] == ["a:1:0", "a:1:1", "a:2:0", "a:2:1"]
    assert len(made) == 4 + 13
    check(config(), 3)
    assert [row["duplicate_of"] for row in traces(config())[:3]] == ["b.parquet:5"] * 2 + [None]

    before = traces(config())
    cut = {(row["prompt"], row["sample"]) for row in before if row["state"] == State.TRUNCATED}
    assert 5 < len(cut) < 35
    with monkeypatch.context() as patch:
        patch.setattr(Copies, "write", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            flow.retry(config(max_tokens=4000, n=3), ["truncated"])
    assert len(log.read()) == len(cut)
    assert flow.retry(config(max_tokens=4000, n=3), ["truncated"]).states == {
        "finished": 3 * 31, "failed": 3 * 2,
    }  # fmt: skip
    assert log.read() == []
    check(config(), 3)
    for old, new in zip(before, traces(config()), strict=True):
        assert new["attempt"] == 2 * ((old["prompt"], old["sample"]) in cut)  # the top-up was 1


def _killed(_: Copies, ready: bool) -> None:
    if not ready:
        raise RuntimeError("killed")


def test_copies_have_as_many_samples_as_it_took_to_agree(tmp_path: Path, config: Any) -> None:
    write(tmp_path / "in", "a", [f"question {i % 12}" for i in range(30)])
    summary = flow.run(config(max_tokens=4000, n=4, agree=2))
    assert summary.is_complete
    assert summary.duplicates == summary.traces - len(Log(tmp_path / "log").read())
    rows = traces(config())
    drawn = [sum(row["id"] == f"a.parquet:{i}" for row in rows) for i in range(30)]
    assert {2, 4} <= set(drawn)
    for i in range(12, 30):
        assert drawn[i] == drawn[i % 12]
    assert any(line.startswith("duplicates") for line in summary.lines())
