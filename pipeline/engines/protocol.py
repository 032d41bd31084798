"""What an actor asks of an engine; no I/O."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.reasoning.sampling import SamplingPolicy

# How often an engine tells of the tokens of a running request.
TOKENS_A_REPORT = 64

# Gets new token ids; True: this request is to end, it goes in circles.
Report = Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class Request:
    """One sample of one row, from its prompt or from where an earlier run had brought it.

    ``id`` is for logs. ``carried_token_ids`` were generated before; what is still to come
    continues them, and ``policy.max_tokens`` counts them too. ``stop_id``: a token, besides those
    that end a turn, after which it stops. ``schema``: a JSON Schema that what is generated fits;
    it is reported all at once, because a grammar can't go on from the middle.
    """

    id: str
    prompt_token_ids: Sequence[int]
    carried_token_ids: Sequence[int]
    policy: SamplingPolicy
    seed: int
    stop_id: int | None = None
    schema: str | None = None


@dataclass(frozen=True)
class EngineLoad:
    """What an engine does at one moment: sequences that run and that wait for a slot.

    ``kv_usage``: the share of its KV cache that is in use; None where it has none.
    """

    running: int = 0
    waiting: int = 0
    kv_usage: float | None = None


class Engine(Protocol):
    """An engine that runs many requests at once."""

    @property
    def load(self) -> EngineLoad:
        """What it does now; asked in the event loop's thread."""
        ...

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        ...

    @property
    def slots(self) -> int:
        """How many sequences it runs at once."""
        ...

    async def generate(self, request: Request, report: Report) -> str:
        """Run one request to its end; returns why it ended, in vLLM's words.

        The words are ``stop``, ``length`` or, where ``report`` has ended it, ``repetition``.
        ``report`` gets every new token id once, in order, some `TOKENS_A_REPORT` at a time; all of
        them when this returns. Raises `RequestRejectedError` if this request can't run,
        `EngineDeadError` if none can.
        """
        ...

    def close(self) -> None:
        """Stop the engine and free what it holds; running requests end."""
        ...
