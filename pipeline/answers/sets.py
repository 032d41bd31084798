"""JSON whose arrays are sets, such as several labels of one text; no I/O."""

import json
from typing import Any

from pipeline.answers.json import Json, spellings
from pipeline.answers.json_schema import canonical


class Sets(Json):
    """A JSON value that fits the schema, in which order and repetition in arrays mean nothing.

    The engine generates it as it does for `Json`. Votes, comparisons and references follow.
    """

    suffix_name = "sets"

    def parse(self, answer: str) -> str | None:
        """The value that ``answer`` is, if it fits the schema, each array sorted, nothing twice."""
        found = super().parse(answer)
        return None if found is None else canonical(_sorted(json.loads(found)))

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether both are the same value; a reference is a value, or JSON text of one."""
        return any(parsed == canonical(_sorted(json.loads(text))) for text in spellings(reference))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json.loads(text) for text in sorted({canonical(_sorted(item)) for item in value})]
    return value
