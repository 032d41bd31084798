"""Choose the input columns that make a prompt; no I/O."""

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.prompts.template import columns_of


@dataclass(frozen=True)
class PromptColumns:
    """The columns of a prompt: exactly one of ``prompt``, ``messages`` and ``template`` is set.

    ``prompt``, ``messages``, ``tools``: column names. ``template``: as `pipeline.prompts.template`
    describes. ``examples``: turns that stand before those of every row, after its system turn.
    """

    prompt: str | None = None
    messages: str | None = None
    tools: str | None = None
    template: str | None = None
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
    usual = [name for name in ("prompt", "messages") if name in schema.names]
    columns = configured
    if not columns.prompt and not columns.messages and len(usual) == 1:
        prompt, messages = ("prompt", None) if usual == ["prompt"] else (None, "messages")
        columns = replace(columns, prompt=prompt, messages=messages)
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
    keys = ("prompt", "messages", "tools")
    named = {key: name for key in keys if (name := getattr(configured, key))}
    settings = {f"input.{key}_column is": [name] for key, name in named.items()}
    if configured.template is not None:
        settings = {"prompt.template names": columns_of(configured.template)}
    for setting, names in settings.items():
        if missing := [name for name in names if name not in schema.names]:
            raise InputError(
                f"{setting} {', '.join(missing)}, but the input has only the columns "
                f"{', '.join(schema.names)}"
            )
