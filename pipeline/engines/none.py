"""No engine: for rows of which it is known beforehand that none can run them."""

from pipeline.engines.protocol import EngineLoad, Report, Request
from pipeline.errors import RequestRejectedError


class NoEngine:
    """Refuses every request; its context is the longest that a real engine would have."""

    def __init__(self, context_tokens: int) -> None:
        self.context_tokens, self.slots, self.load = context_tokens, 1, EngineLoad()

    async def generate(self, request: Request, report: Report) -> str:
        """Not at all: a row whose prompt could not be rendered before, and now can."""
        raise RequestRejectedError("no engine was started for this row; retry it")

    def close(self) -> None:
        """Nothing to free."""
