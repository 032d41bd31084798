"""A simulated engine: no model, but slots, steps, lengths and deaths, for tests and benchmarks.

Its traces have the form of the preset's. Their lengths are log-normal. A request's result depends
only on its seed, unless ``engine.simulated.varies`` is set. Time passes as on a real engine: a step
gives each running sequence one token. It takes longer with more sequences and longer contexts.
"""

import json
import math
import os
import random
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.config.run_config import RunConfig
from pipeline.config.simulated import SimulatedConfig
from pipeline.engines.protocol import (
    TOKENS_A_REPORT,
    EngineLoad,
    OnTokens,
    Request,
    probe_slots,
)
from pipeline.engines.simulated_scheduler import Scheduler, Sequence, Steps
from pipeline.engines.vllm_arguments import (
    VllmArguments,
    context_tokens,
    watermark,
)
from pipeline.errors import EngineDeadError, ModelError
from pipeline.reasoning.policy import EARLY_STOP
from pipeline.reasoning.think_format import ThinkFormat

CONTEXT_TOKENS = 40_960
BOX, FIELD = "\\boxed{", '"answer": "'
LOOP = "Wait, let me think about this once more.\n"


def example(schema: Mapping[str, Any], number: int) -> Any:
    """A value that fits a simple JSON Schema; ``number`` chooses which."""
    if "enum" in schema:
        return schema["enum"][number % len(schema["enum"])]
    if schema.get("type") == "object":
        return {name: example(of, number) for name, of in schema.get("properties", {}).items()}
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        number = low + number % (high - low + 1)
    kinds = {"integer": number, "number": number, "boolean": number % 2 == 0, "array": []}
    return kinds.get(str(schema.get("type")), str(number))


class SimulatedEngine:
    """Waits where a real engine computes."""

    def __init__(
        self,
        config: SimulatedConfig,
        think_format: ThinkFormat,
        scheduler: Scheduler,
        tokenizer: Any,
        context_tokens: int = CONTEXT_TOKENS,
    ) -> None:
        self._config, self._context_tokens = config, context_tokens
        self._tokenizer = tokenizer
        self._marker = think_format.closing
        self._encode = lru_cache(2048)(self._token_ids)
        self._loop, self._thinking = self._encode(LOOP), list[int]()
        self._scheduler = scheduler
        self._dead = False

    @property
    def context_tokens(self) -> int:
        """The most tokens that prompt and output may have together."""
        return self._context_tokens

    @property
    def load(self) -> EngineLoad:
        """The scheduler's figures now."""
        of = self._scheduler
        return EngineLoad(of.running, of.waiting, of.usage, of.preemptions, of.recomputed_tokens)

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        """Wait as long as the trace takes, and pass its tokens on meanwhile."""
        carried = len(request.carried_token_ids)
        sequence = await self._scheduler.enter(len(request.prompt_token_ids) + carried)
        try:
            return await self._generate(request, sequence, on_tokens)
        finally:
            self._scheduler.leave(sequence)

    async def _generate(self, request: Request, sequence: Sequence, on_tokens: OnTokens) -> str:
        self._die_if_told(request)
        whole = self._trace(request)
        token_ids = whole[: request.policy.max_tokens]
        size = TOKENS_A_REPORT if request.schema is None else len(token_ids)
        started = time.time()
        for start in range(len(request.carried_token_ids), len(token_ids), size):
            new = token_ids[start : start + size]
            await self._scheduler.step(sequence, len(new))
            self._die_if_told(request)
            self._note(request.id, len(new), started)
            if on_tokens(new):
                return "repetition"
        return "stop" if len(token_ids) == len(whole) else "length"

    def close(self) -> None:
        """Nothing to free."""

    def _trace(self, request: Request) -> list[int]:
        """The token ids of a whole trace, carried ones included.

        After the pipeline has closed the thinking, only an answer follows. A trace that loops is as
        long as the policy allows.
        """
        rng, config = random.Random(request.seed), self._config
        length = round(config.tokens_median * math.exp(rng.gauss(0, config.tokens_sigma)))
        answer = f"\\boxed{{{rng.randrange(1000)}}}"
        loops = rng.random() < config.loops
        if config.endless and rng.random() < config.endless:
            length = 2 * request.policy.max_tokens
        if rng.random() < config.right:
            answer = "\\boxed{42}"
        if config.varies:
            answer += f" {random.randrange(10**9):09}"
        carried = list(request.carried_token_ids)
        if request.schema is not None:
            right = answer == "\\boxed{42}"
            value = example(json.loads(request.schema), 42 if right else rng.randrange(1000))
            return [*carried, *self._encode(json.dumps(value))]
        end = self._tokenizer.decode(carried[-400:]) if carried else ""
        if end.endswith(FIELD):
            letter = self._encode("ABCD"[rng.randrange(4)] + '"')
            return [*carried, *self._until(request.stop_ids, letter)]
        if EARLY_STOP in end:
            answer = answer.removeprefix(BOX) if end.endswith(BOX) else answer
            return [*carried, *self._until(request.stop_ids, self._encode(answer))]
        if loops:
            longest = request.policy.max_tokens + 1
            return (self._loop * (longest // len(self._loop) + 1))[:longest]
        tail = self._encode(self._marker + answer)
        if config.changes_mind and rng.random() < config.changes_mind:
            answer = f"\\boxed{{{1000 + rng.randrange(1000)}}}"
            tail = self._encode(self._marker + answer)
        thoughts = self._thoughts(max(1, length - len(tail)))
        if rng.random() < config.mixes:
            thoughts += self._encode("让我再想一想。" * 20)
        return [*thoughts, *self._until(request.stop_ids, tail)]

    def _until(self, stop_ids: Iterable[int], token_ids: list[int]) -> list[int]:
        """``token_ids`` up to the first of ``stop_ids``."""
        stops = set(stop_ids)
        end = next((i for i, number in enumerate(token_ids) if number in stops), len(token_ids))
        return token_ids[: end + 1]

    def _thoughts(self, length: int) -> list[int]:
        if len(self._thinking) < length:
            lines = (f"Step {i}: what does {i * i} tell me?\n" for i in range(length // 4 + 256))
            self._thinking = self._encode("".join(lines))
        return self._thinking[:length]

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.backend_tokenizer.encode(
            text, add_special_tokens=False
        ).ids
        return ids

    def _die_if_told(self, request: Request) -> None:
        flag, of = self._config.dies_with, self._config.dies_of
        if flag is not None and _take(Path(flag)):
            self._dead = True
        if of is not None and of in self._tokenizer.decode(request.prompt_token_ids):
            self._dead = True
        if self._dead:
            raise EngineDeadError("the simulated engine was told to die")

    def _note(self, request_id: str, tokens: int, started: float) -> None:
        """Append a line to the log: one write, so that lines of several engines do not mix."""
        if self._config.log is not None:
            times = {"begun": started, "at": time.time()}
            line = json.dumps({"id": request_id, "tokens": tokens, **times}) + "\n"
            file = os.open(self._config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)


def _take(flag: Path) -> bool:
    """Whether there is a file, which is removed, or a folder, which stays."""
    if flag.is_dir():
        return True
    try:
        flag.unlink()
    except FileNotFoundError:
        return False
    return True


class Simulated(VllmArguments):
    """The kind ``simulated``: it stands in for vLLM, and takes its arguments."""

    def build(self, config: RunConfig, tokenizer: Any) -> SimulatedEngine:
        """An engine that writes text of the preset's form in ``tokenizer``'s tokens."""
        engine = config.engine
        flag = engine.simulated.fails_to_start_with
        if flag is not None and _take(Path(os.path.expandvars(flag))):
            raise ModelError("the simulated engine was told not to start")
        scheduler = Scheduler(
            self.slots(engine) + probe_slots(config, self.slots(engine)),
            Steps(engine.simulated),
            engine.simulated.kv_tokens or math.inf,
            watermark(engine),
        )
        return SimulatedEngine(
            engine.simulated, config.think_format, scheduler, tokenizer,
            context_tokens(engine, CONTEXT_TOKENS),
        )  # fmt: skip


SIMULATED = Simulated()
