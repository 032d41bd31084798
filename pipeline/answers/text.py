"""Free text: answers that no program reads; no I/O."""

from pipeline.answers.base import AnswerFormat


class Text(AnswerFormat):
    """The whole answer. It is not parsed, compared or voted on."""

    is_parsed = False

    def parse(self, answer: str) -> str | None:
        """``answer`` itself."""
        return answer
