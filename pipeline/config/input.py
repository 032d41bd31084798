"""The section `input` of a run's configuration; no I/O."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.config.locations import Location
from pipeline.config.section import Section
from pipeline.input.query import InputQuery, Unit
from pipeline.prompts.columns import FinalAnswer


class InputConfig(Section):
    """The prompts: Parquet, JSON lines, CSV or Arrow files, and the columns that hold them."""

    path: Location = Field(
        description="Folder, file or glob of Parquet, JSON lines, CSV or Arrow files; local, "
        "`s3://`, `gs://` or `az://`. The output of another run is one too, and "
        "`hf://datasets/ORG/NAME` a data set of the Hugging Face hub."
    )
    files: Location | None = Field(
        None, description="Text file that names the files of `input.path` to read, one a line."
    )
    types: dict[str, Literal["string", "int64", "float64", "bool"]] = Field(
        default_factory=dict,
        description="Types of columns of CSV, which are text otherwise, as `level: int64`. In "
        "JSON, `string` turns all values of a column into text, lists and objects into JSON.",
    )
    subset: str | None = Field(
        None, description="Configuration of a data set of the hub, where it has several."
    )
    split: str | None = Field(
        None, description="Split of a data set of the hub, where it has several."
    )
    columns: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="The columns to carry into the output and to make prompts from, by their names "
        "in the files; the others are not read. Default: all.",
    )
    where: str | None = Field(
        None,
        description="Take only rows for which this SQL expression is true, such as `state = "
        "'finished' AND correct IS NOT TRUE`. DuckDB evaluates it on any column of the files.",
    )
    unit: Unit = Field(
        "traces",
        description="What a row is if the input is the output of a run: each of its `traces`, or "
        "with `rows` the first trace of each row for which `where` holds.",
    )
    prompt_column: str | None = Field(
        None,
        description="Text column with the prompt. Default: `prompt` or `messages`, whichever the "
        "files have.",
    )
    context_column: str | None = Field(
        None,
        description="Text column that follows the prompt after a blank line, in rows that have "
        "some, as `input` follows `instruction`.",
    )
    messages_column: str | None = Field(
        None,
        description="Column with a list of `{role, content}`, or of `{from, value}`; earlier "
        "turns, `tool_calls` and so on are kept. Default: also `conversations`.",
    )
    final_answer: FinalAnswer = Field(
        "refuse",
        description="What to do with a conversation that ends with the assistant's turn: `refuse` "
        "fails the row, `drop` generates that turn anew. As the reference: `drop`, and "
        "`answer.reference_column` is the column of messages.",
    )
    tools_column: str | None = Field(
        None,
        description="Column with tool definitions: a list of objects, or JSON text of one. Default "
        "for messages: `tools`, if there is one.",
    )
    length_column: str | None = Field(
        None,
        description="Numeric column that predicts trace lengths, such as an earlier run's tokens "
        "or a guess. The last rows of the run start longest first, so no engine waits for a long "
        "trace that began late.",
    )
    sampling_column: str | None = Field(
        None,
        description="Column with settings of each row's own: an object, or JSON text of one, with "
        "some of `temperature`, `top_p`, `top_k`, `min_p`, `presence_penalty`, "
        "`repetition_penalty`, `max_tokens`, `seed`, `json_schema`. Null: the run's.",
    )
    dedupe: bool = Field(
        False,
        description="Generate rows with identical model input once, and copy the traces to the "
        "others.",
    )

    @property
    def objects(self) -> list[str]:
        """Columns whose objects count as they are written: the order of keys, and null."""
        return [name for name in (self.sampling_column, self.tools_column or "tools") if name]

    @property
    def query(self) -> InputQuery:
        """What the run takes of its files."""
        columns = None if self.columns is None else tuple(self.columns)
        return InputQuery(columns, self.where, self.unit)

    @property
    def settings(self) -> dict[str, Any]:
        """Those that identify a run, by full name, as far as they are not the defaults."""
        given = {"types": dict(self.types) or None, "subset": self.subset, "split": self.split}
        given["final_answer"] = None if self.final_answer == "refuse" else self.final_answer
        given["context_column"] = self.context_column
        more = {f"input.{name}": value for name, value in given.items() if value is not None}
        return {**self.query.settings, **more}
