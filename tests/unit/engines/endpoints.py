"""Engines whose servers are small real ones, and requests to them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.engines.endpoint import ENDPOINT, EndpointEngine
from pipeline.engines.protocol import EngineLoad, Request
from pipeline.reasoning.sampling import SamplingPolicy
from tests.completions_server import TOKENIZER, CompletionsServer

# Servers that are killed leave sockets behind.
SOCKETS_STAY_OPEN = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
LONG = "".join(f"Step {i}.\n" for i in range(40)) + "</think>\n\n\\boxed{42}"
PROMPT = tuple(TOKENIZER.encode("<|im_start|>assistant\n<think>\n"))
IDS = [*TOKENIZER.encode(LONG), TOKENIZER.eos_token_id]


def config_of(*urls: str, endpoint: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    engine = {"kind": "endpoint", "device": "cpu", "endpoint": {"urls": urls, **(endpoint or {})}}
    return parse_config(
        {"input": {"path": "in"}, "output": {"path": "out"}, "model": {"path": "qwq-nano"},
         "engine": engine, **sections}
    )  # fmt: skip


def engine_of(*running: CompletionsServer, **options: Any) -> EndpointEngine:
    return ENDPOINT.build(config_of(*(one.url for one in running), **options), TOKENIZER)


def request(number: int = 0, **fields: Any) -> Request:
    policy = SamplingPolicy(max_tokens=fields.pop("max_tokens", 1000))
    values = {"carried_token_ids": (), "seed": 7 + number, "trace": f"s:{number}:0", **fields}
    return Request(f"s:{number}:0", PROMPT, policy=policy, **values)


class Tokens(list[int]):
    """Gets token ids; says that the trace loops once there are ``most``."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__()
        self.most = most

    def __call__(self, new: Any) -> bool:
        self.extend(new)
        return len(self) >= self.most


def generate(
    engine: EndpointEngine, *requests: Request, meanwhile: Callable[[], None] = lambda: None
) -> list[tuple[str, list[int]]]:
    """Run requests at once; the reason and the new tokens of each."""

    async def work() -> list[tuple[str, list[int]]]:
        new = [Tokens() for _ in requests]
        running = [
            asyncio.ensure_future(engine.generate(each, tokens))
            for each, tokens in zip(requests, new, strict=True)
        ]
        try:
            await asyncio.sleep(0.1)
            await asyncio.to_thread(meanwhile)
            reasons = await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            await engine._close()
        assert engine.load == EngineLoad()
        return list(zip(reasons, map(list, new), strict=True))

    return asyncio.run(asyncio.wait_for(work(), 30))
