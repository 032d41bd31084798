"""synthesize and a judge over its traces, in turn: rules change, traces do not; without Ray."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import row_job
from jobs import synthesize as job
from jobs.judge import JudgeJob, judge
from jobs.synthesize import synthesize
from jobs.synthesize_config import Synthesis
from pipeline.config.load import parse_as, parse_config
from pipeline.errors import IncompleteRunError, InputError, OutputError
from pipeline.execution.prepare import prepare
from pipeline.output.summary import Summary
from pipeline.planning import PartRef, Pass
from tests.outputs import _traces, finish

SEEDS = 16


@pytest.fixture(autouse=True)
def without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples all say something else; a judge calls two of three right."""

    def generate(run: Any, *_: Any) -> Summary:
        return finish(run, lambda row, sample: {"answer": f"It is {row}, {sample}."})

    def judged(run: Any, *_: Any) -> Summary:
        return finish(run, lambda row, _: ballot("right" if row % 3 else "wrong"))

    monkeypatch.setattr(job, "generate", generate)
    monkeypatch.setattr(row_job, "generate", judged)


def ballot(verdict: str) -> dict[str, Any]:
    answer = json.dumps({"reason": "So.", "verdict": verdict})
    return {"answer": answer, "parsed": verdict, "vote": verdict, "agreement": 1.0}


def base(folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    return {
        "input": {"path": str(folder / "in")}, "model": {"path": "qwq-nano"},
        "output": {"path": str(folder / name), "rows_per_part": 4},
        "engine": {"kind": "simulated", "device": "cpu"}, **sections,
    }  # fmt: skip


def synthesis(folder: Path, section: dict[str, Any], **sections: Any) -> Synthesis:
    (folder / "in").mkdir(exist_ok=True)
    if not (folder / "in/b.parquet").exists():
        seeds = [{"id": i, "prompt": f"What is the number {i} called?"} for i in range(SEEDS)]
        pq.write_table(pa.Table.from_pylist(seeds), folder / "in/b.parquet")
    section = {"near_duplicate": None, **section}
    return parse_as(Synthesis, {**base(folder, "out", **sections), "synthesize": section}, "it")


def judge_job(folder: Path, **sections: Any) -> JudgeJob:
    section = {"rubric": "Is it right?", "verdicts": ["right", "wrong"]}
    settings = base(folder, "judge", input={"path": str(folder / "out/traces")}, **sections)
    return parse_as(JudgeJob, {**settings, "judge": section}, "it")


def required(folder: Path) -> dict[str, Any]:
    return {"require": {"verdict": "right"}, "judged": str(folder / "judge/judged")}


def samples(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out/samples").to_pylist()
    return rows


def reasons(folder: Path) -> Counter[str | None]:
    return Counter(row["rejected"] for row in samples(folder))


def test_a_target_and_a_judge_take_turns_until_enough_is_accepted(tmp_path: Path) -> None:
    """Before the judge's first run there are no judgements; each run of it adds to the last."""
    wanted = synthesis(tmp_path, {"accepted": 6, **required(tmp_path)})
    with pytest.raises(IncompleteRunError, match=r"0 samples .* 8 are not in synthesize.judged .*"):
        synthesize(wanted)
    assert judge(judge_job(tmp_path)) == 0
    with pytest.raises(IncompleteRunError, match=r"^4 samples .* the judge over .*/out/traces"):
        synthesize(wanted)
    assert judge(judge_job(tmp_path)) == 0
    assert synthesize(wanted) == 0
    assert reasons(tmp_path) == {None: 8, "judge": 8}
    judged = {
        row["source_row"]: row for row in pq.read_table(tmp_path / "judge/judged").to_pylist()
    }
    for row in samples(tmp_path):
        part, number, sample = row["sample_id"].split(":")
        found = judged[f"{part.rpartition('.')[0]}.parquet:{number}:{sample}"]
        assert found["stage1_answer"] == row["answer"]
        assert row["accepted"] == (found["verdict"] == "right")


def test_rules_benchmarks_and_seeds_that_come_later_do_not_stop_the_judge(tmp_path: Path) -> None:
    assert synthesize(synthesis(tmp_path, {})) == 0
    assert judge(judge_job(tmp_path)) == 0
    (tmp_path / "b.jsonl").write_text('{"question": "what is the number 3 called"}')
    earlier = [{"id": 100, "prompt": "What is the number 5 called?"}]
    for section, seeds in (
        (required(tmp_path), []),
        ({**required(tmp_path), "min_tokens": 9}, []),
        ({**required(tmp_path), "benchmarks": [str(tmp_path / "b.jsonl")]}, earlier),
        ({"near_duplicate": 0.8}, earlier),
    ):
        if seeds:
            pq.write_table(pa.Table.from_pylist(seeds), tmp_path / "in/a.parquet")
        with suppress(IncompleteRunError):  # none has nine tokens
            synthesize(synthesis(tmp_path, section))
        assert judge(judge_job(tmp_path)) == 0
    assert pq.read_table(tmp_path / "judge/judged").num_rows == SEEDS + 1


def test_judgement_of_an_answer_that_a_retry_replaced_holds_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(run: Any, *_: Any) -> Summary:
        return finish(run, lambda row, _: {"answer": f"Good {row}", "state": "unparsed"})

    def retry(run: Any, *_: Any) -> Summary:
        prepared = prepare(run)
        part, again = prepared.parts[0], Pass(1, 0, 1, states=("unparsed",))
        prepared.ledger.open_pass(again)
        traces = _traces(prepared, part, 1, lambda row, _: {"answer": f"Bad {row}", "attempt": 1})
        prepared.ledger.write_block(traces, 1)
        metadata = prepared.metadata(again)
        prepared.ledger.commit(PartRef.of(part), again, prepared.traces, metadata)
        return finish(run)

    monkeypatch.setattr(job, "generate", generate)
    with pytest.raises(IncompleteRunError, match="no sample is accepted"):
        synthesize(synthesis(tmp_path, {"export": "none"}))
    assert judge(judge_job(tmp_path)) == 0
    monkeypatch.setattr(job, "generate", retry)
    with pytest.raises(IncompleteRunError, match=r"4 are not in synthesize.judged"):
        synthesize(synthesis(tmp_path, required(tmp_path)), ["unparsed"])
    replaced = [row for row in samples(tmp_path) if row["attempt"]]
    assert len(replaced) == 4
    assert {row["rejected"] for row in replaced} == {"unjudged"}


def test_output_of_a_plain_run_judges_by_its_own_columns(tmp_path: Path) -> None:
    """Its ``answer`` is the judge's; that of the sample is carried as ``stage1_answer``."""
    assert synthesize(synthesis(tmp_path, {})) == 0
    settings = base(tmp_path, "run", input={"path": str(tmp_path / "out/traces")})
    run = parse_config({**settings, "prompt": {"template": "Is it good? {answer:answer}"}})
    finish(run, lambda row, _: {"answer": "good" if row % 2 else "bad"})
    section = {"judged": str(tmp_path / "run"), "require": {"answer": "good"}}
    assert synthesize(synthesis(tmp_path, section)) == 0
    assert reasons(tmp_path) == {None: SEEDS // 2, "judge": SEEDS // 2}


def test_samples_of_prompts_made_of_one_seed_are_told_apart(tmp_path: Path) -> None:
    """With `input.where` they carry the seed's row, which is the same for all of them."""
    section = {"expand": {"how": ["Shortly", "In full"]}}
    sections = {
        "input": {"path": str(tmp_path / "in"), "where": "id % 2 = 1"},
        "prompt": {"template": "{how}: {prompt}"},
    }
    assert synthesize(synthesis(tmp_path, section, **sections)) == 0
    assert judge(judge_job(tmp_path)) == 0
    rows = pq.read_table(tmp_path / "judge/judged").to_pylist()
    assert rows[1]["source_row"] == "b.parquet:1:1:0"
    assert len({row["source_row"] for row in rows}) == len(rows) == SEEDS
    assert synthesize(synthesis(tmp_path, {**section, **required(tmp_path)}, **sections)) == 0
    assert reasons(tmp_path)["unjudged"] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"verdict": "right"}],
            r"judged.parquet names no samples; it needs the column source_row",
        ),
        ([{"sample_id": None, "verdict": "right"}], r"has a row without sample_id"),
        ([{"sample_id": "x", "verdict": "right"}] * 2, r"has sample x twice"),
        ([{"sample_id": "x", "score": 1}], r"require has verdict, but .*judged.parquet has only"),
    ],
)
def test_file_that_judges_nothing_for_sure_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    table = pa.Table.from_pylist(rows)
    if "sample_id" in table.schema.names:
        table = table.set_column(0, "sample_id", table["sample_id"].cast(pa.string()))
    pq.write_table(table, tmp_path / "judged.parquet")
    section = {"judged": str(tmp_path / "judged.parquet"), "require": {"verdict": "right"}}
    with pytest.raises(InputError, match=message):
        synthesize(synthesis(tmp_path, section))


def test_sample_without_a_verdict_of_its_judge_does_not_hold_up_the_next_round(
    tmp_path: Path,
) -> None:
    rows = [{"sample_id": f"b.0000{i // 4}.00000:{i % 4}:0", "verdict": None} for i in range(8)]
    schema = pa.schema([("sample_id", pa.string()), ("verdict", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "judged.parquet")
    section = {"judged": str(tmp_path / "judged.parquet"), "require": {"verdict": "right"}}
    with pytest.raises(IncompleteRunError):
        synthesize(synthesis(tmp_path, {**section, "accepted": 12}))
    assert reasons(tmp_path) == {"judge": 8, "unjudged": 4}


def test_export_none_leaves_the_export_of_a_later_stage(tmp_path: Path) -> None:
    assert synthesize(synthesis(tmp_path, {})) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out/export").rglob("*.*")}
    assert synthesize(synthesis(tmp_path, {"export": "none"})) == 0
    after = {path: path.read_bytes() for path in (tmp_path / "out/export").rglob("*.*")}
    assert len(before) > 4
    assert after == before
    assert synthesize(synthesis(tmp_path, {"preference": []})) == 0, "it is still its own"


def test_target_of_a_run_without_prompts_of_its_own_is_refused_by_its_name(tmp_path: Path) -> None:
    assert synthesize(synthesis(tmp_path, {})) == 0
    with pytest.raises(OutputError, match=r"synthesize.accepted can't be added: the run in .*out"):
        synthesize(synthesis(tmp_path, {"accepted": 3}))
    assert not (tmp_path / "out/prompts").exists()


def test_job_that_is_moved_goes_on_with_its_prompts(tmp_path: Path) -> None:
    assert synthesize(synthesis(tmp_path, {"accepted": 3})) == 0
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = {"output": {"path": str(tmp_path / "moved"), "rows_per_part": 4}}
    assert synthesize(synthesis(tmp_path, {"accepted": 6}, **moved)) == 0
    assert synthesize(synthesis(tmp_path, {}, **moved)) == 0


def accept_all(_: dict[str, Any]) -> bool:
    return True


def test_prompts_for_rl_have_a_reference_and_may_lack_a_pass_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A verifier decides about prompts without a reference too; samples that agree are biased."""
    golds = ["7", None, "n/a"]
    seeds = [{"prompt": f"What is {i}?", "gold": gold} for i, gold in enumerate(golds)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(seeds), tmp_path / "in/b.parquet")
    right = [True, None, None]
    monkeypatch.setattr(
        job, "generate", lambda run, *_: finish(run, lambda row, _: {"correct": right[row]})
    )
    sections = {
        "answer": {"format": "boxed", "reference_column": "gold"},
        "sampling": {"n": 4, "agree": 2},
    }
    verifier = {"verifier": f"{__name__}:accept_all"}
    assert synthesize(synthesis(tmp_path, verifier, **sections)) == 0
    exported = pq.read_table(tmp_path / "out/export/rl").to_pylist()
    assert [(row["solution"], row["pass_rate"]) for row in exported] == [("7", None)]
    (tmp_path / "b.jsonl").write_text('{"question": "what is 0"}')
    section = {**verifier, "benchmarks": [str(tmp_path / "b.jsonl")]}
    assert synthesize(synthesis(tmp_path, section, **sections)) == 0
    assert [row["passed"] for row in samples(tmp_path)] == [None] * 4 + [True] * 8
