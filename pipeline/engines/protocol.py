"""What an actor asks of an engine; no I/O."""

from dataclasses import dataclass
from typing import Protocol

from pipeline.sampling import SamplingPolicy


@dataclass(frozen=True)
class Request:
    """One sample of one row: the prompt's token ids, the policy, and the sample's own seed."""

    prompt_token_ids: list[int]
    policy: SamplingPolicy
    seed: int


@dataclass(frozen=True)
class Generation:
    """What came out: text without the end-of-turn token, all token ids, and why it ended.

    ``finish_reason`` is vLLM's: ``stop``, ``length`` or ``repetition``.
    """

    text: str
    token_ids: list[int]
    finish_reason: str


class Engine(Protocol):
    """An engine that runs many requests at once."""

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        ...

    @property
    def slots(self) -> int:
        """How many sequences it runs at once."""
        ...

    async def generate(self, request: Request) -> Generation:
        """Run one request to its end.

        Raises `RequestRejectedError` if this request can't run, `EngineDeadError` if none can.
        """
        ...

    def close(self) -> None:
        """Stop the engine and free what it holds; running requests end."""
        ...
