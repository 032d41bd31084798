"""How a judge's answer is read: JSON with a reason and a value, of which only the value votes.

No I/O.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import median_low
from typing import Any

from jobs.judge_prompt import REASON
from pipeline.answers.base import AnswerFormat, ShortForm, Vote
from pipeline.answers.json import LONGEST_SHORT, Json

FORMAT = "jobs.judge_answer:Judgement"


class Judgement(AnswerFormat):
    """The value beside the reason: a verdict's or preference's text, or a score's digits.

    Its schema has two properties, ``reason`` and the value. Scores vote with their median.
    """

    suffix_name = "json"
    needs_schema = True

    @property
    def suffix(self) -> str:
        """That of JSON: it names the schema."""
        return Json(self.form).suffix

    @property
    def schema(self) -> str:
        """The schema as compact JSON text. Needs the form."""
        assert self.form is not None
        return self.form.text

    @property
    def short_form(self) -> ShortForm:
        """The value alone, after an empty reason."""
        opening = f'{{"{REASON}": "", {json.dumps(self._name)}: '
        value = json.dumps(self._value, ensure_ascii=False, separators=(",", ":"))
        return ShortForm(opening, "", value, "}", LONGEST_SHORT)

    def parse(self, answer: str) -> str | None:
        """The value of an answer that is JSON of the form, and nothing besides."""
        assert self.form is not None
        found = self.form.parse(answer)
        return None if found is None else str(json.loads(found)[self._name])

    def tally(self, answers: Sequence[str | None]) -> Vote:
        """The vote; for scores the median of the samples with one, of two the lower.

        So a score is always one that a sample gave.
        """
        if not self._is_score:
            return super().tally(answers)
        scores = [int(answer) for answer in answers if answer is not None]
        if not scores:
            return Vote(None, 0.0)
        score = median_low(scores)
        return Vote(str(score), scores.count(score) / len(answers))

    @property
    def _name(self) -> str:
        """The name of the property with the value."""
        assert self.form is not None
        names: Mapping[str, Any] = self.form.schema["properties"]
        return next(name for name in names if name != REASON)

    @property
    def _value(self) -> Mapping[str, Any]:
        """The schema of the value."""
        assert self.form is not None
        value: Mapping[str, Any] = self.form.schema["properties"][self._name]
        return value

    @property
    def _is_score(self) -> bool:
        return self._value.get("type") == "integer"


def reason_of(answer: str) -> str:
    """The reason in an answer that could be parsed."""
    reason: str = json.loads(answer)[REASON]
    return reason
