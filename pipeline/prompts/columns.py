"""Choose the input columns that make a prompt; no I/O."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.prompts.template import columns_of

FinalAnswer = Literal["refuse", "drop"]
# The names of such columns in most data sets; the later ones count where the first are missing.
USUAL = ({"prompt": "prompt", "messages": "messages"}, {"messages": "conversations"})
_NAMES = ("prompt", "messages", "tools", "context")


@dataclass(frozen=True)
class PromptColumns:
    """The columns of a prompt: exactly one of ``prompt``, ``messages`` and ``template`` is set.

    ``prompt``, ``messages``, ``tools``: column names. ``template``: as `pipeline.prompts.template`
    describes. ``context``: a column whose text follows the prompt, in rows that have some.
    ``final_answer``: what to do with assistant turns at the end of messages.
    ``examples``: turns that stand before those of every row, after its system turn.
    """

    prompt: str | None = None
    messages: str | None = None
    tools: str | None = None
    template: str | None = None
    context: str | None = None
    final_answer: FinalAnswer = "refuse"
    examples: tuple[dict[str, Any], ...] = ()

    @property
    def names(self) -> list[str]:
        """The columns that a row must have."""
        if self.template is not None:
            return columns_of(self.template)
        return [name for name in (self.prompt, self.messages) if name is not None]


def prompt_columns(schema: pa.Schema, configured: PromptColumns) -> PromptColumns:
    """The ``configured`` columns, completed by the usual names that ``schema`` has.

    Raises `InputError` if a configured column is missing, or no single choice remains.
    """
    _check_present(schema, configured)
    if configured.template is not None:
        return configured
    if configured.prompt and configured.messages:
        raise InputError("set one of input.prompt_column and input.messages_column, not both")
    present = ({k: name for k, name in names.items() if name in schema.names} for names in USUAL)
    usual = next(filter(None, present), {})
    columns = configured
    if not columns.prompt and not columns.messages and len(usual) == 1:
        columns = replace(columns, prompt=usual.get("prompt"), messages=usual.get("messages"))
    if columns.context and not columns.prompt:
        raise InputError("input.context_column needs input.prompt_column, whose text it follows")
    if columns.messages and not columns.tools and "tools" in schema.names:
        columns = replace(columns, tools="tools")
    if columns.prompt or columns.messages:
        return columns
    what = "both a prompt and a messages column" if usual else "no prompt and no messages column"
    raise InputError(
        f"the input has {what} (columns: {', '.join(schema.names)}); name the one to use with "
        "--set input.prompt_column=NAME or --set input.messages_column=NAME"
    )


def _check_present(schema: pa.Schema, configured: PromptColumns) -> None:
    """Raise `InputError` for the setting that names a column which ``schema`` lacks."""
    settings = {
        f"input.{key}_column is": [name] for key in _NAMES if (name := getattr(configured, key))
    }
    if configured.template is not None:
        settings = {"prompt.template names": columns_of(configured.template)}
    for setting, names in settings.items():
        if missing := [name for name in names if name not in schema.names]:
            raise InputError(
                f"{setting} {', '.join(missing)}, but the input has only the columns "
                f"{', '.join(schema.names)}"
            )
