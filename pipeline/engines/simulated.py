"""A simulated engine: no model, but slots, lengths and deaths, for scheduling and fault tests.

Its traces have the form of the preset's, their lengths are log-normal, and a request's result
depends on its seed alone.
"""

import asyncio
import math
import random
from pathlib import Path
from typing import Any

from pipeline.config import SimulatedConfig
from pipeline.engines.protocol import Generation, Request
from pipeline.errors import EngineDeadError
from pipeline.reasoning import CLOSE_TAG, FINAL_ANSWER
from pipeline.sampling import ThinkFormat

CONTEXT_TOKENS = 40_960
THOUGHT = "Let me think about this once more.\n"


class SimulatedEngine:
    """Sleeps where a real engine computes."""

    def __init__(
        self, config: SimulatedConfig, think_format: ThinkFormat, slots: int, tokenizer: Any
    ) -> None:
        marker = f"\n{CLOSE_TAG}\n\n" if think_format == "think_tags" else f"\n\n{FINAL_ANSWER}\n\n"
        self._config = config
        self._tokenizer = tokenizer
        self._thought = tokenizer.encode(THOUGHT, add_special_tokens=False)
        self._marker = tokenizer.encode(marker, add_special_tokens=False)
        self._slots = slots
        self._running = asyncio.Semaphore(slots)
        self._dead = False

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        return CONTEXT_TOKENS

    @property
    def slots(self) -> int:
        """How many requests run at once; the others wait."""
        return self._slots

    async def generate(self, request: Request) -> Generation:
        """Sleep for as long as the trace is, then return it."""
        async with self._running:
            self._die_if_told()
            token_ids, wanted = self._trace(random.Random(request.seed))
            token_ids = token_ids[: request.policy.max_tokens]
            await asyncio.sleep(len(token_ids) * self._config.seconds_per_token)
            text = self._tokenizer.decode(token_ids, skip_special_tokens=True)
            return Generation(text, token_ids, "stop" if len(token_ids) == wanted else "length")

    def close(self) -> None:
        """Nothing to free."""

    def _trace(self, rng: random.Random) -> tuple[list[int], int]:
        """The token ids of a whole trace, and how many they are."""
        length = round(
            self._config.tokens_median * math.exp(rng.gauss(0, self._config.tokens_sigma))
        )
        answer = self._tokenizer.encode(
            f"\\boxed{{{rng.randrange(1000)}}}", add_special_tokens=False
        )
        tail = [*self._marker, *answer]
        thoughts = max(1, length - len(tail))
        repeats = -(-thoughts // len(self._thought))
        token_ids = [*(self._thought * repeats)[:thoughts], *tail]
        return token_ids, len(token_ids)

    def _die_if_told(self) -> None:
        flag = self._config.dies_with
        if flag is not None and Path(flag).exists():
            self._dead = True
            if Path(flag).is_file():
                Path(flag).unlink()
        if self._dead:
            raise EngineDeadError("the simulated engine was told to die")
