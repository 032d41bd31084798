"""Score an output against reference answers: the mean over samples, as Qwen reports AIME.

    qwq-batch evaluate out/aime --reference answer
    qwq-batch evaluate out/aime --reference answer --as-qwen
    python -m jobs.evaluate out/aime --reference answer      # the same as the first

The score of a problem is the mean over its samples; the result is the mean over problems, with a
95 % bootstrap interval. A trace can be right only if it finished or was rescued, with an answer in
the format of the run (``choice``: a letter; a run without a format: a box). Problems without a
reference that can be read, and comparisons that were given up, are left out and counted.
``--as-qwen`` scores by the rules of Qwen's own evaluation of mathematics instead: it looks in the
whole text if the thinking has not closed, and guesses if there is no box. It needs
``output.raw_text``.
"""

import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipeline import console
from pipeline.answers.base import AnswerFormat
from pipeline.answers.boxed import Boxed, last_box
from pipeline.answers.references import Reading, cells
from pipeline.errors import OutputError
from pipeline.output.answers import format_of, not_compared_lines, why_not_compared
from pipeline.output.parts import AGREE
from pipeline.output.reader import FinishedPart, finished_parts, open_output

DRAWS = 10_000
ANSWERED = ("finished", "rescued", "unparsed")
BOXED = Boxed()
# The references from which is decided how they are read, of each part.
SAMPLE_ROWS = 1000
# Where Qwen's evaluation looks for an answer that is in no box: behind the last of the first.
_SAID = ("he answer is", "final answer is")
_NUMBER = re.compile(r"-?\d*\.?\d+")


@dataclass
class Scores:
    """For each problem, whether each of its samples is right; and counts over all samples.

    ``problems``: null for a sample that was not compared; ``not_compared`` counts the reasons of
    `not_compared_lines`. ``reading``: how the references were read.
    """

    problems: list[list[bool | None]] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    not_compared: Counter[str] = field(default_factory=Counter)
    reading: Reading = field(default_factory=lambda: Reading("", ""))

    @property
    def means(self) -> list[float]:
        """The score of each problem with a sample that was compared, 0 to 1."""
        compared = ([one for one in each if one is not None] for each in self.problems)
        return [sum(samples) / len(samples) for samples in compared if samples]

    @property
    def samples(self) -> int:
        """All samples of all problems."""
        return sum(map(len, self.problems))


@dataclass(frozen=True)
class Grader:
    """Compares answers with references. ``as_qwen``: by the rules of Qwen's own evaluation."""

    answers: AnswerFormat
    reading: Reading
    as_qwen: bool

    def is_right(
        self, text: str | None, reference: object, state: str, asked: str | None = None
    ) -> bool | None:
        """Whether ``text`` of a trace that ended in ``state`` is right; None: it can't be told.

        ``asked``: the answer that it gave when it was asked once more; None if it was not.
        Qwen's own evaluation counts what takes too long to compare as wrong.
        """
        kind = self.reading.kind
        if self.as_qwen:
            is_right = self.answers.is_correct(qwen_answer(text or ""), reference, kind)
            has_reference = self.answers.read_reference(reference, kind) is not None
            return bool(is_right) if has_reference else None
        parsed = asked
        if parsed is None and state in ANSWERED:
            parsed = self.answers.parse(text or "")
        return self.answers.is_correct(parsed, reference, kind)


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
    parts = list(finished_parts(output))
    if not parts:
        raise OutputError(f"no part of {output} is finished yet")
    try:
        answers: AnswerFormat = format_of(manifest["settings"])
    except ValueError as error:
        raise OutputError(f"the answer format of {output} can't be loaded here: {error}") from None
    if as_qwen or not answers.is_parsed:
        answers = BOXED
    grader = Grader(answers, _reading(parts, reference, answers), as_qwen)
    scores = Scores(reading=grader.reading)
    for part in parts:
        _add(scores, part, reference, grader)
    if not scores.means:
        raise OutputError(
            f"no row of {output} has a reference in column {reference} that can be read; name the "
            "column with the right answers"
        )
    return scores


def _reading(parts: Sequence[FinishedPart], reference: str, answers: AnswerFormat) -> Reading:
    """How the column ``reference`` is read, decided from all parts."""
    sample: list[object] = []
    for part in parts:
        if reference in part.names.values():
            raise OutputError(
                f"--reference is {reference}, which the run itself has written; name the column "
                "of the input that has the right answers"
            )
        _check_columns(part, [reference])
        found = cells(part.read([reference])[reference])
        sample += found[:: len(found) // SAMPLE_ROWS + 1]
    try:
        return answers.reading(sample)
    except ValueError as error:
        raise OutputError(f"--reference is {reference}, but {error}") from None


def _check_columns(part: FinishedPart, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in part.columns]
    if missing:
        hint = " (set output.raw_text=true)" if missing == [part.names["raw"]] else ""
        raise OutputError(f"{part.store.url} has no column {missing[0]}{hint}")


def _add(scores: Scores, part: FinishedPart, reference: str, grader: Grader) -> None:
    names = part.names
    text = names["raw"] if grader.as_qwen else names["answer"]
    wanted = [text, names["state"], names["sample"], names["think_tokens"], names["answer_tokens"]]
    _check_columns(part, wanted)
    table = part.read([reference, *wanted])
    references = cells(table[reference])
    can_be_asked = "asked_tokens" in names and not grader.as_qwen
    asked = _asked(part) if can_be_asked else [None] * table.num_rows
    columns = (table[name].to_pylist() for name in wanted)
    for right, said, answer, state, sample, *tokens in zip(
        references, asked, *columns, strict=True
    ):
        if sample == 0:
            scores.problems.append([])
        verdict = grader.is_right(answer, right, state, said)
        if verdict is None:
            reason = why_not_compared(grader.answers, right, grader.reading.kind)
            scores.not_compared[reason] += 1
        scores.problems[-1].append(verdict)
        scores.states[state] += 1
        scores.tokens += sum(tokens)


def _asked(part: FinishedPart) -> list[str | None]:
    """Of each trace that was asked once more for its answer what it said; None for the others."""
    wanted = [part.names[name] for name in ("parsed", "asked_tokens")]
    table = part.read(wanted)
    pairs = zip(*(table[name].to_pylist() for name in wanted), strict=True)
    return [parsed if tokens else None for parsed, tokens in pairs]


def qwen_answer(raw: str) -> str:
    r"""What Qwen's own math evaluation takes for the answer of an output, guesses included.

    It looks behind ``\n</think>\n\n``, in the whole text where that is missing: at the last box,
    then behind "the answer is" or "final answer is", then at the last number.
    """
    _, marker, answer = raw.partition("\n</think>\n\n")
    text = answer if marker else raw
    if (box := last_box(text)) is not None:
        return box
    for said in _SAID:
        _, found, rest = text.rpartition(said)
        if found:
            joined = re.sub(r"\n\s*", "", rest.strip()).removeprefix(":").strip()
            return joined.removesuffix(".").removesuffix("/")
    numbers = _NUMBER.findall(text.replace(",", ""))
    return str(numbers[-1]) if numbers else ""


def interval(means: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean, the same each time."""
    rng = random.Random(0)
    drawn = sorted(sum(rng.choices(means, k=len(means))) / len(means) for _ in range(DRAWS))
    return drawn[int(DRAWS * 0.025)], drawn[int(DRAWS * 0.975)]


def lines(scores: Scores) -> Iterator[str]:
    """How the references were read, what was not scored, and the result as a Markdown table."""
    mean, (low, high) = sum(scores.means) / len(scores.means), interval(scores.means)
    states = ", ".join(f"{count:,} {state}" for state, count in scores.states.most_common())
    solved, scored = sum(any(samples) for samples in scores.problems), len(scores.means)
    yield f"references are read as {scores.reading.description}"
    yield from (f"not scored: {line.strip()}" for line in not_compared_lines(scores.not_compared))
    yield ""
    yield "| problems | samples | score | 95 % interval | solved at least once | tokens a sample |"
    yield "|---|---|---|---|---|---|"
    yield (
        f"| {scored:,} | {scores.samples:,} | {mean:.1%} | {low:.1%} to {high:.1%} "
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
