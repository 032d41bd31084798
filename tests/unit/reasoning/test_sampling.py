"""The policy: the cards' values, warnings that name their setting, seeds."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reasoning.policy import ThinkingPolicy
from pipeline.reasoning.sampling import (
    APPLIED_HERE,
    PRESETS,
    PresetName,
    SamplingPolicy,
    continued_seed,
    derive_seed,
    needed_samples,
    warnings,
)

MANIFEST = Path(__file__).parents[2] / "data/output-0.1.0/out/__qwq/manifest.yaml"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_cards_and_warn_of_nothing(preset: PresetName) -> None:
    policy = PRESETS[preset].sampling
    assert (policy.temperature, policy.top_p, policy.min_p) == (0.6, 0.95, 0.0)
    assert policy.top_k == (-1 if preset == "qwen2" else 40)
    assert policy.max_tokens == 32_768
    assert list(warnings(policy, preset)) == []


def test_engine_gets_every_parameter_that_the_pipeline_does_not_apply_itself() -> None:
    policy = SamplingPolicy(top_k=30)
    assert policy.engine_parameters == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 30, "min_p": 0.0, "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
    }  # fmt: skip
    assert SamplingPolicy.model_fields.keys() > APPLIED_HERE


@pytest.mark.parametrize(
    ("section", "settings"),
    [("sampling", SamplingPolicy().model_dump()), ("thinking", ThinkingPolicy().settings())],
)
def test_settings_that_version_0_1_0_did_not_have_default_to_none(
    section: str, settings: dict[str, Any]
) -> None:
    """A key that a manifest lacks counts as None; another default would refuse its output."""
    recorded = yaml.safe_load(MANIFEST.read_text())["settings"]
    added = [value for name, value in settings.items() if f"{section}.{name}" not in recorded]
    assert set(added) <= {None}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 50), ("top_k", -1), ("temperature", 0.2), ("temperature", 1.2), ("top_p", 0.5),
        ("min_p", 0.1), ("repetition_penalty", 1.1), ("presence_penalty", 2.0), ("max_tokens", 16),
    ],
)  # fmt: skip
def test_unwise_value_is_warned_of_by_name(name: str, value: float) -> None:
    changed: dict[str, Any] = {name: value}
    [warning] = warnings(SamplingPolicy(**changed), "qwq-32b")
    assert warning.startswith(f"sampling.{name} is {value}")
    qwen2 = PRESETS["qwen2"].sampling.model_copy(update=changed)
    assert all("QwQ" not in line for line in warnings(qwen2, "qwen2"))


def test_seeds_are_the_same_on_every_machine_and_rerun() -> None:
    assert derive_seed(0, "a/shard-00001", 17, 3) == derive_seed(0, "a/shard-00001", 17, 3)
    assert derive_seed(0, "shard", 0, 0) == 51133809074332


@given(st.integers(0), st.text(), st.integers(0), st.integers(0))
def test_seeds_fit_a_float64_without_loss(run: int, shard: str, row: int, sample: int) -> None:
    seed = derive_seed(run, shard, row, sample)
    assert 0 <= seed < 2**48
    assert int(float(seed)) == seed


def test_seeds_differ_between_rows_samples_shards_and_runs() -> None:
    seeds = {
        derive_seed(run, shard, row, sample, attempt)
        for run in range(3) for shard in ("a", "b") for row in range(20) for sample in range(8)
        for attempt in range(3)
    }  # fmt: skip
    assert len(seeds) == 3 * 2 * 20 * 8 * 3


def test_continued_trace_does_not_draw_the_same_numbers_again() -> None:
    assert continued_seed(7, 0) == 7
    assert len({continued_seed(7, tokens) for tokens in range(1000)}) == 1000


def drawn_in_waves(answers: Sequence[str | None], agree: int, most: int) -> int:
    """How many samples there are if each draw is as many as might just do, once the last ended."""
    drawn, draw = 0, min(agree, most)
    while draw:
        drawn += draw
        counts = Counter(answer for answer in answers[:drawn] if answer is not None)
        draw = min(agree - max(counts.values(), default=0), most - drawn)
    return drawn


@given(
    st.lists(st.none() | st.sampled_from("ABC"), min_size=1, max_size=40),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_samples_side_by_side_are_those_of_waves_whatever_ends_first(
    answers: list[str | None], agree: int, order: Random, may_draw_ahead: bool
) -> None:
    most = len(answers)
    agree = min(agree, most)
    expected = drawn_in_waves(answers, agree, most)
    best = [max(answers[:i].count(letter) for letter in "ABC") for i in range(most + 1)]
    assert expected == next((i for i in range(most + 1) if best[i] == agree), most)
    ended: dict[int, str | None] = {}
    needed = started = needed_samples(ended, agree, most)
    while left := [i for i in range(started) if i not in ended and i < needed]:
        assert needed <= expected  # none is started in vain
        if may_draw_ahead:
            started = min(most, started + order.randrange(3))
            left = [i for i in range(started) if i not in ended]
        i = order.choice(left)
        ended[i] = answers[i]
        needed = needed_samples(ended, agree, most)
        started = max(started, needed)
    assert needed == expected


def test_each_answer_is_looked_at_once_however_many_samples_differ() -> None:
    """It runs in an engine's event loop, each time that a sample ends."""

    class Answers(dict[int, str | None]):
        looks = 0

        def __getitem__(self, number: int) -> str | None:
            self.looks += 1
            return super().__getitem__(number)

    answers = Answers({i: str(i) for i in range(1000)})
    assert needed_samples(answers, 4, 1000) == 1000
    assert answers.looks <= 1000
