"""A server that speaks as much of `vllm serve` as the pipeline uses, and misbehaves on demand.

Its "model" is a fixed text: what follows the last `<think>` of a prompt must be the beginning of that
text, and it goes on from there. So a token that is lost or comes twice is noticed.
"""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from pipeline.prompts.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer("qwq-nano")
ANSWER = "Easy.\n</think>\n\nThe answer is \\boxed{42}."
KEY = "PLANTEDkeyPLANTED7"
PIECE = 8  # tokens of an event


class CompletionsServer:
    """One server in a thread of its own. Tests change its attributes while it runs.

    ``refusals``: statuses of the next completions, with header and text. ``dies_after``: tokens of a
    completion after which the connection breaks, for the next ``deaths`` completions.
    """

    def __init__(self, text: str = ANSWER, port: int = 0) -> None:
        self.token_ids: list[int] = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
        self.port, self.key = port, ""
        self.names, self.root = ["qwq"], "/model"
        self.context_tokens, self.seconds_a_piece = 8192, 0.0
        self.models_status = 200
        self.refusals = deque[tuple[int, dict[str, str], str]]()
        self.dies_after, self.deaths, self.hidden = 0, 0, set[str]()
        self.most_running, self.running, self.peak = 10_000, 0, 0
        self.bytes_a_write = 1 << 20
        self.event: Callable[[Any], Any] = lambda choice: {"choices": [choice]}
        self.answers_schemas, self.cap = True, 10**9
        self.bodies, self.aborted = list[dict[str, Any]](), 0
        self._transports = set[asyncio.Transport]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The bodies of requests that have token ids: those of the run, not of its examination."""
        return [body for body in self.bodies if isinstance(body["prompt"], list)]

    def start(self) -> None:
        """Listen, at the same port as before."""
        self._wait(self._start())

    def kill(self) -> None:
        """Break off all connections, and take no more."""
        self._wait(self._kill())

    def close(self) -> None:
        """End its thread."""
        self.kill()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, work: Any) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/completions", self._completions)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _kill(self) -> None:
        for transport in list(self._transports):
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        if (refusal := self._unauthorized(request)) is not None:
            return refusal
        if self.models_status != 200:
            return web.Response(status=self.models_status, text="no such path")
        cards = [
            {"id": name, "root": self.root, "parent": None, "max_model_len": self.context_tokens}
            for name in self.names
        ]
        data = [{k: v for k, v in card.items() if k not in self.hidden} for card in cards]
        return web.json_response({"object": "list", "data": data})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if not self.key or given == f"Bearer {self.key}":
            return None
        told = {"error": {"message": f"Incorrect API key provided: {given}", "code": 401}}
        return web.json_response(told, status=401)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        if (refusal := self._unauthorized(request)) is not None:
            return refusal
        body = await request.json()
        self.bodies.append(body)
        if body["model"] not in self.names:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        if self.refusals and isinstance(body["prompt"], list):
            status, headers, text = self.refusals.popleft()
            return web.Response(status=status, headers=headers, text=text)
        if self.running >= self.most_running:
            return web.json_response({"error": {"message": "too many"}}, status=429)
        prompt, is_text = body["prompt"], isinstance(body["prompt"], str)
        prompt_ids = TOKENIZER.encode(prompt, add_special_tokens=False) if is_text else prompt
        pieces = list(self._pieces(body, prompt_ids))
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await self._stream(request, prompt_ids, pieces, is_text)
        finally:
            self.running -= 1

    async def _stream(
        self,
        request: web.Request,
        prompt_ids: list[int],
        pieces: list[tuple[list[int], str | None]],
        is_text: bool,
    ) -> web.StreamResponse:
        assert request.transport is not None
        self._transports.add(request.transport)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        reason = None
        try:
            for number, (piece, reason) in enumerate(pieces):
                if self.deaths > 0 and not is_text and number * PIECE >= self.dies_after:
                    self.deaths -= 1
                    request.transport.abort()
                    return response
                choice = {
                    "index": 0, "text": TOKENIZER.decode(piece, skip_special_tokens=True),
                    "token_ids": piece, "finish_reason": reason,
                    **({} if number else {"prompt_token_ids": prompt_ids}),
                }  # fmt: skip
                choice = {k: v for k, v in choice.items() if k not in self.hidden}
                data = f": keep-alive\n\ndata: {json.dumps(self.event(choice))}\r\n\r\n".encode()
                for start in range(0, len(data), self.bytes_a_write):
                    await response.write(data[start : start + self.bytes_a_write])
                await asyncio.sleep(self.seconds_a_piece)
            await response.write(b"data: [DONE]\n\n")
            await response.write_eof()
        except ConnectionError:
            self.aborted += not is_text and reason is None
        finally:
            self._transports.discard(request.transport)
        return response

    def _pieces(
        self, body: dict[str, Any], prompt_ids: Sequence[int]
    ) -> Iterator[tuple[list[int], str | None]]:
        """The token ids of each event, with the reason of the last one."""
        most = min(body["max_tokens"], self.cap)
        rest = self.token_ids if isinstance(body["prompt"], str) else self._rest(prompt_ids)
        if schema := body.get("structured_outputs"):
            text = json.dumps(schema["json"].get("enum", ["7"])[0]) if self.answers_schemas else "?"
            rest = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
        stops = set(body.get("stop_token_ids", ()))
        end = next((i + 1 for i, number in enumerate(rest) if number in stops), len(rest))
        new = rest[: min(end, most)]
        reason = "stop" if len(new) == end else "length"
        for start in range(0, len(new), PIECE):
            yield new[start : start + PIECE], reason if start + PIECE >= len(new) else None

    def _rest(self, prompt_ids: Sequence[int]) -> list[int]:
        """What follows a prompt, whose tokens after `<think>` must begin the text."""
        [think] = TOKENIZER.encode("<think>", add_special_tokens=False)
        if think not in prompt_ids:
            return self.token_ids
        last = len(prompt_ids) - 1 - list(prompt_ids)[::-1].index(think)
        begun = list(prompt_ids)[last + 2 :]  # and the line end of the template
        if begun != self.token_ids[: len(begun)]:
            raise web.HTTPBadRequest(text="the prompt does not begin the text")
        return self.token_ids[len(begun) :]


@contextmanager
def servers(count: int = 1, text: str = ANSWER) -> Iterator[list[CompletionsServer]]:
    """Servers that run while the body does."""
    running = [CompletionsServer(text) for _ in range(count)]
    try:
        for server in running:
            server.start()
        yield running
    finally:
        for server in running:
            server.close()
