"""The reasoning policy: every trace ends, within its budgets, however the model behaves."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.policy import (
    AnswerPass,
    ClosedBy,
    ThinkingPolicy,
    TracePolicy,
    TraceProgress,
)
from pipeline.reasoning.sampling import SamplingPolicy
from pipeline.reasoning.think_format import HEADINGS, THINK_TAGS, State, ThinkFormat
from pipeline.reasoning.trace import TraceMaker

# As Qwen wrote it for its models, which have been trained on it: to be changed by nobody.
QWENS_PHRASE = (
    "Considering the limited time by the user, I have to give the solution based on the thinking "
    "directly now."
)
CLOSE, WORD, END = 7, 1, 9
CLOSING_IDS = (3, 4, 5, CLOSE)
THINKING = ThinkingPolicy(answer_tokens=20)


def rules(
    context: int = 200, max_tokens: int = 100, answer: AnswerPass | None = None, **thinking: object
) -> TracePolicy:
    return TracePolicy(
        SamplingPolicy(max_tokens=max_tokens),
        THINKING.model_copy(update=thinking),
        context,
        CLOSING_IDS,
        lambda ids: CLOSE in ids,
        answer,
    )


def run(
    policy: TracePolicy,
    progress: TraceProgress,
    behaviour: Sequence[tuple[int, str]],
    prompt: int = 10,
) -> list[tuple[int, int]]:
    """Follow the policy with a model that in each step says so many words and then does this.

    ``stop``, ``close`` (its thinking, then ends there if it is to, else as the limit says) or
    ``repetition``. Returns seed and most tokens of each step.
    """
    max_output_tokens, steps = policy.max_output_tokens(prompt), []
    script = iter(behaviour)
    while progress.finish_reason is None:
        step = policy.next_step(progress, 42, max_output_tokens)
        steps.append((step.seed, step.policy.max_tokens))
        left = max(0, step.policy.max_tokens - len(progress.token_ids))
        words, what = next(script, (left, "length"))
        new = [WORD] * words
        if what == "close":
            new += [CLOSE]
        if what == "stop":
            new += [END]
        cut = new[:left]
        progress.report(cut)
        ended = len(cut) == len(new) and what in ("stop", "repetition")
        if what == "repetition" and not step.watch_loops:
            ended = False
        if step.stop_id is not None and step.stop_id in cut:
            ended, what = True, "stop"
        if not ended and len(cut) < left:  # talks on
            progress.report([WORD] * (left - len(cut)))
        policy.end_step(progress, what if ended else "length", max_output_tokens)
    return steps


def test_trace_that_answers_by_itself_is_one_step() -> None:
    progress = TraceProgress()
    assert run(rules(), progress, [(50, "stop")]) == [(42, 100)]
    assert (progress.finish_reason, progress.closed_by, progress.tries) == ("stop", None, 0)


def test_thinking_that_runs_out_is_closed_and_answers() -> None:
    progress = TraceProgress()
    steps = run(rules(), progress, [(999, "length"), (5, "stop")])
    assert steps == [(42, 100), (42, 100 + 4 + 20)]
    assert progress.token_ids.tolist() == [WORD] * 100 + [*CLOSING_IDS] + [WORD] * 5 + [END]
    assert (progress.closed_by, progress.closed_at, progress.closing_tokens) == ("budget", 100, 4)


def test_loop_begins_again_under_another_seed_and_then_is_closed() -> None:
    policy = rules()
    progress = TraceProgress()
    steps = run(policy, progress, [(30, "repetition"), (40, "repetition"), (5, "stop")])
    assert len({seed for seed, _ in steps}) == 2
    assert (progress.tries, progress.wasted_tokens, progress.closed_by) == (1, 30, "loop")
    assert progress.token_ids.tolist() == [WORD] * 40 + [*CLOSING_IDS] + [WORD] * 5 + [END]
    again = policy.next_step(TraceProgress(tries=1), 42, 190)
    assert (again.policy.presence_penalty, again.watch_loops) == (0.5, True)
    assert policy.next_step(TraceProgress(), 42, 190).policy.presence_penalty == 0.0


def test_thinking_that_loops_is_closed_where_the_loop_began_if_that_is_certain() -> None:
    cutting = rules(loop_retries=0, cut_loops=True)
    progress, policy = TraceProgress(), replace(cutting, loop_onset=lambda _: 25)
    progress.report([WORD] * 30)
    progress.carried = 30
    steps = run(policy, progress, [(10, "repetition"), (5, "stop")])
    assert steps == [(42, 100), (42, 25 + 4 + 20)]
    assert progress.token_ids.tolist() == [WORD] * 25 + [*CLOSING_IDS] + [WORD] * 5 + [END]
    assert (progress.wasted_tokens, progress.carried, progress.tries) == (15, 25, 0)
    budget = TraceProgress()
    run(policy, budget, [(999, "length"), (5, "stop")])
    assert (budget.closed_at, budget.closed_by, budget.wasted_tokens) == (100, "budget", 0)
    whole, policy = TraceProgress(), replace(rules(loop_retries=0), loop_onset=lambda _: 25)
    run(policy, whole, [(40, "repetition"), (5, "stop")])
    assert (whole.closed_at, whole.wasted_tokens) == (40, 0)


def test_answer_that_has_begun_is_not_cut_by_the_thinking_budget() -> None:
    progress = TraceProgress()
    steps = run(rules(budget_tokens=30), progress, [(20, "close"), (40, "stop")])
    assert steps == [(42, 30), (42, 100)]
    assert (progress.finish_reason, progress.closed_by) == ("stop", None)


def test_answer_that_goes_in_circles_is_no_thinking_to_close() -> None:
    progress = TraceProgress()
    progress.report([WORD, CLOSE])
    run(rules(loop_retries=0), progress, [(30, "repetition")])
    assert (progress.finish_reason, progress.closed_by) == ("repetition", None)


def test_without_rescue_traces_end_as_they_do() -> None:
    for behaviour, reason in (((999, "length"), "length"), ((30, "repetition"), "repetition")):
        progress = TraceProgress()
        run(rules(rescue=False, loop_retries=0), progress, [behaviour])
        assert (progress.finish_reason, progress.closed_by) == (reason, None)


def test_thinking_leaves_room_in_the_context_for_an_answer() -> None:
    progress = TraceProgress()
    steps = run(rules(context=100), progress, [(999, "length"), (999, "length")], prompt=10)
    assert steps == [(42, 90 - 4 - 20), (42, 90)]
    assert len(progress.token_ids) == 90


JSON, OPENING_IDS = "{}", (6, 6)
APART = AnswerPass(JSON, CLOSE, OPENING_IDS, (END,))
PROSE_FIRST = AnswerPass(JSON, None, OPENING_IDS, (END,))


def test_answer_of_a_form_is_a_step_of_its_own_after_the_thinking() -> None:
    progress, policy = TraceProgress(), rules(answer=APART)
    assert policy.next_step(progress, 42, 190).stop_id == CLOSE
    assert policy.next_step(progress, 42, 190).schema is None
    steps = run(policy, progress, [(30, "close"), (5, "stop")])
    assert steps == [(42, 100), (42, 100)]
    assert progress.token_ids.tolist() == [WORD] * 30 + [CLOSE, 6, 6] + [WORD] * 5 + [END]
    assert (progress.finish_reason, progress.closed_by) == ("stop", None)
    closed = TraceProgress.restored({**progress.snapshot(), "finish_reason": None})
    step = policy.next_step(closed, 42, 190)
    assert (step.schema, step.stop_id, step.watch_loops) == (JSON, None, False)


def test_answer_of_a_form_has_what_is_left_of_all_tokens() -> None:
    policy = rules(answer=replace(APART, after_thinking=False))
    assert policy.next_step(TraceProgress(), 42, 190).policy.max_tokens == 100
    progress = TraceProgress()
    assert run(rules(answer=APART, answer_tokens=5), progress, [(10, "close"), (50, "stop")])[
        1
    ] == (42, 100)
    assert progress.finish_reason == "stop"


def test_answer_of_a_form_begins_anew_where_it_was_broken_off() -> None:
    progress, policy = TraceProgress(), rules(answer=APART)
    run(policy, progress, [(10, "close"), (5, "stop")])
    progress.finish_reason = None
    policy.next_step(progress, 42, 190)
    assert progress.token_ids.tolist() == [WORD] * 10 + [CLOSE, 6, 6]


def test_where_no_token_closes_the_thinking_the_turn_ends_first() -> None:
    progress = TraceProgress()
    run(rules(answer=PROSE_FIRST), progress, [(30, "stop"), (5, "stop")])
    assert progress.token_ids.tolist() == [WORD] * 30 + [6, 6] + [WORD] * 5 + [END]


def test_turn_that_ends_in_the_thinking_has_no_answer() -> None:
    progress = TraceProgress()
    run(rules(answer=APART), progress, [(30, "stop")])
    assert (progress.finish_reason, progress.closed_at) == ("stop", None)


def test_rescued_answer_has_its_form_too() -> None:
    progress, policy = TraceProgress(), rules(answer=APART)
    run(policy, progress, [(999, "length"), (5, "stop")])
    assert progress.closed_by == "budget"
    assert progress.token_ids.tolist()[100:] == [*CLOSING_IDS] + [WORD] * 5 + [END]


def test_without_rescue_thinking_still_leaves_room_for_an_answer_of_a_form() -> None:
    """A trace that closes its thinking itself has its answer; one that does not ends."""
    progress, policy = TraceProgress(), rules(context=100, rescue=False, answer=APART)
    limit = 90 - len(CLOSING_IDS) - 20
    assert run(policy, progress, [(limit - 1, "close"), (5, "stop")]) == [(42, limit), (42, 90)]
    assert progress.token_ids.tolist()[limit:] == [6, 6] + [WORD] * 5 + [END]
    assert (progress.finish_reason, progress.closed_by) == ("stop", None)
    for behaviour, reason in (((999, "length"), "length"), ((30, "repetition"), "repetition")):
        progress = TraceProgress()
        policy = rules(context=100, rescue=False, loop_retries=0, answer=APART)
        assert run(policy, progress, [behaviour]) == [(42, limit)]
        assert (progress.finish_reason, progress.closed_at) == (reason, None)
    plain = rules(context=100, rescue=False).next_step(TraceProgress(), 42, 90)
    assert plain.policy.max_tokens == 90


BEHAVIOURS = st.lists(
    st.tuples(st.integers(0, 150), st.sampled_from(["stop", "close", "repetition", "length"])),
    max_size=6,
)


@given(
    BEHAVIOURS, st.integers(12, 300), st.integers(1, 200), st.none() | st.integers(1, 200),
    st.integers(1, 60), st.booleans(), st.integers(0, 3), st.integers(1, 11),
    st.sampled_from([None, APART, PROSE_FIRST]),
)  # fmt: skip
def test_every_trace_ends_within_its_budgets(
    behaviour: list[tuple[int, str]], context: int, most: int, budget: int | None, answer: int,
    rescue: bool, retries: int, prompt: int, apart: AnswerPass | None,
) -> None:  # fmt: skip
    policy = rules(
        context,
        most,
        apart,
        budget_tokens=budget,
        answer_tokens=answer,
        rescue=rescue,
        loop_retries=retries,
    )
    progress = TraceProgress()
    steps = run(policy, progress, behaviour, prompt)
    assert len(steps) <= retries + 3
    assert progress.finish_reason in ("stop", "length", "repetition")
    ids = progress.token_ids.tolist()
    closing = progress.closing_tokens
    assert len(ids) - closing <= context - prompt
    if progress.closed_at is None:
        assert len(ids) <= min(most, context - prompt)
        if progress.finish_reason == "length" and (CLOSE not in ids or apart):
            assert not rescue
    else:
        at = progress.closed_at
        assert at <= min(most, budget or most)
        if progress.closed_by is None:
            assert apart
            assert ids[at - 1] == CLOSE if apart.stop_id else END not in ids[:at]
        elif not apart:
            assert CLOSE not in ids[:at]
        led_over = OPENING_IDS if progress.closed_by is None else CLOSING_IDS
        assert ids[at : at + closing] == [*led_over]
        left = 0 if progress.closed_by else most - at - closing  # of all tokens
        assert len(ids) - at - closing <= max(answer, left)
    assert progress.tries <= retries
    assert (progress.wasted_tokens > 0) <= (progress.tries > 0)


@given(BEHAVIOURS, st.integers(0, 3), st.sampled_from([None, APART, PROSE_FIRST]))
def test_trace_that_was_saved_goes_on_as_it_would_have(
    behaviour: list[tuple[int, str]], steps: int, apart: AnswerPass | None
) -> None:
    """Saved after any step and restored, the rest is the same."""
    policy, whole, broken = rules(answer=apart), TraceProgress(), TraceProgress()
    run(policy, whole, behaviour)
    max_output_tokens = policy.max_output_tokens(10)
    for words, what in behaviour[:steps]:
        if broken.finish_reason is None:
            step = policy.next_step(broken, 42, max_output_tokens)
            left = max(0, step.policy.max_tokens - len(broken.token_ids))
            new = ([WORD] * words + [CLOSE] * (what == "close") + [END] * (what == "stop"))[:left]
            broken.report(new)
            ended = len(new) == words + (what == "stop") and what in ("stop", "repetition")
            ended = ended and (what != "repetition" or step.watch_loops)
            if step.stop_id is not None and step.stop_id in new:
                ended, what = True, "stop"
            if not ended and len(new) < left:
                broken.report([WORD] * (left - len(new)))
            policy.end_step(broken, what if ended else "length", max_output_tokens)
    restored = TraceProgress.restored(broken.snapshot())
    assert restored == replace(broken, carried=0)
    if restored.finish_reason is None:
        run(policy, restored, behaviour[steps:])
    assert replace(restored, carried=0) == replace(whole, carried=0)


@pytest.mark.parametrize(
    ("model", "think_format", "closing"),
    [
        ("qwq-nano", THINK_TAGS, "\n</think>\n\n"),
        ("qwq-nano-preview", HEADINGS, "\n\n**Final Answer**\n\n"),
        ("qwq-nano", ThinkFormat(close="</t>", answer_open="<a>"), "\n</t>\n\n<a>\n\n"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "reason", "by", "state"),
    [
        (r"It is \boxed{3}.", "stop", ClosedBy.BUDGET, State.RESCUED),
        (r"It is \boxed{3}.", "stop", ClosedBy.LOOP, State.RESCUED),
        ("It is", "length", ClosedBy.BUDGET, State.TRUNCATED),
        ("", "stop", ClosedBy.BUDGET, State.TRUNCATED),
        ("\n", "stop", ClosedBy.LOOP, State.LOOPED),
    ],
)
def test_closing_phrase_is_in_neither_part(
    model: str,
    think_format: ThinkFormat,
    closing: str,
    answer: str,
    reason: str,
    by: ClosedBy,
    state: State,
) -> None:
    tokenizer = load_tokenizer(model)
    maker = TraceMaker(tokenizer, think_format)
    assert maker.text(maker.closing) == f"\n\n{QWENS_PHRASE}{closing}"
    progress = TraceProgress(tries=1, wasted_tokens=5)
    progress.report(tokenizer.encode("Let me see\nWait", add_special_tokens=False))
    progress.close(maker.closing, by)
    progress.report(tokenizer.encode(answer, add_special_tokens=False))
    progress.finish_reason = reason
    trace = maker.trace(progress, [65] * 11, sample=2, seed=7, attempt=0)
    assert (trace.state, trace.think) == (state, "Let me see\nWait")
    assert (trace.answer or "") == answer.strip("\n")
    assert (trace.think_tokens, trace.answer_tokens) == (len("Let me see\nWait"), len(answer))
    assert (trace.prompt_tokens, trace.think_foreign) == (11, 0.0)
    assert (trace.closed_by, trace.loop_retries, trace.wasted_tokens) == (by, 1, 5)
    assert QWENS_PHRASE in (trace.raw or "")
