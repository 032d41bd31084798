"""A simulated engine: no model, but slots, lengths and deaths, for scheduling and fault tests.

Its traces have the form of the preset's, their lengths are log-normal, and a request's result
depends on its seed alone, unless the config says that it varies.
"""

import asyncio
import json
import math
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.engines.protocol import TOKENS_A_REPORT, Report, Request
from pipeline.errors import EngineDeadError
from pipeline.policy import EARLY_STOP
from pipeline.reasoning import ThinkFormat
from pipeline.sections import SimulatedConfig

CONTEXT_TOKENS = 40_960
LOOP = "Wait, let me think about this once more.\n"


def example(schema: Mapping[str, Any], number: int) -> Any:
    """A value that fits a simple JSON Schema; ``number`` chooses which."""
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if schema.get("type") == "object":
        return {name: example(of, number) for name, of in schema.get("properties", {}).items()}
    kinds = {"integer": number, "number": number, "boolean": number % 2 == 0, "array": []}
    return kinds.get(str(schema.get("type")), str(number))


class SimulatedEngine:
    """Sleeps where a real engine computes."""

    def __init__(
        self,
        config: SimulatedConfig,
        think_format: ThinkFormat,
        slots: int,
        tokenizer: Any,
        context_tokens: int = CONTEXT_TOKENS,
    ) -> None:
        self._config, self._context_tokens = config, context_tokens
        self._tokenizer = tokenizer
        self._marker = think_format.closing
        self._loop = self._encode(LOOP)
        self._slots = slots
        self._running = asyncio.Semaphore(slots)
        self._dead = False

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        return self._context_tokens

    @property
    def slots(self) -> int:
        """How many requests run at once; the others wait."""
        return self._slots

    async def generate(self, request: Request, report: Report) -> str:
        """Sleep for as long as the trace is, telling of its tokens meanwhile."""
        async with self._running:
            self._die_if_told(request)
            whole = self._trace(request)
            token_ids = whole[: request.policy.max_tokens]
            size = TOKENS_A_REPORT if request.schema is None else len(token_ids)
            for start in range(len(request.carried_token_ids), len(token_ids), size):
                new = token_ids[start : start + size]
                await asyncio.sleep(len(new) * self._config.seconds_per_token)
                self._die_if_told(request)
                self._note(request.id, len(new))
                if report(new):
                    return "repetition"
            return "stop" if len(token_ids) == len(whole) else "length"

    def close(self) -> None:
        """Nothing to free."""

    def _trace(self, request: Request) -> list[int]:
        """The token ids of a whole trace; where thinking was closed for it, an answer behind that.

        One that loops is as long as it may be.
        """
        rng, config = random.Random(request.seed), self._config
        length = round(config.tokens_median * math.exp(rng.gauss(0, config.tokens_sigma)))
        answer = f"\\boxed{{{rng.randrange(1000)}}}"
        loops = rng.random() < config.loops
        if rng.random() < config.right:
            answer = "\\boxed{42}"
        if config.varies:
            answer += f" {random.randrange(10**9):09}"
        carried = list(request.carried_token_ids)
        if request.schema is not None:
            right = answer == "\\boxed{42}"
            value = example(json.loads(request.schema), 42 if right else rng.randrange(1000))
            return [*carried, *self._encode(json.dumps(value))]
        if EARLY_STOP in self._tokenizer.decode(carried[-400:]):
            return [*carried, *self._encode(answer)]
        if loops:
            longest = request.policy.max_tokens + 1
            return (self._loop * (longest // len(self._loop) + 1))[:longest]
        tail = self._encode(self._marker + answer)
        thoughts = self._thoughts(max(1, length - len(tail)))
        if rng.random() < config.mixes:
            thoughts += self._encode("让我再想一想。" * 20)
        if request.stop_id in tail:
            tail = tail[: tail.index(request.stop_id) + 1]
        return [*thoughts, *tail]

    def _thoughts(self, length: int) -> list[int]:
        lines = (f"Step {i}: what does {i * i} tell me?\n" for i in range(length // 8 + 1))
        return self._encode("".join(lines))[:length]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _die_if_told(self, request: Request) -> None:
        flag, of = self._config.dies_with, self._config.dies_of
        if flag is not None and Path(flag).exists():
            self._dead = True
            if Path(flag).is_file():
                Path(flag).unlink(missing_ok=True)
        if of is not None and of in self._tokenizer.decode(request.prompt_token_ids):
            self._dead = True
        if self._dead:
            raise EngineDeadError("the simulated engine was told to die")

    def _note(self, request_id: str, tokens: int) -> None:
        """Append a line to the log: one write, so that lines of several engines do not mix."""
        if self._config.log is not None:
            line = json.dumps({"id": request_id, "tokens": tokens}) + "\n"
            file = os.open(self._config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
