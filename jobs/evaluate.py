"""Score an output against reference answers: the mean over samples, as Qwen reports AIME.

    qwq-batch evaluate out/aime --reference answer
    qwq-batch evaluate out/aime --reference answer --as-qwen
    python -m jobs.evaluate out/aime --reference answer      # the same as the first

The score of a problem is the mean over its samples; the result is the mean over problems, with a
95 % bootstrap interval. A trace can be right only if it finished or was rescued, with its answer in
a box. ``--as-qwen`` scores by the rules of Qwen's own evaluation instead: it looks in the whole
text if the thinking has not closed, and guesses if there is no box. It needs ``output.raw_text``.
"""

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline import console
from pipeline.answers.boxed import Boxed, last_box
from pipeline.errors import OutputError
from pipeline.output.ledger import AGREE
from pipeline.output.reader import FinishedPart, finished_parts, open_output

DRAWS = 10_000
ANSWERED = ("finished", "rescued", "unparsed")
BOXED = Boxed()
# Where Qwen's evaluation looks for an answer that is in no box.
_SAID = re.compile(r"answer is:?\s*\$?([^\n$]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Scores:
    """For each problem, whether each of its samples is right; and counts over all samples."""

    problems: list[list[bool]] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    tokens: int = 0

    @property
    def means(self) -> list[float]:
        """The score of each problem, 0 to 1."""
        return [sum(samples) / len(samples) for samples in self.problems]

    @property
    def samples(self) -> int:
        """All samples of all problems."""
        return sum(map(len, self.problems))


def score(output: str, reference: str, as_qwen: bool) -> Scores:
    """Score all finished parts of ``output`` against its column ``reference``.

    Raises `OutputError` if ``output`` can't be scored.
    """
    manifest = open_output(output).manifest()
    assert manifest is not None
    if manifest["settings"].get(AGREE) is not None:
        raise OutputError(
            f"the samples of {output} were drawn until some agreed ({AGREE}), so their mean is "
            "biased; evaluate a run without it"
        )
    scores = Scores()
    for part in finished_parts(output):
        _add(scores, part, reference, as_qwen)
    if not scores.problems:
        raise OutputError(f"no part of {output} is finished yet")
    return scores


def _add(scores: Scores, part: FinishedPart, reference: str, as_qwen: bool) -> None:
    names = part.names
    text = names["raw"] if as_qwen else names["answer"]
    wanted = [reference, text, names["state"], names["sample"], names["think_tokens"],
              names["answer_tokens"]]  # fmt: skip
    missing = [name for name in wanted if name not in part.columns]
    if missing:
        hint = " (set output.raw_text=true)" if missing == [names["raw"]] else ""
        raise OutputError(f"{part.store.url} has no column {missing[0]}{hint}")
    table = part.read(wanted)
    for row in zip(*(table[name].to_pylist() for name in wanted), strict=True):
        right, answer, state, sample, *tokens = row
        if sample == 0:
            scores.problems.append([])
        scores.problems[-1].append(_is_right(answer, right, state, as_qwen))
        scores.states[state] += 1
        scores.tokens += sum(tokens)


def _is_right(text: str | None, right: object, state: str, as_qwen: bool) -> bool:
    if as_qwen:
        return bool(BOXED.is_correct(qwen_answer(text or ""), right))
    return state in ANSWERED and bool(BOXED.is_correct(BOXED.parse(text or ""), right))


def qwen_answer(raw: str) -> str:
    r"""What Qwen's own math evaluation takes for the answer of an output, guesses included.

    It looks behind ``\n</think>\n\n``, in the whole text where that is missing: at the last box,
    then behind "answer is", then at the last number.
    """
    _, marker, answer = raw.partition("\n</think>\n\n")
    text = answer if marker else raw
    if (box := last_box(text)) is not None:
        return box
    if said := _SAID.findall(text):
        return str(said[-1]).strip().rstrip(".")
    numbers = _NUMBER.findall(text.replace(",", ""))
    return str(numbers[-1]) if numbers else ""


def interval(means: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, the same each time."""
    rng = random.Random(0)
    drawn = sorted(sum(rng.choices(means, k=len(means))) / len(means) for _ in range(DRAWS))
    return drawn[int(DRAWS * 0.025)], drawn[int(DRAWS * 0.975)]


def lines(scores: Scores) -> Iterator[str]:
    """The result as a Markdown table."""
    mean, (low, high) = sum(scores.means) / len(scores.means), interval(scores.means)
    states = ", ".join(f"{count:,} {state}" for state, count in scores.states.most_common())
    solved = sum(any(samples) for samples in scores.problems)
    yield "| problems | samples | score | 95 % interval | solved at least once | tokens a sample |"
    yield "|---|---|---|---|---|---|"
    yield (
        f"| {len(scores.problems):,} | {scores.samples:,} | {mean:.1%} | {low:.1%} to {high:.1%} "
        f"| {solved:,} | {scores.tokens / scores.samples:,.0f} |"
    )
    yield f"\nstates: {states}"


def evaluate(output: str, reference: str, as_qwen: bool) -> int:
    """Print the scores of an output as a table; the exit code."""
    console.print_lines(lines(score(output, reference, as_qwen)))
    return 0


if __name__ == "__main__":
    from pipeline.cli import main

    main(["evaluate", *sys.argv[1:]])
