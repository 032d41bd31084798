"""Early answers: where thinking is probed, when its answer has settled, who is in the control group."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.answers.base import AnswerFormat
from pipeline.answers.formats import answer_format
from pipeline.answers.json_schema import canonical, form_of
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.early_answer import (
    LONGEST_GAP,
    EarlyAnswer,
    Probe,
    ProbePoints,
    is_control,
    may_probe,
    settled,
)
from pipeline.reasoning.policy import (
    SETTLED,
    AnswerPass,
    ClosedBy,
    ThinkingPolicy,
    TracePolicy,
    TraceProgress,
)
from pipeline.reasoning.probes import ProbeForm
from pipeline.reasoning.sampling import SamplingPolicy
from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, ThinkFormat
from pipeline.reasoning.trace import TraceMaker

TOKENIZER = load_tokenizer("qwq-nano")
SIGN, OTHER, WORD = (7, 8), (9,), 1
EVERY = 4


def encode(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False)
    return ids


def form_for(
    answers: AnswerFormat, think_format: ThinkFormat = THINK_TAGS, **early: object
) -> ProbeForm:
    maker = TraceMaker(TOKENIZER, think_format, answers)
    return maker.probe_form(EarlyAnswer.model_validate(early))


def points_in(token_ids: Sequence[int], *sizes: int, signs: bool = True) -> list[int]:
    """The points that are found when the tokens come in pieces of ``sizes``, then the rest."""
    points, found, end = ProbePoints([SIGN, OTHER] if signs else [], EVERY), list[int](), 0
    for size in (*sizes, len(token_ids)):
        end += size
        found += points.new(token_ids[:end])
    return found


def test_points_are_before_signs_at_least_so_far_apart() -> None:
    words = [WORD] * 3
    assert points_in([*SIGN, *words, *SIGN, WORD, *OTHER, *words, *OTHER, WORD]) == [5, 12]


def test_without_a_sign_a_point_comes_after_the_longest_gap_and_without_signs_at_the_distance() -> (
    None
):
    gap = EVERY * LONGEST_GAP
    assert points_in([WORD] * (2 * gap + 3)) == [gap, 2 * gap]
    assert points_in([WORD] * 10, signs=False) == [4, 8]


@given(st.lists(st.sampled_from([WORD, 7, 8, 9]), max_size=80), st.lists(st.integers(0, 9)))
def test_points_do_not_depend_on_how_the_tokens_come(tokens: list[int], sizes: list[int]) -> None:
    assert points_in(tokens, *sizes) == points_in(tokens)


def test_answer_has_settled_with_the_first_probe_that_completes_a_row_of_equal_ones() -> None:
    probes = [
        Probe(10, 3, "1", 1),
        Probe(20, 3, "1", 2),
        Probe(30, 3, None, 0),
        Probe(40, 3, "1", 1),
    ]
    assert settled(probes, 2) == probes[1]
    assert settled(probes, 3) is None
    assert settled([], 1) is None


@given(st.lists(st.integers(1, 40), max_size=30), st.sampled_from([0.02, 0.08, 0.5]))
def test_probes_stay_within_their_share_but_for_the_last(costs: list[int], share: float) -> None:
    early, probes = EarlyAnswer(probe_share=share), list[Probe]()
    for number, cost in enumerate(costs):
        at = 10 * (number + 1)
        if may_probe(early, probes, at, 64):
            assert sum(probe.tokens for probe in probes) <= share * at
            probes.append(Probe(at, cost, "1", 1))


def test_control_group_has_its_share_of_the_rows_and_is_the_same_each_time() -> None:
    rows = [("a.parquet", row) for row in range(2000)] + [("b.parquet", row) for row in range(2000)]
    group = {row for row in rows if is_control(3, *row, 0.05)}
    assert 150 < len(group) < 250
    assert group == {row for row in rows if is_control(3, *row, 0.05)}
    assert group < {row for row in rows if is_control(3, *row, 0.1)}  # a larger share adds rows
    assert group != {row for row in rows if is_control(4, *row, 0.05)}
    assert all(is_control(0, *row, 1.0) for row in rows)
    assert not any(is_control(0, *row, 0.0) for row in rows)


@pytest.mark.parametrize(
    ("name", "said", "whole", "value"),
    [
        ("boxed", "165}", True, "165"),
        ("boxed", r"\frac{1}", False, None),
        ("boxed", r"\frac{1}{2}}.", True, r"\frac{1}{2}"),
        ("boxed", "165", True, None),  # the turn ended without a brace
        ("choice", 'C"', True, "C"),
        ("choice", "C", True, None),
        ("choice", 'none of them"', True, None),
    ],
)
def test_probe_reads_an_answer_that_is_whole(
    name: str, said: str, whole: bool, value: str | None
) -> None:
    form = form_for(answer_format(name))
    assert form.is_whole(encode(said)) == whole
    assert not form.is_whole([])
    assert value is None or form.read(encode(said)) == value
    assert whole is False or form.read(encode(said)) == value


def test_probe_closes_the_thinking_and_begins_the_answer() -> None:
    asked = {
        think: TOKENIZER.decode(form_for(answer_format("boxed"), think).opening)
        for think in (THINK_TAGS, HEADINGS)
    }
    assert asked[THINK_TAGS].endswith("directly now.\n</think>\n\n\\boxed{")
    assert asked[HEADINGS].endswith("directly now.\n\n**Final Answer**\n\n\\boxed{")
    form = form_for(answer_format("boxed"))
    assert all("}" in TOKENIZER.decode([number]) for number in form.stop_ids)
    assert encode("}")[0] in form.stop_ids


def one_of(*values: object) -> dict[str, Any]:
    """The schema of a label."""
    properties = {"label": {"enum": list(values)}}
    return {"type": "object", "properties": properties, "required": ["label"]}


def test_probe_of_json_asks_for_the_only_value_or_for_all() -> None:
    one = one_of(1, 22)
    form = form_for(answer_format("json", form_of(one)))
    assert TOKENIZER.decode(form.opening).endswith('</think>\n\n{"label": ')
    assert form.schema == '{"enum":[1,22]}'
    assert form.read(encode("22")) == '{"label": 22}'
    assert form.read(encode("2")) is None
    two = {**one, "properties": {**one["properties"], "why": {"type": "string"}}}
    referring = {
        **one,
        "properties": {"label": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"enum": [1]}},
    }
    optional = {**one, "required": []}
    for schema in (two, referring, optional):
        whole = form_for(answer_format("json", form_of(schema)))
        assert TOKENIZER.decode(whole.opening).endswith("</think>\n\n")
        assert whole.schema == form_of(schema).text
    assert form_for(answer_format("json", form_of(optional))).read(encode("{}")) == "{}"


@pytest.mark.parametrize(
    ("labels", "tokens", "said"),
    [
        (("billing", "delivery", "other"), 1, {"b": "billing", "d": "delivery", "x": None}),
        (("bill", "billing"), 5, {"bill": None, 'bill"': "bill", "billi": "billing", "bi": None}),
        (("ja", "nein", 'ja "'), 3, {"n": "nein", 'ja"': "ja", "ja": None, "ja ": 'ja "'}),
        (("é", "è"), 2, {"é": "é", "è": "è", "e": None}),  # the same first byte
        (("yes",), 1, {"y": "yes", "no": None}),
        (("", "no"), 1, {'"': "", "n": "no"}),
    ],
)
def test_probe_of_a_label_ends_when_it_can_be_no_other(
    labels: tuple[str, ...], tokens: int, said: dict[str, str | None]
) -> None:
    form = form_for(answer_format("json", form_of(one_of(*labels))))
    assert TOKENIZER.decode(form.opening).endswith('</think>\n\n{"label": "')
    assert (form.schema, form.tokens) == (None, tokens)
    for text, label in said.items():
        value = None if label is None else canonical({"label": label})
        assert form.read(encode(text), "length") == value
    assert form.read(encode("é")[:1], "length") is None or "é" not in labels


def test_probe_without_its_end_has_no_value() -> None:
    form = form_for(answer_format("boxed"))
    assert form.read(encode("12}"), "length") is None


def test_probe_of_any_other_format_is_a_short_answer() -> None:
    class Shout(AnswerFormat):
        def parse(self, answer: str) -> str | None:
            return answer.strip() if answer.isupper() else None

    form = form_for(Shout())
    assert (form.stop_ids, form.schema, form.tokens) == ((), None, 64)
    assert (form.read(encode("YES")), form.read(encode("yes"))) == ("YES", None)
    assert form.same("YES", "YES")
    assert not form.same("YES", "NO")


def test_probe_is_greedy_and_bounded() -> None:
    policy = SamplingPolicy(presence_penalty=1.5, max_tokens=9000, min_p=0.1)
    sampling = form_for(answer_format("boxed")).sampling(policy, 500)
    assert sampling.max_tokens == 564
    assert sampling.engine_parameters["temperature"] == 0
    assert sampling.engine_parameters["presence_penalty"] == 0


def test_formulas_of_equal_value_are_the_same_answer() -> None:
    form = form_for(answer_format("boxed"))
    assert form.same(r"\frac{1}{2}", "0.5")
    assert form.same(r"\frac{1}{3}", "0.5") is False
    assert form.same("9^{9^{9^9}}", "9^{9^{9^{9}}}+x") is None, "it would take too long to tell"


def policy_of(answer: AnswerPass | None = None) -> TracePolicy:
    thinking = ThinkingPolicy(answer_tokens=20, early_answer=EarlyAnswer(agree=2))
    closed = lambda ids: 7 in ids  # noqa: E731
    return TracePolicy(SamplingPolicy(max_tokens=100), thinking, 200, (3, 7), closed, answer)


@pytest.mark.parametrize("schema", [None, '{"type":"integer"}'])
def test_thinking_is_closed_where_its_answer_had_settled(schema: str | None) -> None:
    answer = None if schema is None else AnswerPass(schema, 7, (5,))
    policy, progress = policy_of(answer), TraceProgress(carried=28)
    progress.report([WORD] * 30)
    progress.probes = [Probe(10, 4, "5", 1), Probe(20, 6, "5", 2), Probe(25, 4, "6", 1)]
    assert policy.next_step(progress, 0, 150).probes
    policy.end_step(progress, SETTLED, 150)
    assert progress.token_ids.tolist() == [WORD] * 20 + [3, 7]
    assert (progress.closed_by, progress.closed_at) == (ClosedBy.EARLY_ANSWER, 20)
    assert (progress.wasted_tokens, progress.carried, progress.finish_reason) == (10, 20, None)
    step = policy.next_step(progress, 0, 150)
    assert (step.policy.max_tokens, step.schema, step.probes) == (42, schema, False)


def test_try_that_is_given_up_takes_its_probes_along_as_wasted() -> None:
    policy, progress = policy_of(), TraceProgress()
    progress.report([WORD] * 30)
    progress.probes = [Probe(10, 4, "5", 1), Probe(20, 6, "6", 1)]
    policy.end_step(progress, "repetition", 150)
    assert (progress.tries, progress.probes, progress.wasted_tokens) == (1, [], 40)


def test_without_the_setting_no_step_is_probed_and_no_setting_is_named() -> None:
    policy = TracePolicy(SamplingPolicy(), ThinkingPolicy(), 200, (3, 7), lambda ids: 7 in ids)
    assert not policy.next_step(TraceProgress(), 0, 100).probes
    # As they were before there were early answers: footers and manifests stay the same.
    assert list(ThinkingPolicy().settings()) == [
        "budget_tokens", "rescue", "answer_tokens", "detect_loops", "loop_retries",
        "loop_presence_penalty",
    ]  # fmt: skip
    named = ThinkingPolicy(early_answer=EarlyAnswer(agree=2)).settings()
    assert (named["early_answer.agree"], named["early_answer.control_share"]) == (2, 0.05)
    assert isinstance(named["early_answer.signs"], list)
    assert "early_answer.min_agreement" not in named
