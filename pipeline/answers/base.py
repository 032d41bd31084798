"""What an answer format is: how programs ask for, read, compare and count an answer; no I/O."""

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from pipeline.answers.json_schema import JsonForm


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
    def schema(self) -> str | None:
        """The JSON Schema, as text, that the engine generates the answer by; None: it is free."""
        return None

    def parse(self, answer: str) -> str | None:
        """The value that ``answer`` (a trace's text after the thinking) gives; None: it has none.

        Never guess: an answer that is not in the format makes the trace ``unparsed``. Must not
        raise: the text is whatever a model writes.
        """
        raise NotImplementedError

    def is_correct(self, parsed: str | None, reference: object) -> bool | None:
        """Whether ``parsed`` has the value of ``reference`` (a cell of the input).

        None if there is no reference; False if nothing was parsed.
        """
        if reference is None:
            return None
        return parsed is not None and self.matches(parsed, reference)

    def vote(self, answers: Sequence[str | None]) -> tuple[str | None, float]:
        """The value that most samples of a row agree on, and their share of all, 0 to 1.

        ``answers``: the parsed values, None for samples without one. The earliest wins a tie. None
        and 0 if no sample has a value.
        """
        groups: list[tuple[str, int]] = []
        for answer, count in Counter(answer for answer in answers if answer is not None).items():
            for i, (other, size) in enumerate(groups):
                if self.agrees(answer, other):
                    groups[i] = (other, size + count)
                    break
            else:
                groups.append((answer, count))
        if not groups:
            return None, 0.0
        winner, size = max(groups, key=lambda group: group[1])
        return winner, size / len(answers)

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether ``parsed`` has the value of ``reference``; by default, the same text."""
        return parsed.strip() == str(reference).strip()

    def agrees(self, parsed: str, other: str) -> bool:
        """Whether two samples' parsed values, which differ as text, are the same value."""
        return self.matches(parsed, other)
