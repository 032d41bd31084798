"""How each row's traces are made: by the run's policy, or with what the row sets itself; no I/O."""

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pipeline.answers.formats import answer_format
from pipeline.answers.json_schema import form_of
from pipeline.reasoning.policy import TracePolicy
from pipeline.reasoning.row_settings import PARAMETERS, SCHEMA, RowSettings
from pipeline.reasoning.trace import TraceMaker

SCHEMAS_KEPT = 256


class RowPolicies:
    """The policy and the trace maker of a row, by its settings.

    ``policy``, ``maker``: of the run. ``are_recorded``: whether traces say what they were sampled
    with.
    """

    def __init__(self, policy: TracePolicy, maker: TraceMaker, are_recorded: bool) -> None:
        self._policy, self._maker, self._are_recorded = policy, maker, are_recorded
        self._of_schema = lru_cache(SCHEMAS_KEPT)(self._make_of_schema)

    def policy(self, settings: RowSettings) -> TracePolicy:
        """The policy of a row."""
        if not settings.names:
            return self._policy
        _, policy = self._of_schema(settings.schema)
        return replace(policy, sampling=settings.applied(policy.sampling))

    def maker(self, settings: RowSettings) -> TraceMaker:
        """What makes a row's traces."""
        return self._of_schema(settings.schema)[0]

    def sampled_with(self, settings: RowSettings) -> dict[str, Any] | None:
        """What a row's traces are sampled with, as the column of that name has it."""
        if not self._are_recorded:
            return None
        policy = self.policy(settings)
        values = {name: getattr(policy.sampling, name) for name in PARAMETERS}
        return {**values, SCHEMA: None if policy.answer is None else policy.answer.schema}

    def _make_of_schema(self, schema: str | None) -> tuple[TraceMaker, TracePolicy]:
        if schema is None:
            return self._maker, self._policy
        maker = self._maker.answering(answer_format("json", form_of(json.loads(schema))))
        return maker, replace(self._policy, answer=maker.answer_pass)
