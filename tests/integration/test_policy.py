"""The reasoning policy through the whole pipeline, with the simulated engine."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.run_config import RunConfig
from pipeline.errors import ConfigError, InputError, OutputError
from pipeline.execution import run as flow
from pipeline.execution.prepare import prepare
from pipeline.insight import preview
from pipeline.reasoning.policy import EARLY_STOP
from tests.conftest import MakeConfig, write_shards

ENGINE: dict[str, Any] = {
    "simulated": {"tokens_median": 600, "tokens_sigma": 0.9, "seconds_per_token": 0, "loops": 0.3}
}


def traces(config: RunConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(config.output.path).to_pylist()
    return rows


def test_traces_that_loop_or_run_out_end_with_an_answer_within_their_budgets(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    write_shards(tmp_path / "in", [80])
    limits = {"max_tokens": 4000}
    off = make_config(
        engine=ENGINE, sampling=limits, thinking={"rescue": False, "detect_loops": False},
        output={"path": str(tmp_path / "off")},
    )  # fmt: skip
    on = make_config(
        engine=ENGINE, sampling=limits, thinking={"budget_tokens": 1500, "answer_tokens": 50},
        output={"raw_text": True},
    )  # fmt: skip
    before, after = flow.run(off), flow.run(on)
    assert before.states["truncated"] > 10
    assert after.states.keys() == {"finished", "rescued"}
    rows = traces(on)
    for old, row in zip(traces(off), rows, strict=True):
        assert (row["state"] == "rescued") == (row["closed_by"] is not None)
        assert (row["wasted_tokens"] > 0) == (row["loop_retries"] > 0)
        if not row["loop_retries"] and row["closed_by"] is None:
            assert (old["think"], old["answer"]) == (row["think"], row["answer"])
        if row["closed_by"] == "budget":
            assert row["think_tokens"] == 1500
            assert 0 < row["answer_tokens"] <= 50
        assert row["think_tokens"] <= 1500
        assert EARLY_STOP not in row["think"] + row["answer"]
        assert (EARLY_STOP in row["raw"]) == (row["state"] == "rescued")
    closed_by = [row["closed_by"] for row in rows]
    assert set(closed_by) == {None, "loop", "budget"}
    assert closed_by.count("budget") > 3
    spent = after.output_tokens + sum(row["wasted_tokens"] for row in rows)
    assert spent < before.output_tokens


def test_answers_are_parsed_compared_and_vote_and_a_top_up_votes_again(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    (tmp_path / "in").mkdir()
    prompts = [
        {"prompt": f"What is {i} + 1?", "right": "42.0" if i % 2 else "-1"} for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(prompts), tmp_path / "in/a.parquet")
    engine = {"simulated": {"tokens_median": 60, "seconds_per_token": 0, "right": 0.6}}
    answer = {"format": "boxed", "reference_column": "right"}
    two, five = (make_config(engine=engine, answer=answer, sampling={"n": n}) for n in (2, 5))
    flow.run(two)
    assert {row["agreement"] for row in traces(two)} == {0.5, 1.0}
    flow.run(five)
    rows = traces(five)
    for row in rows:
        assert row["answer"] == f"\\boxed{{{row['parsed']}}}"
        assert row["correct"] == (row["parsed"] == "42" and row["right"] == "42.0")
    assert {row["correct"] for row in rows} == {True, False}
    for i in range(0, 100, 5):
        answers = [row["parsed"] for row in rows[i : i + 5]]
        most = max(answers.count(answer) for answer in answers)
        assert [row["agreement"] for row in rows[i : i + 5]] == pytest.approx([most / 5] * 5)
        [vote] = {row["vote"] for row in rows[i : i + 5]}
        assert answers.count(vote) == most
    assert sum(row["agreement"] > 0.5 for row in rows) > 40
    letters = make_config(
        engine=engine, answer={"format": "choice"}, output={"path": str(tmp_path / "letters")}
    )
    assert flow.run(letters).states == {"unparsed": 20}
    assert traces(letters)[0]["answer"].startswith("\\boxed{")
    assert "asked_tokens" not in traces(letters)[0]
    asked = make_config(
        engine=engine, answer={"format": "choice", "ask_again": True},
        output={"path": str(tmp_path / "asked")},
    )  # fmt: skip
    assert flow.run(asked).states == {"finished": 20}
    assert {row["parsed"] for row in traces(asked)} == set("ABCD")
    for row, before in zip(traces(asked), traces(letters), strict=True):
        assert row["asked_tokens"] > 0
        assert (row["think"], row["answer"]) == (before["think"], before["answer"])
    with pytest.raises(OutputError, match=r"answer.ask_again: there None, now True"):
        flow.run(asked.model_copy(update={"output": letters.output}))


def test_references_that_can_not_be_are_refused(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [2])
    with pytest.raises(InputError, match=r"answer.reference_column is gold, but the input has"):
        prepare(make_config(answer={"format": "boxed", "reference_column": "gold"}))
    with pytest.raises(
        ConfigError, match=r"reference_column needs a format: boxed, choice, json or sets"
    ):
        make_config(answer={"reference_column": "right"})


def test_answer_format_from_outside_the_package_is_used_by_the_workers(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    rows = [{"prompt": f"What is {i} + 1?", "right": 42} for i in range(20)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/shard-00000.parquet")
    config = make_config(
        engine={"simulated": {"tokens_median": 60, "seconds_per_token": 0, "right": 0.6}},
        answer={"format": "tests.toy_format:LastNumber", "reference_column": "right"},
        prompt={"suffix": "number"}, sampling={"n": 3},
    )  # fmt: skip
    assert flow.run(config).states == {"finished": 60}
    for row in traces(config):
        assert row["answer"] == f"\\boxed{{{row['parsed']}}}"
        assert row["correct"] == (row["parsed"] == "42")
        assert row["agreement"] in (np.float32(1 / 3), np.float32(2 / 3), 1.0)
    assert {row["vote"] == "42" for row in traces(config)} == {True, False}


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "fair", "bad"]}, "score": {"type": "integer"}},
    "required": ["label", "score"],
}


@pytest.mark.parametrize("preset", ["qwq-32b", "qwq-32b-preview"])
def test_json_answers_follow_the_thinking(
    tmp_path: Path, make_config: MakeConfig, preset: str
) -> None:
    write_shards(tmp_path / "in", [40])
    short = {"simulated": {"tokens_median": 300, "seconds_per_token": 0, "loops": 0.2}}
    config = make_config(
        model={"path": "qwq-nano" if preset == "qwq-32b" else "qwq-nano-preview", "preset": preset},
        engine=short, answer={"format": "json", "json_schema": SCHEMA}, prompt={"suffix": "json"},
        sampling={"max_tokens": 3000}, thinking={"budget_tokens": 400, "loop_retries": 0},
        output={"raw_text": True},
    )  # fmt: skip
    summary = flow.run(config)
    assert summary.states.keys() == {"finished", "rescued"}
    for row in traces(config):
        value = json.loads(row["answer"])
        assert value["label"] == SCHEMA["properties"]["label"]["enum"][value["score"] % 3]  # type: ignore[index]
        assert row["parsed"] == json.dumps(value)
        assert (row["closed_by"] is not None) == (row["state"] == "rescued")
        assert not {"label", "boxed", "Final Answer"} & set(
            re.findall(r"Final Answer|\w+", row["think"])
        )
        assert row["think_tokens"] <= 400
        assert row["raw"].endswith(row["answer"])
    assert {row["closed_by"] for row in traces(config)} == {None, "budget"}


def test_samples_are_drawn_until_they_agree(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [60])
    engine = {"simulated": {"tokens_median": 60, "seconds_per_token": 0, "right": 0.6}}
    fixed, adaptive = (
        make_config(
            engine=engine, answer={"format": "boxed"}, sampling={"n": 8, **agree},
            output={"path": str(tmp_path / f"out{len(agree)}"), "rows_per_part": 32},
        )
        for agree in ({}, {"agree": 3})
    )  # fmt: skip
    flow.run(fixed)
    summary = flow.run(adaptive)
    assert summary.is_complete
    assert (summary.expected, summary.rows) == (480, 60)
    assert summary.traces < 400
    assert any("samples not needed" in line for line in summary.lines())
    everything = {(row["id"], row["sample"]): row for row in traces(fixed)}
    drawn: dict[int, list[str]] = {}
    for row in traces(adaptive):
        assert everything[row["id"], row["sample"]]["answer"] == row["answer"]
        assert row["sample"] == len(drawn.setdefault(row["id"], []))
        drawn[row["id"]].append(row["parsed"])
    assert sorted(drawn) == list(range(60))
    for answers in drawn.values():
        most = max(answers.count(answer) for answer in answers)
        assert most == 3 if len(answers) < 8 else most <= 3
    votes = {row["id"]: row["vote"] for row in traces(adaptive)}
    assert sum(vote == "42" for vote in votes.values()) > 45
    assert flow.run(adaptive) == summary  # nothing is left to do
    more = make_config(
        engine=engine, answer={"format": "boxed"}, sampling={"n": 9, "agree": 3},
        output={"path": adaptive.output.path, "rows_per_part": 32},
    )  # fmt: skip
    with pytest.raises(OutputError, match=r"sampling.n can't be raised from 8"):
        flow.run(more)
    with pytest.raises(OutputError, match=r"sampling.agree: there 3, now None"):
        flow.retry(fixed.model_copy(update={"output": adaptive.output}), ["finished"])
    again = flow.retry(adaptive, ["finished"])
    assert (again.is_complete, again.traces) == (True, summary.traces)


def test_model_that_does_not_think_answers_at_once(tmp_path: Path, make_config: MakeConfig) -> None:
    write_shards(tmp_path / "in", [8])
    config = make_config(
        model={"path": "qwq-nano", "preset": "qwen2"},
        engine={"simulated": {"tokens_median": 100, "seconds_per_token": 0}},
        answer={"format": "json", "json_schema": SCHEMA},
    )
    assert flow.run(config).states == {"finished": 8}
    for row in traces(config):
        assert (row["think"], row["think_tokens"]) == (None, 0)
        assert row["parsed"] == json.dumps(json.loads(row["answer"]))


def test_early_answers_are_measured_on_a_control_group_and_end_below_the_floor(
    tmp_path: Path, make_config: MakeConfig
) -> None:
    """The simulated model changes its mind in 30 % of the traces that it thinks to their end."""
    write_shards(tmp_path / "in", [240])
    early = {
        "control_share": 0.4, "every_tokens": 64, "agree": 2, "min_agreement": 0.95, "below": "stop",
    }  # fmt: skip
    mind = {"tokens_median": 700, "seconds_per_token": 0.0005, "changes_mind": 0.3}
    config = make_config(
        engine={"simulated": mind}, answer={"format": "boxed"}, sampling={"max_tokens": 4000},
        thinking={"early_answer": early}, output={"rows_per_part": 60},
    )  # fmt: skip
    assert any(line.startswith("early ") for line in preview.plan_lines(prepare(config)))
    summary, rows = flow.run(config), traces(config)
    assert summary.early is not None
    counts, control = summary.early.counts, [row for row in rows if row["control"]]
    compared = [row["early_agrees"] for row in control if row["early_agrees"] is not None]
    assert 60 < len(control) < 140
    assert (counts["control_traces"], counts["compared"]) == (len(control), len(compared))
    assert counts["agreeing"] == sum(compared)
    assert 0.5 < sum(compared) / len(compared) < 0.9
    assert counts["closed"] == sum(row["closed_by"] == "early_answer" for row in rows) > 0
    assert not any(row["closed_by"] == "early_answer" for row in control)
    assert counts["probe_tokens"] == sum(row["probe_tokens"] for row in rows)
    full = [row["think_tokens"] + row["answer_tokens"] for row in control]
    saved = [row["think_tokens"] - (row["early_tokens"] or row["think_tokens"]) for row in control]
    assert (counts["full_tokens"], counts["saved_tokens"]) == (sum(full), sum(saved))
    assert 0.2 < summary.early.saving.low < summary.early.saving.high < 0.9
    last = list(summary.lines())[-1]
    assert last == summary.early.warning
    assert last is not None
    assert last.endswith("thinking is no longer closed early")
    # A run that goes on knows it from its first report on: of some 48 rows, few are closed.
    write_shards(tmp_path / "in", [240, 80])
    again = flow.run(config)
    assert again.early is not None
    assert again.early.counts["control_traces"] > counts["control_traces"]
    assert again.early.counts["closed"] - counts["closed"] < 24
    # A retry writes the parts again, and their counts with them.
    retried = flow.retry(config, ["finished"])
    assert retried.early is not None
    assert retried.early.counts["control_traces"] == again.early.counts["control_traces"]
    assert retried.early.counts["closed"] < 60
