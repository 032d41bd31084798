"""An answer format that the package does not know, written by CONTRIBUTING's recipe."""

import re

from pipeline.answers.base import AnswerFormat


class LastNumber(AnswerFormat):
    """The last whole number of an answer; 042 is 42."""

    suffix_name = "number"
    suffix = "End with a whole number."

    def parse(self, answer: str) -> str | None:
        numbers = re.findall(r"\d+", answer)
        return numbers[-1] if numbers else None

    def matches(self, parsed: str, reference: object) -> bool:
        return int(parsed) == int(str(reference))
