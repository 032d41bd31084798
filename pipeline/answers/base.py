"""What an answer format is: how programs ask for, read, compare and count an answer; no I/O."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from pipeline.answers.groups import Groups
from pipeline.answers.json_schema import JsonForm
from pipeline.answers.references import Reading, is_missing, shown


@dataclass(frozen=True)
class Vote:
    """What the samples of a row agree on.

    ``winner``: the value that most have; None if no sample has one. ``share``: how many of all
    samples have it, 0 to 1. ``given_up``: values that took too long to compare; each counts as one
    of its own, so the share may be higher.
    """

    winner: str | None
    share: float
    given_up: int = 0


@dataclass(frozen=True)
class ShortForm:
    """How the answer alone is asked for after thinking that goes on: the form of a probe.

    ``opening``: the text that begins the answer for the model. ``ending``: a character of the token
    that ends it; without one, the end of the turn does. ``schema``: the JSON Schema of what is
    generated. ``closing``: completes it. ``tokens``: the most that it may take. ``among``: all that
    can be generated, ``ending`` included, if it is one of a few texts; then it ends as soon as it
    can be only one of them.
    """

    opening: str = ""
    ending: str = ""
    schema: str | None = None
    closing: str = ""
    tokens: int = 64
    among: tuple[str, ...] = ()

    def completed(self, text: str) -> str | None:
        """``text`` that was generated, as a whole answer; None if it does not come to one."""
        if self.among:
            meant = [w for w in self.among if w.startswith(text) or text.startswith(w)]
            return self.opening + meant[0] + self.closing if len(meant) == 1 else None
        return self.opening + text + self.closing if self.ending in text else None


class AnswerFormat:
    r"""Base of all answer formats. Subclasses define `parse`; the other defaults often fit.

        class Roman(AnswerFormat):
            suffix_name = "roman"
            suffix = "Answer with a Roman numeral after 'Answer:'."

            def parse(self, answer: str) -> str | None:
                matches = re.findall(r"Answer: ([IVXLCDM]+)\b", answer)
                return matches[-1] if matches else None

    A configuration names a subclass in ``answer.format``: by its entry in
    `pipeline.answers.ANSWER_FORMATS`, or as ``package.module:Roman``. Objects hold nothing but the
    schema, so every process makes its own.

    ``suffix_name`` is the ``prompt.suffix`` that asks for the format, ``suffix`` its text; None
    where no prompt needs to ask. ``is_parsed``: whether answers are parsed, compared and voted on
    at all. ``needs_schema``: whether ``answer.json_schema`` must be set. ``form``: that schema.
    """

    suffix_name: ClassVar[str | None] = None
    is_parsed: ClassVar[bool] = True
    needs_schema: ClassVar[bool] = False

    def __init__(self, form: JsonForm | None = None) -> None:
        self.form = form

    @property
    def suffix(self) -> str | None:
        """The text that, after the user's turn, asks for this format."""
        return None

    @property
    def short_form(self) -> ShortForm:
        """How the answer alone is asked for; `parse` must read ``opening``, text and ``closing``.

        By default the model writes the whole answer, in 64 tokens at most.
        """
        return ShortForm(schema=self.schema)

    @property
    def schema(self) -> str | None:
        """The JSON Schema, as text, that the engine generates the answer by; None: it is free."""
        return None

    def parse(self, answer: str) -> str | None:
        """The value that ``answer`` (a trace's text after the thinking) gives; None: it has none.

        Never guess: an answer that is not in the format makes the trace ``unparsed``. Must not
        raise: the text is whatever a model writes.
        """
        raise NotImplementedError

    def reading(self, sample: Sequence[object]) -> Reading:
        """How a column of references is read, decided from a ``sample`` of its cells.

        Raises `ValueError`, which says what to do, if that is not certain, or if fewer than half of
        the references can be read. The default reads them as they are.
        """
        present = [cell for cell in sample if not self.is_missing(cell)]
        reading = self._reading(present)
        unread = [cell for cell in present if self.read_reference(cell, reading.kind) is None]
        if 2 * len(unread) > len(present):
            raise ValueError(
                f"most of it can't be read as {reading.description} ({len(unread):,} of "
                f"{len(present):,} sampled references, such as {shown(unread)}); name another "
                "column, write into it what the answers should be, or null for rows without one"
            )
        return reading

    def _reading(self, references: Sequence[object]) -> Reading:
        """As `reading`, of a sample without missing references."""
        return Reading("", "values as they are")

    def is_missing(self, reference: object) -> bool:
        """Whether a cell is no reference at all."""
        return is_missing(reference)

    def read_reference(self, reference: object, kind: str = "") -> object | None:
        """The value of ``reference`` (a cell of the input); None: missing, or it can't be read.

        ``kind``: of the column's `Reading`.
        """
        return None if self.is_missing(reference) else reference

    def is_correct(self, parsed: str | None, reference: object, kind: str = "") -> bool | None:
        """Whether ``parsed`` has the value of ``reference`` (a cell of the input).

        None if there is no reference, it can't be read (as the `Reading` of that ``kind``), or the
        comparison takes too long; False if nothing was parsed.
        """
        expected = self.read_reference(reference, kind)
        if expected is None:
            return None
        return parsed is not None and self.matches(parsed, expected)

    def vote(self, answers: Sequence[str | None]) -> tuple[str | None, float]:
        """The winner and the share of `tally`."""
        vote = self.tally(answers)
        return vote.winner, vote.share

    def tally(self, answers: Sequence[str | None]) -> Vote:
        """What most samples of a row agree on; ``answers``: their parsed values, None without one.

        The groups do not depend on the order. Between groups of the same size, the earliest sample
        decides: any fixed order of values would favor some. The winner is written as most of its
        group write it.
        """
        counts = Counter(answer for answer in answers if answer is not None)
        if not counts:
            return Vote(None, 0.0)
        spellings = list(counts)
        groups, given_up = self.group(spellings)
        sizes = [sum(counts[spellings[i]] for i in group) for group in groups]
        size = max(sizes)
        largest = [spellings[i] for i in groups[sizes.index(size)]]
        winner = min(largest, key=lambda text: (-counts[text], text))
        return Vote(winner, size / len(answers), given_up)

    def group(self, values: Sequence[str]) -> tuple[list[list[int]], int]:
        """Divide different parsed ``values`` into groups of equal ones, as lists of positions.

        The groups are in the order of their first values, and do not depend on it otherwise. Also
        returns how many values took too long to compare. By default values are equal that `agrees`
        says are, or that a chain of such pairs links.
        """
        groups = Groups(len(values))
        for i, k in combinations(range(len(values)), 2):
            if self.agrees(values[i], values[k]) or self.agrees(values[k], values[i]):
                groups.join(i, k)
        return groups.lists(), 0

    def matches(self, parsed: str, reference: object) -> bool | None:
        """Whether ``parsed`` has the value of ``reference``; by default, the same text.

        ``reference``: as `read_reference` gives it. None: the comparison takes too long.
        """
        return parsed.strip() == str(reference).strip()

    def agrees(self, parsed: str, other: str) -> bool | None:
        """Whether two samples' parsed values, which differ as text, are the same value."""
        return self.matches(parsed, other)
