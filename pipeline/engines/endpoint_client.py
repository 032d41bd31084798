"""A server of vLLM over HTTP: what it serves, and completions as streams of token ids.

Network I/O. Written against `vllm serve` 0.32, whose request fields are those of `SamplingParams`;
what a server lacks is found by `examine`, not by its version.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from pipeline.engines.vllm_arguments import spaced_schema
from pipeline.errors import RequestRejectedError
from pipeline.time_limits import SERVER_CONNECT_SECONDS, SERVER_SILENT_SECONDS

# How long an answer about the server itself may take.
QUESTION = aiohttp.ClientTimeout(total=60.0)
STREAM = aiohttp.ClientTimeout(
    total=None, sock_connect=SERVER_CONNECT_SECONDS, sock_read=SERVER_SILENT_SECONDS
)
MOST_MESSAGE = 400  # characters of a server's message
# Text whose token ids tell tokenizers apart: digits, spaces, scripts, line ends, control tokens.
SAMPLE = (
    "<|im_start|>user\nHow  many r's are in 12,345 Erdbeeren, 三 or 🙂?<|im_end|>\n<think>\n\tso"
)
# A schema with one answer, which no model gives by chance.
TRIAL_SCHEMA, TRIAL_ANSWER = {"enum": ["qwq"]}, '"qwq"'
LACKS_IDS = (
    "returns no token ids; it must be a `vllm serve` that knows return_token_ids, as 0.32 does"
)


class ServerError(Exception):
    """A server did not do what it was asked; another one may."""


class ServerBusyError(ServerError):
    """It has too much to do, and wants no request for ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerLostError(ServerError):
    """An internal error, a stream without an end, or silence."""


class ServerAwayError(ServerLostError):
    """There is no connection, so the request never came there."""


class ServerUnfitError(ServerError):
    """It can't do what is asked of it, and will not be able to until somebody changes it."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a completion.

    ``finish_reason``: of the last one, None before; ``prompt_token_ids``: of the first one.
    """

    token_ids: Sequence[int]
    text: str
    finish_reason: str | None
    prompt_token_ids: Sequence[int] | None


@dataclass(frozen=True)
class Served:
    """What a server serves.

    ``model``: its name there; ``root``: where the server has it from. ``context_tokens``: the most
    of prompt and output together.
    """

    model: str
    root: str
    context_tokens: int
    details: str


@dataclass(frozen=True)
class Expected:
    """What a server must have. ``sample_ids``: `SAMPLE` in the run's tokens.

    ``model``: its name; None: the only one. ``schema``: a JSON Schema to generate by.
    ``context_tokens``: at least so many.
    """

    model: str | None
    sample_ids: Sequence[int]
    schema: str | None
    context_tokens: int = 0


@dataclass(frozen=True)
class Key:
    """The API key of the servers: the value of the environment variable ``variable``, if set."""

    variable: str

    @property
    def fits_header(self) -> bool:
        """Whether it can be sent."""
        return self._value.isprintable()

    @property
    def headers(self) -> dict[str, str]:
        """What tells a server the key."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def hidden(self, text: str) -> str:
        """``text`` without the key: servers repeat what they refuse."""
        return text.replace(self._value, "***") if self._value else text

    @property
    def _value(self) -> str:
        return os.environ.get(self.variable, "").strip()


def open_session() -> aiohttp.ClientSession:
    """Connections for the present event loop.

    One for each request: a server may close one that is kept at the moment in which it is used
    again, which would look like a lost server.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))


class ServerClient:
    """The server at ``url``. Its methods raise `ServerError` and `RequestRejectedError`."""

    def __init__(self, url: str, key: Key) -> None:
        self.url, self._key = url, key

    async def examine(self, session: aiohttp.ClientSession, expected: Expected) -> Served:
        """What it serves, if that is what is expected."""
        if not self._key.fits_header:
            raise self._unfit(
                f"needs a key without line breaks; the one in the environment variable "
                f"{self._key.variable} has some, or other characters that can't be sent"
            )
        try:
            cards = await self._cards(session)
        except RequestRejectedError as error:
            raise self._unfit(f"refuses /v1/models: {error.args[0]}") from None
        card = self._card(cards, expected.model)
        # The card of an adapter leaves it to that of its model.
        contexts = (each.get("max_model_len") for each in (card, *cards))
        context = next((tokens for tokens in contexts if isinstance(tokens, int)), None)
        if context is None:
            raise self._unfit("says no max_model_len in /v1/models; it must be `vllm serve`")
        if context < expected.context_tokens:
            raise self._unfit(
                f"has a context of {context:,} tokens, and the run began with "
                f"{expected.context_tokens:,}; serve with --max-model-len {expected.context_tokens}"
            )
        version, name = await self._version(session), str(card["id"])
        try:
            await self._check_tokens(session, name, expected.sample_ids)
            if expected.schema is not None:
                await self._check_schema(session, name, expected.schema)
        except RequestRejectedError as error:
            raise self._unfit(f"refuses a short request: {error.args[0]}") from None
        root = str(card.get("root") or name)
        return Served(name, root, context, f"vLLM {version}, {name} ({root}), {context:,} tokens")

    async def completion(
        self, session: aiohttp.ClientSession, body: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        """Stream a completion; ``body``: of the request. Leaving early ends it on the server too.

        If it ends without an error, the last chunk has the reason.
        """
        body = {**body, "stream": True, "return_token_ids": True, "n": 1}
        async with self._request(session, "POST", "/v1/completions", body) as response:
            if response.content_type != "text/event-stream":
                raise self._unfit("does not stream /v1/completions; it must be `vllm serve`")
            reason = None
            async for data in _events(response):
                if data == b"[DONE]":
                    break
                chunk = self._chunk(data, body["prompt"])
                if chunk is not None:
                    reason = chunk.finish_reason
                    yield chunk
            if reason is None:
                raise ServerLostError(f"{self.url}: the stream ended before the request")

    def _chunk(self, data: bytes, prompt: object) -> Chunk | None:
        """A piece of a stream; None if it has none of the output."""
        try:
            event = json.loads(data)
            choice: dict[str, Any] = next(iter(event.get("choices", ())), {})
            reason, token_ids = choice.get("finish_reason"), choice.get("token_ids")
        except (ValueError, AttributeError, TypeError):
            raise ServerLostError(f"{self.url} sent what is no piece of a completion") from None
        if event.get("error"):
            raise self._error_of(event)
        if not choice:
            return None
        if reason not in (None, "stop", "length"):
            raise ServerLostError(f"{self.url} gave a request up ({reason})")
        if not isinstance(token_ids, list):
            raise self._unfit(LACKS_IDS)
        given = choice.get("prompt_token_ids")
        if given is not None and isinstance(prompt, list) and given != prompt:
            raise self._unfit("changes the prompt; it must take token ids as they are")
        return Chunk(token_ids, choice.get("text") or "", reason, given)

    async def _cards(self, session: aiohttp.ClientSession) -> list[Mapping[str, Any]]:
        async with self._request(session, "GET", "/v1/models") as response:
            try:
                cards = json.loads(await response.read())["data"]
                return [card for card in cards if card["id"]]
            except (ValueError, KeyError, TypeError):
                raise self._unfit(
                    "lists no models at /v1/models; it must be `vllm serve`"
                ) from None

    def _card(self, cards: Sequence[Mapping[str, Any]], model: str | None) -> Mapping[str, Any]:
        """The card of ``model``, or of the only model, which may have several names."""
        names = ", ".join(str(card["id"]) for card in cards) or "nothing"
        if model is not None:
            for card in cards:
                if card["id"] == model:
                    return card
            raise self._unfit(
                f"serves {names}, and not {model}; serve that model there, or set "
                "engine.endpoint.model to a name that all servers have"
            )
        base = [card for card in cards if card.get("parent") is None]
        if len({card.get("root") or card["id"] for card in base}) != 1:
            raise self._unfit(f"serves {names}; set engine.endpoint.model to one of them")
        return base[0]

    async def _version(self, session: aiohttp.ClientSession) -> str:
        """The server's version, unless something in front of it does not pass the question on."""
        try:
            async with self._request(session, "GET", "/version") as response:
                return str(json.loads(await response.read())["version"])
        except (ServerUnfitError, RequestRejectedError, ValueError, KeyError, TypeError):
            return "of unknown version"

    async def _check_tokens(
        self, session: aiohttp.ClientSession, name: str, sample_ids: Sequence[int]
    ) -> None:
        """Whether it streams token ids, and those of the run's tokenizer."""
        body = {"model": name, "prompt": SAMPLE, "add_special_tokens": False, "max_tokens": 1}
        async with aclosing(self.completion(session, body)) as chunks:
            async for chunk in chunks:
                if chunk.prompt_token_ids is None:
                    raise self._unfit(LACKS_IDS)
                if chunk.prompt_token_ids != list(sample_ids):
                    raise self._unfit(
                        f"has another tokenizer than model.path, so {name} is another model; serve "
                        "the run's model there, or set model.path to the server's"
                    )
                return

    async def _check_schema(self, session: aiohttp.ClientSession, name: str, schema: str) -> None:
        """Whether it generates by a JSON Schema, and takes that of the run."""
        body = {"model": name, "prompt": SAMPLE, "max_tokens": 16, **schema_fields(TRIAL_SCHEMA)}
        text = "".join([chunk.text async for chunk in self.completion(session, body)])
        if text.strip() != TRIAL_ANSWER:
            raise self._unfit(
                "does not generate by a JSON Schema, which answer.json_schema needs; it must be a "
                "`vllm serve` that knows structured_outputs, as 0.32 does"
            )
        body |= {"max_tokens": 1, **schema_fields(spaced_schema(schema))}
        try:
            async for _ in self.completion(session, body):
                pass
        except RequestRejectedError as error:
            raise self._unfit(
                f"can't generate by answer.json_schema: {error.args[0]}; simplify the schema, or "
                'serve with --structured-outputs-config \'{"backend": "guidance"}\''
            ) from None

    @asynccontextmanager
    async def _request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A response with status 200; the body of the ``with`` reads it."""
        try:
            async with session.request(
                method,
                self.url + path,
                json=body,
                headers=self._key.headers,
                allow_redirects=False,
                timeout=QUESTION if body is None else STREAM,
            ) as response:
                if response.status != 200:
                    raise self._refusal(response, await response.text(errors="replace"))
                yield response
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ServerAwayError(f"{self.url} can't be reached: {error}") from None
        except TimeoutError:
            raise ServerLostError(f"{self.url} does not answer") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = self._key.hidden(str(error)) or type(error).__name__
            raise ServerLostError(f"{self.url} broke off: {reason}") from None

    def _refusal(self, response: aiohttp.ClientResponse, text: str) -> Exception:
        """What a status other than 200 means."""
        status, message = response.status, self._message(text)
        told = f"{self.url} answers {status}: {message}"
        if status in (429, 503):
            return ServerBusyError(told, _seconds(response.headers.get("Retry-After")))
        if status >= 500 or status == 408:
            return ServerLostError(told)
        if status in (400, 413, 422):
            return RequestRejectedError(message)
        if status in (401, 403):
            has_key = "is not its key" if self._key.headers else "is not set"
            return ServerUnfitError(
                f"{told} (the environment variable {self._key.variable} {has_key}; it must be on "
                "every node, or set engine.endpoint.api_key_env)"
            )
        if status == 404:
            return ServerUnfitError(f"{told} (it must be `vllm serve`, and have the model)")
        return ServerUnfitError(told)

    def _error_of(self, event: Mapping[str, Any]) -> Exception:
        """What an error in the middle of a stream means."""
        error, message = event["error"], self._message(json.dumps(event))
        code = error.get("code") if isinstance(error, dict) else None
        if code in (400, 413, 422):
            return RequestRejectedError(message)
        return ServerLostError(f"{self.url} broke off: {message}")

    def _message(self, text: str) -> str:
        """The message in a server's error, on one line."""
        try:
            error = json.loads(text)
            error = error.get("error", error)
            message = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            message = text
        return self._key.hidden(" ".join(message.split()))[:MOST_MESSAGE] or "(no message)"

    def _unfit(self, reason: str) -> ServerUnfitError:
        return ServerUnfitError(f"{self.url} {reason}")


def schema_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request for text that fits a JSON Schema."""
    return {"structured_outputs": {"json": schema}}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of server-sent events, wherever the pieces of the stream are cut."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip()


def _seconds(retry_after: str | None) -> float:
    """The header ``Retry-After`` in seconds; 0 without one, or if it is a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 0.0
