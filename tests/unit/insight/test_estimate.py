"""What an estimate projects from a pilot, and the engines' speed it takes from the record."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.insight.engine_speed import measure_speed
from pipeline.insight.estimate import estimate
from pipeline.insight.projection import Projection
from pipeline.monitor.figures import EngineFigures, EnginePool, Figures
from pipeline.monitor.history import all_figures
from pipeline.storage import Storage
from tests.outputs import write_output, write_record


def config(**sections: dict[str, Any]) -> RunConfig:
    base: dict[str, dict[str, Any]] = {
        "input": {"path": "in"},
        "output": {"path": "out"},
        "model": {"path": "qwq-nano"},
        "engine": {"replicas": 2, "tensor_parallel": 4, "vllm": {"max_num_seqs": 64}},
    }
    return parse_config({**base, **sections})


def trace(think: int, answer: int = 100, wasted: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "state": "finished", "closed_by": None, "prompt_tokens": 50, "think_tokens": think,
        "answer_tokens": answer, "wasted_tokens": wasted, "error": None, **more,
    }  # fmt: skip


def run_of(rate: float, running: int, slots: int = 64, seconds: int = 100) -> list[Figures]:
    """A record of one engine at a steady ``rate``, with half the sequences in its last tenth."""
    lines = []
    for at in range(0, seconds + 1, 5):
        busy = running if at <= 0.9 * seconds else running // 2
        lines.append(
            Figures(
                "", float(at), 0, 0, ready_seconds=10.0,
                tokens={"prompt": 0, "output": 0, "spent": int(rate * at)},
                engines=[EngineFigures("e", busy, 0, None, rate)], engine_pool=EnginePool(1, 4, slots),
            )
        )  # fmt: skip
    return lines


PRICES = {"gpu_hour": 3.0, "million_input_tokens": 0.12, "million_output_tokens": 0.18}


def test_projection_of_identical_traces_is_exact() -> None:
    sample = [[trace(900)]] * 200
    projected = estimate(config(prices=PRICES), sample, [run_of(2000, 64)], 100_000, 99_800)
    assert projected.whole.output_tokens.mid == projected.whole.output_tokens.high == 100_000 * 1000
    assert projected.whole.prompt_tokens.mid == 100_000 * 50
    assert projected.speed is not None
    assert projected.speed.tokens_per_second == 2000
    body = 100_000 * 1000 / (2000 * 2)
    tail = 1000 * 64 / 2000
    seconds = 10 + body + tail / 2
    assert projected.whole.seconds is not None
    assert projected.whole.seconds.mid == pytest.approx(seconds)
    assert projected.whole.gpu_hours is not None
    assert projected.whole.gpu_hours.mid == pytest.approx(seconds * 8 / 3600)
    assert projected.whole.cost is not None
    assert projected.whole.cost.mid == pytest.approx(seconds * 8 / 3600 * 3)
    assert projected.whole.api_cost is not None
    assert projected.whole.api_cost.mid == pytest.approx(5 * 0.12 + 100 * 0.18)
    assert projected.left.output_tokens.mid == 99_800 * 1000
    assert projected.lengths["think"] == (900, 900, 900)
    assert projected.advice == ()


def test_tokens_of_asking_once_more_are_generated_tokens() -> None:
    sample = [[trace(900, asked_tokens=10)], [trace(900, asked_tokens=None)]] * 100
    projected = estimate(config(), sample, [run_of(2000, 64)], 1000, 0)
    assert projected.whole.output_tokens.mid == 1000 * 1005


def test_ranges_reach_their_nominal_coverage() -> None:
    """Log-normal lengths like QwQ's; about 95 of 100 ranges contain the true mean."""
    rng = np.random.default_rng(1)
    mean = 5000 * math.exp(0.8**2 / 2)
    hits = 0
    for _ in range(200):
        lengths = rng.lognormal(math.log(5000), 0.8, 200)
        sample = [[trace(int(length), 0)] for length in lengths]
        whole = estimate(config(), sample, [], 1000, 0).whole
        hits += whole.output_tokens.contains(1000 * mean)
    assert 185 <= hits <= 199


def test_upper_end_allows_for_one_more_long_trace() -> None:
    """With 2 rows of 200 at the budget, twice that share in the whole run is plausible."""
    sample = [[trace(400, 0)]] * 198 + [[trace(32_000, 0)]] * 2
    tokens = estimate(config(), sample, [], 200, 0).whole.output_tokens
    assert tokens.low == 200 * 400  # the whole run may have none
    assert tokens.high >= 198 * 400 + 6 * 31_600


def test_samples_of_a_row_count_as_one_draw() -> None:
    """Otherwise four equal samples of a row would halve the range."""
    lengths = [100, 1000, 3000, 9000] * 25
    one = estimate(config(), [[trace(n)] for n in lengths], [], 1000, 0).whole.output_tokens
    four = estimate(config(), [[trace(n)] * 4 for n in lengths], [], 1000, 0).whole.output_tokens
    assert four.mid == 4 * one.mid
    assert four.high - four.low == pytest.approx(4 * (one.high - one.low))


def test_engine_that_was_not_full_may_be_faster() -> None:
    sample = [[trace(1000)]] * 20
    full = estimate(config(), sample, [run_of(1000, 64)], 100_000, 0).whole
    half = estimate(config(), sample, [run_of(1000, 32)], 100_000, 0).whole
    assert full.seconds is not None
    assert half.seconds is not None
    assert half.seconds.high == pytest.approx(full.seconds.mid, rel=0.05)
    assert half.seconds.low == pytest.approx(full.seconds.mid / 2, rel=0.1)


def test_speed_counts_spans_without_a_report() -> None:
    """Engines report in batches: here every 8 seconds, recorded every 2."""
    lines = [
        Figures(
            "", float(at), 0, 0, ready_seconds=1.0,
            tokens={"prompt": 0, "output": 0, "spent": at // 8 * 8 * 500},
            engines=[EngineFigures("e", 64, 0, None, 0)], engine_pool=EnginePool(1, 4, 64),
        )
        for at in range(0, 161, 2)
    ]  # fmt: skip
    speed = measure_speed([lines], EnginePool(1, 4, 64))
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(500, rel=0.02)


def test_speed_counts_tokens_that_are_not_reported_yet() -> None:
    """64 sequences at 1,000 tokens/s together, each with 32 tokens not reported."""
    lines = [
        Figures(
            "", float(at), 0, 0, ready_seconds=3.0, states={"finished": 5},
            tokens={"prompt": 0, "output": 5000, "spent": max(0, (at - 5) * 1000 - 64 * 32)},
            engines=[EngineFigures("e", 64 * (at > 5), 0, None, 0)] if at > 3 else [],
            engine_pool=EnginePool(1, 4, 64),
        )
        for at in range(30)
    ]  # fmt: skip
    speed = measure_speed([lines], EnginePool(1, 4, 64))
    assert speed is not None
    assert speed.tokens_per_second == pytest.approx(1000)


def test_pilot_whose_traces_all_failed_still_gives_an_estimate() -> None:
    sample = [[trace(0, 0, state="failed", error="template_error: no")]] * 5
    projected = estimate(config(), sample, [], 100, 95)
    assert "100.0% failed, most of them with: template_error: no" in "\n".join(projected.lines())
    assert projected.to_json()["lengths"] == {}


def test_speed_is_measured_on_like_engines_while_they_are_full() -> None:
    engine_pool = EnginePool(8, 4, 64)
    speed = measure_speed([run_of(500, 8, slots=16), run_of(2000, 64)], engine_pool)
    assert speed is not None
    assert speed.running == 64
    assert speed.tokens_per_second == 2000
    assert all(t == 2000 * s for t, s in zip(speed.tokens, speed.seconds, strict=True))
    assert min(speed.seconds) >= 10
    assert measure_speed([run_of(500, 8, slots=16)], engine_pool) is None
    assert measure_speed([], engine_pool) is None


def test_without_a_record_there_are_tokens_and_no_times() -> None:
    projected = estimate(config(prices=PRICES), [[trace(10)]], [], 10, 10)
    assert projected.whole.seconds is projected.whole.cost is None
    assert projected.whole.api_cost is not None
    assert "time" not in "\n".join(projected.lines())


@pytest.mark.parametrize(
    ("traces", "message"),
    [
        ([trace(100, state="truncated")] * 5, "5% of the traces run out of tokens"),
        (
            [trace(100, state="rescued", closed_by="budget")] * 5,
            "5% of the traces run out of tokens",
        ),
        (
            [trace(100, state="rescued", closed_by="loop")] * 5,
            "5% of the traces still loop at the end",
        ),
        ([trace(100, state="unparsed")] * 20, "20% of the answers are not in answer.format"),
        (
            [trace(0, state="failed", error="prompt_too_long: 99")],
            "1.0% failed, most of them with",
        ),
        ([trace(100, state="truncated")] * 2, None),
    ],
)
def test_advice(traces: list[dict[str, Any]], message: str | None) -> None:
    sample = [[one] for one in [*traces, *[trace(100)] * (100 - len(traces))]]
    advice = estimate(config(), sample, [], 100, 0).advice
    if message is None:
        assert advice == ()
    else:
        assert message in advice[0]


def test_nothing_left_costs_nothing() -> None:
    projected = estimate(config(), [[trace(10)]] * 5, [run_of(2000, 64)], 5, 0)
    assert projected.left.seconds is not None
    assert projected.left.seconds.high == projected.left.output_tokens.high == 0


def test_lines_and_json_of_an_estimate() -> None:
    projected = estimate(config(prices=PRICES), [[trace(900)]] * 200, [run_of(2000, 64)], 10**6, 0)
    text = "\n".join(projected.lines())
    assert "output     1,000 (1,000 to 1,000) million tokens" in text
    assert "with 64 of 64 slots in use" in text
    assert projected.to_json()["whole"]["output_tokens"] == {"mid": 1e9, "low": 1e9, "high": 1e9}
    assert projected.to_json()["lengths"]["think"] == {"p50": 900, "p95": 900, "p99": 900}


def test_record_is_read_back_by_run(tmp_path: Path) -> None:
    url = write_output(tmp_path, [{}])
    for replicas in (1, 3):
        write_record(url, EnginePool(replicas, 1, 8), seconds=300)
    runs = list(all_figures(Storage(url)))
    assert sorted(len(run) for run in runs) == [151, 151]  # more than a file's lines
    assert all(list(run) == sorted(run, key=lambda f: f.seconds) for run in runs)
    assert Counter(run[0].engine_pool.replicas for run in runs) == {1: 1, 3: 1}
    estimate(config(), [[trace(1)]], runs, 1, 1)


def test_slots_that_are_not_set_are_those_of_the_pilot() -> None:
    """They follow from the GPUs' memory; 64 would find no speed in the record."""
    unset = config(engine={"tensor_parallel": 4})
    found = estimate(unset, [[trace(900)]] * 200, [run_of(2000, 128, 128)], 10**6, 0)
    assert found.engine_pool.slots == 128
    assert found.speed is not None


EARLY: dict[str, Any] = {"thinking": {"early_answer": {}}, "answer": {"format": "boxed"}}


def early_rows(control: int) -> list[list[dict[str, Any]]]:
    """Rows that take 400 tokens closed early, beside ``control`` ones of 900 to their end."""
    closed = {"control": False, "early_tokens": 300, "probe_tokens": 20}
    group = {"control": True, "early_tokens": 300, "probe_tokens": 20}
    return [[trace(280, 100, **closed)]] * (200 - control) + [[trace(800, 100, **group)]] * control


def test_probes_cost_tokens_and_time() -> None:
    sample, record = early_rows(0), [run_of(2000, 64)]
    whole = estimate(config(prices=PRICES, **EARLY), sample, record, 100_000, 0).whole
    assert whole.output_tokens.mid == 100_000 * 400
    without = [[{**row[0], "probe_tokens": 0}] for row in sample]
    less = estimate(config(prices=PRICES, **EARLY), without, record, 100_000, 0).whole
    assert less.cost is not None
    assert whole.cost is not None
    assert whole.cost.mid == pytest.approx(less.cost.mid * 400 / 380, rel=0.01)
    assert whole.api_cost == less.api_cost, "an API has no probes"


def test_without_early_answers_is_projected_from_the_control_group() -> None:
    projected = estimate(config(prices=PRICES, **EARLY), early_rows(40), [], 100_000, 0)
    assert projected.whole.output_tokens.mid == 100_000 * (0.8 * 400 + 0.2 * 920)
    without = projected.without_early
    assert without is not None
    assert without.whole is not None
    assert without.whole.output_tokens.mid == 100_000 * 900
    assert without.saving is not None
    assert without.saving.mid == without.saving.low == pytest.approx(1 - 420 / 900)
    text = "\n".join(projected.lines())
    assert "without early answers: 100,000 rows, projected from 40 control rows" in text
    assert "saving     closing early saves 53% (53 to 53%) of a row's tokens" in text
    assert projected.to_json()["without_early_answers"]["control_rows"] == 40


def test_few_control_rows_are_too_few_for_a_projection() -> None:
    few = estimate(config(**EARLY), early_rows(19), [], 1000, 0)
    assert few.without_early is not None
    assert few.without_early.whole is None
    assert any("no projection from 19 control rows (20 are enough" in line for line in few.lines())
    plain = estimate(config(), [[trace(900)]] * 30, [], 1000, 0)
    assert plain.without_early is None
    assert "without_early_answers" not in plain.to_json()


def test_range_of_engines_takes_the_time_of_most_to_fewest() -> None:
    sample, runs = [[trace(900)]] * 200, [run_of(2000, 64)]

    def projected(replicas: object) -> Projection:
        engine = {"replicas": replicas, "tensor_parallel": 4, "vllm": {"max_num_seqs": 64}}
        return estimate(config(engine=engine), sample, runs, 100_000, 0).whole

    both = projected([1, 8])
    assert both.seconds == projected(8).seconds
    assert both.seconds_with_fewest == projected(1).seconds
    assert projected(8).seconds_with_fewest is None
    assert "seconds_with_fewest" not in projected(8).to_json()
    times = [line.split(" with ")[1] for line in both.lines(EnginePool(8, 4, 64, None, 1))
             if "time" in line]  # fmt: skip
    assert times == ["8 engines", "one engine"]
