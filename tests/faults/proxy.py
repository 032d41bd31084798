"""Bad weather for object stores: a proxy that passes requests on, answers with an error, or not."""

import asyncio
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

from aiohttp import ClientError, ClientSession, TCPConnector, web
from yarl import URL

# Headers that hold for one connection only, and those that the answer gets anew.
HOP_HEADERS = frozenset({"connection", "expect", "keep-alive", "te", "transfer-encoding"})
OWN_HEADERS = HOP_HEADERS | {"date", "server"}


@dataclass(frozen=True)
class Fault:
    """An S3 error: the answer's status, its code, and the share of requests that get it."""

    status: int
    code: str
    message: str
    share: float = 1.0

    def answer(self) -> web.Response:
        """The answer that S3 would give."""
        text = f"<Error><Code>{self.code}</Code><Message>{self.message}</Message></Error>"
        return web.Response(
            status=self.status,
            text=f'<?xml version="1.0" encoding="UTF-8"?>\n{text}',
            content_type="application/xml",
        )


ONE_IN_FIVE_BUSY = Fault(503, "SlowDown", "Please reduce your request rate.", share=0.2)
EXPIRED = Fault(403, "ExpiredToken", "The provided token has expired.")
UNREACHABLE = Fault(503, "ServiceUnavailable", "The server behind the proxy is not there.")


class FaultProxy:
    """An HTTP proxy on loopback, in a thread of its own while the body runs.

    The Host header and the path go on as they came: both are in the signature.
    """

    def __init__(self, target: str) -> None:
        self.fault: Fault | None = None
        self.lose = 0  # of so many writes that are passed on, no answer comes back
        self.passed = 0
        self.refused = 0
        self.endpoint = ""
        self._target = target
        self._random = random.Random(0)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _open(self) -> None:
        self._client = ClientSession(
            connector=TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        app = web.Application(client_max_size=2**40)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.endpoint = f"http://{host}:{port}"

    async def _close(self) -> None:
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        fault = self.fault
        if fault is not None and self._random.random() < fault.share:
            self.refused += 1
            return fault.answer()
        self.passed += 1
        try:
            answer = await self._forward(request, body)
            if self.lose and request.method in ("PUT", "POST"):
                self.lose -= 1
                return UNREACHABLE.answer()
            return answer
        except (ClientError, OSError):
            return UNREACHABLE.answer()

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        async with self._client.request(
            request.method,
            URL(self._target + request.raw_path, encoded=True),
            headers=[(k, v) for k, v in request.headers.items() if k.lower() not in HOP_HEADERS],
            data=BytesIO(body),
            allow_redirects=False,
        ) as answer:
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in OWN_HEADERS]
            response = web.Response(status=answer.status, body=await answer.read())
            response.headers.clear()
            response.headers.extend(kept)
            return response
