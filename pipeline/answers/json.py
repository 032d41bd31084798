"""JSON that fits a schema; no I/O."""

import contextlib
import json
from collections.abc import Iterator, Sequence

from pipeline.answers.base import AnswerFormat, ShortForm
from pipeline.answers.json_schema import canonical, without_nulls
from pipeline.answers.references import Reading, is_nothing

# Tokens of a probe: labels are short, other objects may take some lines.
LONGEST_SHORT = 256


class Json(AnswerFormat):
    """A JSON value that fits the schema, in the spelling of `canonical`.

    The engine generates it apart from the thinking, by the schema.
    """

    suffix_name = "json"
    needs_schema = True

    @property
    def suffix(self) -> str:
        """Names the schema."""
        return f"Please give your answer as JSON that matches this schema: {self.schema or ''}"

    @property
    def schema(self) -> str | None:
        """The schema as compact JSON text."""
        return None if self.form is None else self.form.text

    @property
    def short_form(self) -> ShortForm:
        """The value of an object's only property, if it is one; else the whole.

        A label is known from its first tokens.
        """
        only = None if self.form is None else self.form.only_property
        if self.form is None or only is None:
            return ShortForm(schema=self.schema, tokens=LONGEST_SHORT)
        name, schema = only
        if texts := self.form.only_texts:
            among = tuple(json.dumps(text, ensure_ascii=False)[1:] for text in texts)
            return ShortForm(f'{{{json.dumps(name)}: "', '"', None, "}", LONGEST_SHORT, among)
        return ShortForm(f"{{{json.dumps(name)}: ", "", schema, "}", LONGEST_SHORT)

    def parse(self, answer: str) -> str | None:
        """The value that ``answer`` is, if it fits the schema. Needs the schema."""
        assert self.form is not None
        return self.form.parse(answer)

    def is_missing(self, reference: object) -> bool:
        """Whether a cell is null or NaN; blank text may be a value."""
        return is_nothing(reference)

    def read_reference(self, reference: object, kind: str = "") -> object | None:
        """``reference`` itself; None: missing, or no value that fits the schema."""
        if self.is_missing(reference):
            return None
        fits = self.form is None or any(map(self.form.parse, spellings(reference)))
        return reference if fits else None

    def _reading(self, references: Sequence[object]) -> Reading:
        return Reading("", "JSON that fits the schema")

    def matches(self, parsed: str, reference: object) -> bool:
        """Whether both are the same value; a reference is a value, or JSON text of one."""
        return parsed in spellings(reference)

    def group(self, values: Sequence[str]) -> tuple[list[list[int]], int]:
        """Each value apart: equal values have the same canonical text."""
        return [[i] for i in range(len(values))], 0


def spellings(reference: object) -> Iterator[str]:
    """What ``reference`` may mean, as canonical JSON: text may be JSON or the value itself.

    Arrow gives all objects of a column the same keys, null where a row has none.
    """
    with contextlib.suppress(TypeError, ValueError, RecursionError):
        yield canonical(reference)
        yield canonical(without_nulls(reference))
    if isinstance(reference, str):
        with contextlib.suppress(ValueError, RecursionError):
            yield canonical(json.loads(reference))
