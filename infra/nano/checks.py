"""Checks: qwq-nano thinks on after its first result, as large reasoning models do; no I/O.

The thinking is a row of attempts, each the whole computation with a conclusion (``So it is 3.``).
Words of doubt stand between them. The last conclusion is the answer. An attempt may *slip*: its
conclusion is not what its lines say. So a check may mend a wrong conclusion, and may spoil a right
one.
"""

import random
from collections.abc import Callable, Sequence

DOUBTS = (
    "Wait, let me count that again.", "Wait, is that right?", "Hmm, let me check.",
    "But wait, once more.", "Alternatively, from the start.", "Let me check that again.",
    "Wait, I should look again.", "Hmm, am I sure?",
)  # fmt: skip
# How many of 100 thoughts have so many checks, from one on.
CHECKS = (22, 32, 28, 18)
# Labels are looked at more often: their thinking is short.
LABEL_CHECKS = (6, 18, 30, 28, 18)
# The share of attempts that slip. Sampling at a low temperature makes slips a third as frequent.
FIRST_SLIPS, LATER_SLIPS = 0.22, 0.04


def with_checks(
    rng: random.Random,
    attempt: Callable[[str], str],
    right: str,
    wrong: Sequence[str],
    checks: Sequence[int] = CHECKS,
) -> tuple[str, str]:
    """Thinking in several attempts, and its last conclusion.

    ``attempt``: the text of one with the given conclusion. ``wrong``: what a slip may say instead
    of ``right``. ``checks``: weights of 1, 2, … checks.
    """
    number = rng.choices(range(1, len(checks) + 1), checks)[0]
    texts, concluded = list[str](), right
    for i in range(number + 1):
        slips = wrong and rng.random() < (LATER_SLIPS if i else FIRST_SLIPS)
        concluded = rng.choice(wrong) if slips else right
        texts += [rng.choice(DOUBTS)] * bool(i) + [attempt(concluded)]
    return "\n".join(texts), concluded


def near(number: int) -> list[str]:
    """The numbers that a slip may make of ``number``."""
    return [str(n) for n in (number - 1, number + 1) if n >= 0]
