"""The simulated engine keeps the time of a real one; here on a clock that jumps."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from jobs.bench.virtual_time import run
from pipeline.config.simulated import SimulatedConfig
from pipeline.engines.protocol import Request
from pipeline.engines.simulated import SimulatedEngine
from pipeline.engines.simulated_scheduler import Scheduler, Steps
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import EARLY_STOP
from pipeline.reasoning.sampling import SamplingPolicy
from pipeline.reasoning.think_format import THINK_TAGS

TOKENIZER = load_tokenizer("qwq-nano")
POLICY = SamplingPolicy(max_tokens=1000)
# The published figures that the benchmarks' engine is calibrated to; see jobs/bench/tails.py.
STEP = {"seconds_per_token": 0.0155, "seconds_per_sequence": 0.00024}


def engine(slots: int, **settings: Any) -> SimulatedEngine:
    config = SimulatedConfig(tokens_median=200, tokens_sigma=0, **settings)
    return SimulatedEngine(config, THINK_TAGS, Scheduler(slots, Steps(config)), TOKENIZER)


async def generate(to: SimulatedEngine, count: int, prompt: int = 1) -> None:
    requests = [
        Request(str(i), [0] * prompt, (), SamplingPolicy(max_tokens=1000), i) for i in range(count)
    ]
    await asyncio.gather(*(to.generate(request, lambda _: False) for request in requests))


@pytest.mark.parametrize(("sequences", "published"), [(8, 475), (16, 827), (32, 1294), (64, 2079)])
def test_pace_is_that_of_a_published_engine(sequences: int, published: int) -> None:
    took = run(generate(engine(64, **STEP), sequences))
    assert sequences * 200 / took == pytest.approx(published, rel=0.07)


def test_requests_beyond_the_slots_wait() -> None:
    one = run(generate(engine(4, **STEP), 4))
    assert run(generate(engine(4, **STEP), 12)) == pytest.approx(3 * one, rel=1e-6)


def test_prefill_and_long_contexts_take_time() -> None:
    plain = run(generate(engine(4, **STEP), 1))
    prefill = run(generate(engine(4, **STEP, seconds_per_prompt_token=0.01), 1, 100))
    assert prefill == pytest.approx(plain + 1)
    context = run(generate(engine(4, **STEP, seconds_per_kv_token=1e-5), 1, 1000))
    assert context == pytest.approx(plain + 200 * 1e-5 * (1000 + 100), rel=0.05)


def test_sequences_that_end_leave_the_others_faster() -> None:
    async def two() -> None:
        to = engine(4, seconds_per_sequence=0.01, seconds_per_token=0)
        short = Request("a", [0], (), SamplingPolicy(max_tokens=64), 1)
        long = Request("b", [0], (), SamplingPolicy(max_tokens=128), 2)
        await asyncio.gather(*(to.generate(r, lambda _: False) for r in (short, long)))

    # 64 steps of both at 0.02 s, then 64 of one at 0.01 s.
    assert run(two()) == pytest.approx(64 * 0.02 + 64 * 0.01)


def test_share_of_traces_changes_its_mind_after_all_its_thinking() -> None:
    def answers(share: float, carried: str = "") -> list[str]:
        to, found = engine(64, changes_mind=share, seconds_per_token=0), list[str]()

        async def all_of() -> None:
            for seed in range(60):
                tokens = list[int]()

                def take(new: Sequence[int], tokens: list[int] = tokens) -> bool:
                    tokens += new
                    return False

                request = Request("a", [0], tuple(TOKENIZER.encode(carried)), POLICY, seed)
                await to.generate(request, take)
                found.append(TOKENIZER.decode(tokens).rpartition("</think>")[2].strip())

        run(all_of())
        return found

    full, closed = answers(0.0), f"So.{EARLY_STOP}"
    differ = [one != other for one, other in zip(full, answers(0.3), strict=True)]
    assert 8 <= sum(differ) <= 30
    assert answers(0.3, closed) == answers(0.0, closed) == full
