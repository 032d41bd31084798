"""The prompt and the settings of each row of a run; no I/O."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pipeline.answers.formats import answer_format
from pipeline.answers.json_schema import form_of
from pipeline.config.run_config import RunConfig
from pipeline.errors import InvalidPromptError, RowError
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import Message, row_messages
from pipeline.prompts.render import Prompt, PromptRenderer, render_row
from pipeline.reasoning.row_settings import NO_SETTINGS, RowSettings, read_settings


class RowPrompts:
    """Reads rows of a run: what is asked of the model, and with which settings."""

    def __init__(self, config: RunConfig, columns: PromptColumns) -> None:
        self._config, self.columns = config, columns
        self._system, self._column = config.prompt.system, config.input.sampling_column
        self._suffix = config.suffix_text
        self._suffix_for = lru_cache(256)(self._make_suffix)

    def settings(self, row: Mapping[str, Any]) -> RowSettings:
        """What the row sets itself; raises `InvalidPromptError` for anything wrong with it."""
        if self._column is None:
            return NO_SETTINGS
        try:
            return read_settings(row[self._column])
        except Exception as error:  # rows hold anything, such as text that is not UTF-8
            raise InvalidPromptError(f"{self._column}: {error}") from None

    def render(self, renderer: PromptRenderer, row: Mapping[str, Any]) -> Prompt:
        """The prompt of a row; raises a `RowError` for anything wrong with the row."""
        return render_row(renderer, row, self.columns, self._system, self._suffix_of(row))

    def messages(self, row: Mapping[str, Any]) -> list[Message]:
        """The chat messages of a row; raises as `row_messages`."""
        return row_messages(row, self.columns, self._system, self._suffix_of(row))

    def max_tokens(self, row: Mapping[str, Any]) -> int:
        """The most tokens of one of the row's samples; the run's for a row with wrong settings."""
        policy = self._config.sampling
        try:
            return self.settings(row).applied(policy).max_tokens
        except RowError:
            return policy.max_tokens

    def _suffix_of(self, row: Mapping[str, Any]) -> str | None:
        if self._column is None:
            return self._suffix
        schema = self.settings(row).schema
        return self._suffix if schema is None else self._suffix_for(schema)

    def _make_suffix(self, schema: str) -> str | None:
        """The suffix of a row with a schema of its own, which a named suffix may spell out."""
        return self._config.suffix_for(answer_format("json", form_of(json.loads(schema))))
