"""An engine that is elsewhere: servers of vLLM (`vllm serve`) that run already do the work.

Token ids go out and come back, as with an engine of our own, so all the rest stays as it is. A
request that a server loses continues on another one from its last token. Network I/O, in the event
loop that calls `EndpointEngine.generate`.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import aiohttp

from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines.endpoint_client import (
    SAMPLE,
    Expected,
    Key,
    ServerAwayError,
    ServerBusyError,
    ServerClient,
    ServerError,
    ServerUnfitError,
    open_session,
    schema_fields,
)
from pipeline.engines.endpoint_limit import RequestLimit
from pipeline.engines.endpoint_pool import Server, ServerPool
from pipeline.engines.protocol import (
    TOKENS_A_REPORT,
    EngineLoad,
    EngineType,
    OnTokens,
    Request,
    probe_slots,
)
from pipeline.engines.vllm_arguments import spaced_schema
from pipeline.errors import ConfigError, EngineDeadError, ModelError, RequestRejectedError
from pipeline.prompts.tokenizer import load_tokenizer
from pipeline.reasoning.sampling import continued_seed

logger = logging.getLogger(__name__)
# How often in a row a request may be lost before it has a new token. Then it may be the request
# that kills servers: the actor starts again, and finds out by running suspects alone.
MOST_LOSSES = 3
MODEL = "engine.endpoint.model"


class EndpointEngine:
    """Generates on ``servers``, of which some were up when they were examined.

    ``expected``: what each of them must have when it comes back.
    """

    def __init__(self, servers: Sequence[Server], expected: Expected) -> None:
        served = [server.served for server in servers if server.served is not None]
        self.context_tokens = min(each.context_tokens for each in served)
        self._expected = replace(expected, context_tokens=self.context_tokens)
        self._pool = ServerPool(servers, self._examine)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def details(self) -> dict[str, str]:
        """What each server serves, by its address."""
        return {
            server.client.url: "down" if server.served is None else server.served.details
            for server in self._pool.servers
        }

    @property
    def load(self) -> EngineLoad:
        """Requests at servers, and those that wait for one."""
        return EngineLoad(self._pool.running, self._pool.waiting)

    async def generate(self, request: Request, on_tokens: OnTokens) -> str:
        """Run one request to its end; see `Engine.generate`."""
        token_ids, carried = list(request.carried_token_ids), len(request.carried_token_ids)
        by_schema, losses = request.schema is not None, 0

        def keep(new: Sequence[int]) -> bool:
            token_ids.extend(new)
            return not by_schema and on_tokens(new)

        reason = "length"
        while (left := self._tokens_left(request, len(token_ids))) > 0:
            before = len(token_ids)
            try:
                reason = await self._try(request, token_ids, keep, left)
            except (ServerBusyError, ServerAwayError):
                continue
            except ServerError as error:
                losses = 0 if len(token_ids) > before and not by_schema else losses + 1
                if losses >= MOST_LOSSES:
                    raise EngineDeadError(f"a request was lost {losses} times: {error}") from None
                if by_schema:  # a grammar can't continue from the middle
                    del token_ids[carried:]
                continue
            if reason != "length" or len(token_ids) - before >= left:
                break
            if by_schema or len(token_ids) == before:
                raise RequestRejectedError(
                    f"the server ended it after {len(token_ids) - before} tokens of {left}; serve "
                    "without max_new_tokens in its generation config"
                )
        if by_schema:
            on_tokens(token_ids[carried:])
        return reason

    async def _try(
        self, request: Request, token_ids: list[int], on_tokens: OnTokens, max_tokens: int
    ) -> str:
        """One attempt at ``max_tokens`` more tokens, on one server."""
        async with self._pool.visit(request.trace) as visit:
            assert visit.server.served is not None, "a server that is up was examined"
            body = _body(visit.server.served.model, request, token_ids, max_tokens)
            completion = visit.server.client.completion(self._here(), body)
            async with aclosing(completion):  # leaving early ends the request
                async for chunk in completion:
                    self._pool.begun(visit)
                    loops = bool(chunk.token_ids) and on_tokens(chunk.token_ids)
                    if chunk.finish_reason is not None:
                        return chunk.finish_reason
                    if loops:
                        return "repetition"
        raise AssertionError("a completion ends with a reason or an error")

    def _tokens_left(self, request: Request, generated: int) -> int:
        context_left = self.context_tokens - len(request.prompt_token_ids)
        return min(request.policy.max_tokens, context_left) - generated

    async def _examine(self, server: Server) -> None:
        served = await server.client.examine(self._here(), self._expected)
        if server.served is not None and served.root != server.served.root:
            raise ServerUnfitError(
                f"{server.client.url} serves {served.model} from {served.root}, and the run began "
                f"with {server.served.root}; serve that again"
            )
        server.served = served

    def _here(self) -> aiohttp.ClientSession:
        """The connections, which belong to the event loop in which requests run."""
        if self._session is None:
            self._session, self._loop = open_session(), asyncio.get_running_loop()
            self._pool.open()
        return self._session

    def close(self) -> None:
        """End what runs, and the connections."""
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self._close(), self._loop)

    async def _close(self) -> None:
        self._pool.close()
        if self._session is not None:
            await self._session.close()


def _body(
    model: str, request: Request, token_ids: Sequence[int], max_tokens: int
) -> dict[str, Any]:
    """The fields of a request that continues after ``token_ids``.

    All that the generation config of a server could decide is set.
    """
    schema = request.schema
    return {
        "model": model,
        "prompt": [*request.prompt_token_ids, *token_ids],
        "frequency_penalty": 0.0,
        **request.policy.engine_parameters,
        "max_tokens": max_tokens,
        "seed": continued_seed(request.seed, len(token_ids)),
        "stop_token_ids": list(request.stop_ids),
        "stream_interval": TOKENS_A_REPORT,
        **({} if schema is None else schema_fields(spaced_schema(schema))),
    }


def examined(config: RunConfig, tokenizer: Any) -> tuple[list[Server], Expected]:
    """The servers of ``config``, and what each must have: the model of the first that is up.

    Raises `ModelError` if none is up, or if one is up and can't do the work.
    """
    if config.model.lora is not None:
        raise ModelError(
            "model.lora: servers have their own adapters; serve with --lora-modules NAME=PATH, set "
            "engine.endpoint.model=NAME, and remove model.lora"
        )
    settings = config.engine.endpoint
    most = settings.slots + probe_slots(config, settings.slots)
    key = Key(settings.api_key_env)
    servers = [Server(ServerClient(url, key), RequestLimit(most)) for url in settings.urls]
    sample_ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
    expected = Expected(settings.model, sample_ids, config.answer.schema_text)
    with ThreadPoolExecutor(1) as thread:  # that of a notebook has an event loop already
        expected = thread.submit(asyncio.run, _examine_all(servers, expected)).result()
    down = [server.down for server in servers if server.down is not None]
    unfit = [error for error in down if isinstance(error, ServerUnfitError)]
    if unfit or len(down) == len(servers):
        raise ModelError("engine.endpoint.urls: " + "\n".join(map(str, unfit or down)))
    return servers, expected


async def _examine_all(servers: Sequence[Server], expected: Expected) -> Expected:
    """Examine all servers at once; sets what each serves, or why it is down.

    Returns ``expected`` with the name of the model, if any server is up.
    """

    async def examine(server: Server) -> None:
        try:
            server.served = await server.client.examine(session, expected)
        except ServerError as error:
            server.served, server.down = None, error

    async with open_session() as session:
        await asyncio.gather(*map(examine, servers))
        models = [server.served.model for server in servers if server.served is not None]
        if not models:
            return expected
        expected = replace(expected, model=models[0])
        # Of several names of one model, a server may list another one first.
        others = [s for s in servers if s.served is not None and s.served.model != models[0]]
        await asyncio.gather(*map(examine, others))
    return expected


class Endpoint(EngineType):
    """The kind ``endpoint``."""

    packages = ("aiohttp",)

    def build(self, config: RunConfig, tokenizer: Any) -> EndpointEngine:
        """Examine the servers; nothing else is started."""
        servers, expected = examined(config, tokenizer)
        for server in servers:
            if server.down is not None:
                logger.warning("%s; the others do its work until it is up", server.down)
        return EndpointEngine(servers, expected)

    def check(self, engine: EngineConfig) -> None:
        """Raise `ConfigError` without a server, and for what servers decide."""
        if engine.is_elastic:
            raise ConfigError(
                "engine.replicas: one engine drives all servers of engine.kind endpoint, and they "
                "may come and go; set engine.replicas=1"
            )
        super().check(engine)
        if not engine.endpoint.urls:
            raise ConfigError(
                "engine.endpoint.urls is empty; name the servers, such as [http://host:8000]"
            )
        if engine.device != "cpu":
            raise ConfigError(
                "engine.device gpu: the servers have the GPUs, and engine.kind endpoint needs none "
                "itself; set engine.device=cpu"
            )
        if engine.ranks > 1:
            raise ConfigError(
                "engine.tensor_parallel, engine.pipeline_parallel: `vllm serve` decides them; "
                "remove them"
            )
        if engine.vllm:
            raise ConfigError(
                f"engine.vllm has {', '.join(engine.vllm)}, which are arguments of `vllm serve` "
                "where engine.kind is endpoint; remove them here (--set engine.vllm=null)"
            )

    def services(self, config: RunConfig) -> Iterator[tuple[bool, str]]:
        """What each server serves, or why it is down."""
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        for server in examined(config, tokenizer)[0]:
            if server.served is None:
                yield False, str(server.down)
            else:
                yield True, f"{server.client.url}: {server.served.details}"

    def slots(self, engine: EngineConfig) -> int:
        """Those of all servers."""
        return engine.endpoint.slots * max(1, len(engine.endpoint.urls))

    def result_settings(self, engine: EngineConfig) -> dict[str, Any]:
        """The model's name, if it is known: where the servers are changes no row."""
        name = engine.endpoint.model
        return {} if name is None else {MODEL: name}

    def found_at_start(self, config: RunConfig) -> dict[str, Any]:
        """The name of the only model that the servers have, unless it is set."""
        if config.engine.endpoint.model is not None:
            return {}
        tokenizer = load_tokenizer(config.model.path, config.model.revision)
        return {MODEL: examined(config, tokenizer)[1].model}

    def as_begun(self, engine: EngineConfig, settings: Mapping[str, Any]) -> EngineConfig:
        """With the model's name of the run, unless another is set."""
        if engine.endpoint.model is not None:
            return engine
        named = engine.endpoint.model_copy(update={"model": settings.get(MODEL)})
        return engine.model_copy(update={"endpoint": named})

    def details(self, engine: EndpointEngine) -> dict[str, Any]:
        """What each server serves."""
        return engine.details

    def plan_lines(self, engine: EngineConfig) -> Iterator[str]:
        """The servers."""
        settings = engine.endpoint
        yield f"servers   {', '.join(settings.urls)}, {settings.slots} requests each at most"


ENDPOINT = Endpoint()
