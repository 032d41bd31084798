"""Score an output against reference answers: the mean over samples, as Qwen reports AIME.

    python -m jobs.evaluate out/aime --reference answer
    python -m jobs.evaluate out/aime --reference answer --as-qwen

Each problem's score is the mean over its samples, the result the mean over problems, with a 95 %
interval from drawing problems anew. Only traces that have finished, or were rescued, and give their
answer in a box can be right. ``--as-qwen`` scores by the rules of Qwen's own evaluation instead,
which look in the whole text where thinking has not closed and guess where there is no box; it needs
``output.raw_text``.
"""

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow.parquet as pq

from pipeline.answers.boxed import Boxed, last_box
from pipeline.errors import OutputError, QwqBatchError
from pipeline.output.ledger import AGREE, Ledger
from pipeline.output.parts import part_metadata
from pipeline.storage import Storage

DRAWS = 10_000
ANSWERED = ("finished", "rescued", "unparsed")
BOXED = Boxed()
# Where Qwen's evaluation looks for an answer that is in no box.
_SAID = re.compile(r"answer is:?\s*\$?([^\n$]+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


@dataclass
class Scores:
    """For each problem, whether each of its samples is right; and what there is to tell besides."""

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
    """Score all finished parts of ``output`` against its column ``reference``."""
    store, found = Storage(output), Scores()
    manifest = Ledger(store).manifest()
    if manifest is None:
        raise OutputError(f"{output} is not the output of a run (it has no manifest)")
    if manifest["settings"].get(AGREE) is not None:
        raise OutputError(
            f"the samples of {output} were drawn until some agreed ({AGREE}), so that their mean "
            "says nothing; evaluate a run without"
        )
    for part in sorted(Ledger(store).listing().finished_parts()):
        names = part_metadata(store, part)["columns"]
        text = names["raw"] if as_qwen else names["answer"]
        wanted = [reference, text, names["state"], names["sample"], names["think_tokens"],
                  names["answer_tokens"]]  # fmt: skip
        with store.open(part) as file:
            parquet = pq.ParquetFile(file)
            missing = [name for name in wanted if name not in parquet.schema_arrow.names]
            if missing:
                hint = " (set output.raw_text=true)" if missing == [names["raw"]] else ""
                raise OutputError(f"{output} has no column {missing[0]}{hint}")
            columns = parquet.read(wanted)
        for row in zip(*(columns[name].to_pylist() for name in wanted), strict=True):
            right, said, state, sample, *tokens = row
            if sample == 0:
                found.problems.append([])
            found.problems[-1].append(_is_right(said, right, state, as_qwen))
            found.states[state] += 1
            found.tokens += sum(tokens)
    if not found.problems:
        raise OutputError(f"no part of {output} is finished yet")
    return found


def _is_right(said: str | None, right: object, state: str, as_qwen: bool) -> bool:
    if as_qwen:
        return bool(BOXED.is_correct(qwen_answer(said or ""), right))
    return state in ANSWERED and bool(BOXED.is_correct(BOXED.parse(said or ""), right))


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
    """The 95 % interval of the mean: problems drawn with replacement, the same each time."""
    rng = random.Random(0)
    drawn = sorted(sum(rng.choices(means, k=len(means))) / len(means) for _ in range(DRAWS))
    return drawn[int(DRAWS * 0.025)], drawn[int(DRAWS * 0.975)]


def lines(found: Scores) -> Iterator[str]:
    """The result as a Markdown table."""
    mean, (low, high) = sum(found.means) / len(found.means), interval(found.means)
    states = ", ".join(f"{count:,} {state}" for state, count in found.states.most_common())
    solved = sum(any(samples) for samples in found.problems)
    yield "| problems | samples | score | 95 % interval | solved at least once | tokens a sample |"
    yield "|---|---|---|---|---|---|"
    yield (
        f"| {len(found.problems):,} | {found.samples:,} | {mean:.1%} | {low:.1%} to {high:.1%} "
        f"| {solved:,} | {found.tokens / found.samples:,.0f} |"
    )
    yield f"\nstates: {states}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table; exit 2 if the output can't be scored."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.evaluate", description=__doc__.split("\n")[0]
    )
    parser.add_argument("output", metavar="OUTPUT", help="the output.path of a run")
    parser.add_argument("--reference", required=True, metavar="COLUMN", help="the right answers")
    parser.add_argument("--as-qwen", action="store_true", help="by the rules of Qwen's evaluation")
    args = parser.parse_args(argv)
    try:
        for line in lines(score(args.output, args.reference, args.as_qwen)):
            print(line)
    except QwqBatchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
