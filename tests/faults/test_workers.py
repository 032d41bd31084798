"""Workers that share an output are killed, stopped and late; nothing is lost or done twice."""

import sys
from signal import SIGCONT, SIGKILL, SIGSTOP

import pytest

from tests.faults.conftest import NewCase
from tests.faults.harness import ONE_ENGINE
from tests.s3 import S3Server

EXPIRE_SECONDS = 8
SLOTS, TOKENS = 16, 400
HASTY = (
    sys.executable,
    "-c",
    "import pipeline.output.workers as workers; "
    f"workers.RENEW_SECONDS, workers.EXPIRE_SECONDS = 1, {EXPIRE_SECONDS}; "
    "import pipeline.execution.claimed_rows as rows; rows.WAIT_SECONDS = rows.WORTH_SECONDS = 1; "
    "from pipeline.cli import main; main()",
)


def test_one_worker_is_killed_one_sleeps_too_long_and_one_comes_late(
    new_case: NewCase, s3: S3Server
) -> None:
    case = new_case(
        "three workers on S3: one killed, one asleep and woken, one late",
        sizes=[120, 150],
        server=s3,
        engine={
            **ONE_ENGINE, "vllm": {"max_num_seqs": SLOTS},
            "simulated": {"tokens_median": TOKENS, "tokens_sigma": 0.3},
        },
    )  # fmt: skip
    killed, sleeper = (case.start(HASTY, shared=True) for _ in range(2))
    killed.must_reach(lambda: len(case.output.workers()) == 2, "two workers")
    first = case.output.workers()
    killed.must_reach(lambda: len(case.output.finished()) > 3, "some blocks")
    killed.must_reach(case.progress(), "some more")
    case.remember()
    sleeper.signal(SIGSTOP)
    killed.signal(SIGKILL)
    late = case.start(HASTY, shared=True)
    late.must_reach(lambda: not first & case.output.workers(), "the others to count as dead")
    late.must_reach(case.progress(), "some of their rows")
    case.remember()
    sleeper.signal(SIGCONT)
    sleeper.must_reach(lambda: len(case.output.workers()) == 2, "the sleeper to join again")
    case.remember()
    for worker in (sleeper, late):
        assert worker.wait() == 0, worker.told()
    assert "taken its rows over; it joins again" in sleeper.printed, sleeper.told()
    assert not case.output.workers()
    outcome = case.check()
    # Of the killed one, what it had not saved; of the sleeper, whose engines went on, all that it
    # held when it was given up, and what it was given meanwhile.
    assert outcome.tokens_twice is not None
    assert outcome.tokens_twice < 4 * SLOTS * TOKENS, outcome


@pytest.mark.long
def test_workers_that_begin_a_top_up_at_the_same_time(new_case: NewCase) -> None:
    """Only one of them can open it; the other helps."""
    case = new_case(
        "two workers begin a top-up at once",
        sizes=[60, 60],
        engine={**ONE_ENGINE, "simulated": {"tokens_median": 60}},
    )
    case.finish(case.start(HASTY, ["sampling.n=1"], shared=True))
    case.remember()
    both = [case.start(HASTY, shared=True) for _ in range(2)]
    for worker in both:
        assert worker.wait() == 0, worker.told()
    assert case.check().generated_twice == 0


def test_slow_worker_hands_its_last_rows_over_with_their_tokens(new_case: NewCase) -> None:
    """Its traces take five times as long; the last ones end elsewhere, from where they were."""
    case = new_case(
        "a slow worker hands its last rows over",
        sizes=[60, 40],
        samples=1,
        engine={
            **ONE_ENGINE, "vllm": {"max_num_seqs": SLOTS},
            "simulated": {"tokens_sigma": 0.3, "seconds_per_token": 0.03},
        },
    )  # fmt: skip
    quick = case.start(HASTY, shared=True)
    quick.must_reach(case.output.finished, "its first rows")
    slow = case.start(HASTY, ["engine.simulated.seconds_per_token=0.15"], shared=True)
    for worker in (slow, quick):
        assert worker.wait() == 0, worker.told()
    assert "rows go to faster workers" in slow.printed, slow.told()
    assert "rows go to faster workers" not in quick.printed, quick.told()
    outcome = case.check()
    assert outcome.carried_tokens
    assert outcome.generated_twice == 0, outcome
