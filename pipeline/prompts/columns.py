"""Which columns of the input make a prompt; no I/O."""

from dataclasses import dataclass, replace

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.prompts.template import columns_of


@dataclass(frozen=True)
class PromptColumns:
    """What makes a row's prompt: exactly one of ``prompt``, ``messages`` and ``template``."""

    prompt: str | None = None
    messages: str | None = None
    tools: str | None = None
    template: str | None = None


def prompt_columns(schema: pa.Schema, wanted: PromptColumns) -> PromptColumns:
    """``wanted`` where it names columns, otherwise what ``schema`` has under the usual names."""
    named = {f"input.{key}_column is": [name] for key, name in vars(wanted).items() if name}
    if wanted.template is not None:
        named = {"prompt.template names": columns_of(wanted.template)}
    for setting, names in named.items():
        if lacking := [name for name in names if name not in schema.names]:
            raise InputError(
                f"{setting} {', '.join(lacking)}, but the input has only the columns "
                f"{', '.join(schema.names)}"
            )
    if wanted.template is not None:
        return wanted
    if wanted.prompt and wanted.messages:
        raise InputError("set one of input.prompt_column and input.messages_column, not both")
    found = [name for name in ("prompt", "messages") if name in schema.names]
    if not wanted.prompt and not wanted.messages and len(found) == 1:
        wanted = replace(wanted, **{found[0]: found[0]})
    if wanted.messages and not wanted.tools and "tools" in schema.names:
        wanted = replace(wanted, tools="tools")
    if wanted.prompt or wanted.messages:
        return wanted
    what = "both a prompt and a messages column" if found else "no prompt and no messages column"
    raise InputError(
        f"the input has {what} (columns: {', '.join(schema.names)}); name the one to use with "
        "--set input.prompt_column=NAME or --set input.messages_column=NAME"
    )
