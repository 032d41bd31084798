r"""The answer formats: one line each; a configuration may name others by import path; no I/O.

answer_format("boxed").parse(r"It is \boxed{3}.")      # "3"
answer_format("my_package.my_module:Roman")            # anybody's `AnswerFormat`
"""

from pipeline.answers.base import AnswerFormat
from pipeline.answers.json_schema import JsonForm
from pipeline.registry import Registry

ANSWER_FORMATS = Registry[type[AnswerFormat]](
    "answer.format",
    {
        "text": "pipeline.answers.text:Text",
        "boxed": "pipeline.answers.boxed:Boxed",
        "choice": "pipeline.answers.choice:Choice",
        "json": "pipeline.answers.json:Json",
        "sets": "pipeline.answers.sets:Sets",
    },
)


def answer_format(name: str, form: JsonForm | None = None) -> AnswerFormat:
    """The format that ``name`` (an entry or ``package.module:CLASS``) stands for.

    ``form``: the schema, for formats that need one to parse. Raises `ValueError` if there is no
    such format, or if its module can't be imported here.
    """
    kind = ANSWER_FORMATS[name]
    if not (isinstance(kind, type) and issubclass(kind, AnswerFormat)):
        raise ValueError(f"{name} is not a subclass of pipeline.answers.base.AnswerFormat")  # noqa: TRY004
    return kind(form)


def parsed_formats() -> str:
    """The built-in formats that programs read, for messages: "boxed, choice, json or sets"."""
    *names, last = (name for name in ANSWER_FORMATS.names if ANSWER_FORMATS[name].is_parsed)
    return f"{', '.join(names)} or {last}"


def format_asked_for(suffix: str | None, configured: AnswerFormat) -> AnswerFormat | None:
    """The format whose ``suffix_name`` is ``suffix``; None if that is no name but text.

    ``configured``: the run's own format, whose names go before those of the built-in ones.
    """
    built_in = (answer_format(name) for name in ANSWER_FORMATS.names)
    named = (kind for kind in (configured, *built_in) if kind.suffix_name is not None)
    return next((kind for kind in named if kind.suffix_name == suffix), None)


def mistaken_suffix(suffix: str | None) -> str | None:
    """The name of a suffix that ``suffix``, which is none, probably stands for; None for text."""
    word = (suffix or "").strip().casefold()
    for name in ANSWER_FORMATS.names:
        own = answer_format(name).suffix_name
        if own is not None and word in (name, own):
            return own
    return None
