"""The letter of a multiple-choice question; no I/O."""

import re

from pipeline.answers.base import AnswerFormat
from pipeline.answers.boxed import last_box

# The JSON field that the QwQ card's prompt asks for, with the quotes that models forget.
_FIELD = re.compile(
    r"""["'“]?\banswer\b["'”]?\s*+[:=]\s*+(?:is\s++)?["'“*`(\s]*+([A-Z])["'”*`)]*(?![\w'’])"""
    r"""(?!(?<=[AI])\s+[a-z])""",  # an article or a pronoun
    re.IGNORECASE,
)
_LETTER = re.compile(r"""[\s"'*`(\[]*([A-Z])[\s"'*`)\].:]*""")
_IN_TEXT = re.compile(r"\\text(?:bf|rm|it)?\{([^{}]*)\}|\\mathrm\{([^{}]*)\}")


class Choice(AnswerFormat):
    """One letter, A to Z."""

    suffix_name = "choice"
    # Qwen's own words, from the model card.
    suffix = (
        "Please show your choice in the `answer` field with only the choice letter, "
        'e.g.,`"answer": "C"`.'
    )

    def parse(self, answer: str) -> str | None:
        """The letter of the last ``"answer": "C"``; else of the last box; else of the last line."""
        if fields := _FIELD.findall(answer):
            return str(fields[-1]).upper()
        if (box := last_box(answer)) is not None:
            return _only_letter(_IN_TEXT.sub(lambda tag: tag[1] or tag[2] or "", box))
        lines = [line for line in answer.splitlines() if line.strip()]
        return _only_letter(lines[-1]) if lines else None

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether both are the same letter; a reference may be text that gives one."""
        expected = str(reference).strip()
        same_text = super().matches(parsed, reference)
        return same_text or parsed.upper() == (self.parse(expected) or expected).upper()


def _only_letter(text: str) -> str | None:
    match = _LETTER.fullmatch(text)
    return match[1] if match else None
