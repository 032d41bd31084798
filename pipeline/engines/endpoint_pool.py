"""Several servers: which one takes a request, which are busy or down, when all are; no I/O itself.

All of it runs in one event loop. A server that is down gets no requests. It is examined after
pauses that grow, and takes requests again once it is as it was at the start.
"""

import asyncio
import logging
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.engines.endpoint_client import (
    Served,
    ServerBusyError,
    ServerClient,
    ServerError,
    ServerUnfitError,
)
from pipeline.engines.endpoint_limit import GROW_SECONDS, RequestLimit
from pipeline.errors import EngineDeadError, ModelError
from pipeline.time_limits import SERVERS_DOWN_SECONDS

logger = logging.getLogger(__name__)
# Pauses double from a second up to this, each times a random half to whole.
MOST_PAUSE_SECONDS = 60.0
# Servers that are busy are left alone for as long as they say, up to this.
MOST_REST_SECONDS = 300.0
CLOCK_SECONDS = 0.01  # that two clocks may be apart
# Traces whose server is known: those that run, and their next steps.
KNOWN_TRACES = 10_000


@dataclass(eq=False)
class Server:
    """A server and what is known of it.

    ``served``: what it serves; None before it was examined. ``down``: why it takes no requests;
    None if it does. ``failures``: how often in a row it was busy, lost or unfit. ``rests_until``:
    when it may be asked again, and ``refuses_since``: when it began to refuse all requests, by the
    clock of `time.monotonic`.
    """

    client: ServerClient
    limit: RequestLimit
    served: Served | None = None
    down: ServerError | None = None
    running: int = 0
    failures: int = 0
    rests_until: float = 0.0
    refuses_since: float = math.inf

    @property
    def is_open(self) -> bool:
        """Whether it is neither down nor rests."""
        return self.down is None and time.monotonic() >= self.rests_until

    @property
    def has_room(self) -> bool:
        """Whether it may get a request now."""
        return self.is_open and self.running < self.limit.value

    @property
    def fullness(self) -> float:
        """The share of its limit that runs."""
        return self.running / self.limit.value


@dataclass
class Visit:
    """A request at a ``server``, since ``sent``. ``has_begun``: whether tokens have come."""

    server: Server
    sent: float = field(default_factory=time.monotonic)
    has_begun: bool = False


class ServerPool:
    """Gives requests to the ``servers``. ``examine``: raises `ServerError` if one is not fit."""

    def __init__(
        self, servers: Sequence[Server], examine: Callable[[Server], Awaitable[None]]
    ) -> None:
        self.servers, self._examine = servers, examine
        self._homes = OrderedDict[str, Server]()
        # Requests of traces that have a home go first: they are short, or continue a trace.
        self._returning, self._waiting = deque[_Waiter](), deque[_Waiter]()
        self._tasks = set[asyncio.Task[None]]()
        self._giving_up: asyncio.TimerHandle | None = None
        self._dead: EngineDeadError | ModelError | None = None

    @property
    def running(self) -> int:
        """Requests at servers."""
        return sum(server.running for server in self.servers)

    @property
    def waiting(self) -> int:
        """Requests that wait for a server."""
        return len(self._returning) + len(self._waiting)

    def open(self) -> None:
        """Begin to look after the servers, in the present event loop."""
        self._keep(self._grow())
        for server in self.servers:
            if server.down is not None:
                self._look_after(server)

    def close(self) -> None:
        """End what waits, and no longer look after servers."""
        self._end(EngineDeadError("the engine was closed"))

    @asynccontextmanager
    async def visit(self, trace: str) -> AsyncIterator[Visit]:
        """Wait for a server, the one that knows ``trace`` if it is up; count what comes of it.

        The body raises what the server did. Raises `EngineDeadError` if all servers are down for
        long, `ModelError` if none of them is fit.
        """
        visit = Visit(await self._server(trace))
        try:
            yield visit
        except ServerError as error:
            self._homes.pop(trace, None)
            self._failed(visit, error)
            raise
        finally:
            visit.server.running -= 1
            self._dispatch()

    def begun(self, visit: Visit) -> None:
        """The first tokens of a visit have come, or others."""
        visit.server.refuses_since = math.inf
        if not visit.has_begun:
            visit.has_begun, server = True, visit.server
            server.failures = 0
            server.limit.begun(visit.sent, time.monotonic(), server.running)
            self._dispatch()

    async def _server(self, trace: str) -> Server:
        """A server with room; the caller counts as one of its requests."""
        if self._dead is not None:
            raise self._dead
        waiter = _Waiter(self._homes.get(trace), asyncio.get_running_loop().create_future())
        queue = self._waiting if waiter.home is None else self._returning
        queue.append(waiter)
        self._dispatch()
        try:
            server = await waiter.chosen
        except asyncio.CancelledError:
            if waiter in queue:
                queue.remove(waiter)
            elif _has_place(waiter):
                waiter.chosen.result().running -= 1
                self._dispatch()
            raise
        if trace:
            self._remember(trace, server)
        return server

    def _remember(self, trace: str, server: Server) -> None:
        self._homes[trace] = server
        self._homes.move_to_end(trace)
        if len(self._homes) > KNOWN_TRACES:
            self._homes.popitem(last=False)

    def _dispatch(self) -> None:
        """Give requests that wait to servers with room."""
        for waiter in list(self._returning):
            if (server := self._home_with_room(waiter)) is not None:
                self._returning.remove(waiter)
                _send(waiter, server)
        while self._waiting and (server := self._least_full()) is not None:
            _send(self._waiting.popleft(), server)

    def _home_with_room(self, waiter: "_Waiter") -> Server | None:
        """The waiter's home; any other server if that takes no requests now; None without room."""
        home = waiter.home
        if home is None or not home.is_open:
            return self._least_full()
        return home if home.has_room else None

    def _least_full(self) -> Server | None:
        with_room = [server for server in self.servers if server.has_room]
        return min(with_room, key=lambda server: server.fullness, default=None)

    def _failed(self, visit: Visit, error: ServerError) -> None:
        server, now = visit.server, time.monotonic()
        server.limit.congested(visit.sent, now)
        if not isinstance(error, ServerBusyError):
            self._is_down(server, error)
            return
        server.refuses_since = min(server.refuses_since, now)
        if now - server.refuses_since >= SERVERS_DOWN_SECONDS:
            self._is_down(server, error)
        elif now >= server.rests_until:
            pause = max(_pause(server.failures), min(error.retry_after, MOST_REST_SECONDS))
            server.failures += 1
            server.rests_until = now + pause
            logger.info("%s; next request in %.1f s", error, pause)
            asyncio.get_running_loop().call_later(pause + CLOCK_SECONDS, self._dispatch)

    def _is_down(self, server: Server, error: ServerError) -> None:
        if server.down is None:
            server.down = error
            logger.warning("%s; its requests go on elsewhere, and it is tried again", error)
            self._look_after(server)

    def _look_after(self, server: Server) -> None:
        self._keep(self._revive(server))
        self._look_whether_all_are_down()

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Run ``work`` until it ends, or the engine does."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _grow(self) -> None:
        """Let the limits of servers grow."""
        while True:
            await asyncio.sleep(GROW_SECONDS)
            for server in self.servers:
                server.limit.grow(server.running)
            self._dispatch()

    async def _revive(self, server: Server) -> None:
        """Examine ``server`` until it is fit."""
        while server.down is not None:
            pause = _pause(server.failures)
            server.failures += 1
            await asyncio.sleep(pause)
            server.down = await self._reason(server)
            self._look_whether_all_are_down()
        logger.warning("%s is up again", server.client.url)
        server.refuses_since = math.inf
        server.limit = RequestLimit(server.limit.most)
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        self._dispatch()

    async def _reason(self, server: Server) -> ServerError | None:
        """Why ``server`` is not fit; None if it is."""
        try:
            await self._examine(server)
        except ServerError as error:
            return error
        except Exception as error:  # an answer of a form that nobody thought of
            logger.exception("%s could not be examined", server.client.url)
            return ServerError(f"{server.client.url}: {error!r}")
        return None

    def _look_whether_all_are_down(self) -> None:
        if any(server.down is None for server in self.servers):
            return
        if all(isinstance(server.down, ServerUnfitError) for server in self.servers):
            self._end(ModelError(f"no server of engine.endpoint can do the work\n{self._reasons}"))
        elif self._giving_up is None:
            loop = asyncio.get_running_loop()
            self._giving_up = loop.call_later(SERVERS_DOWN_SECONDS, self._give_up)

    def _give_up(self) -> None:
        seconds = f"{SERVERS_DOWN_SECONDS:.0f}"
        self._end(EngineDeadError(f"all servers were down for {seconds} s\n{self._reasons}"))

    @property
    def _reasons(self) -> str:
        return "\n".join(str(server.down) for server in self.servers if server.down is not None)

    def _end(self, error: EngineDeadError | ModelError) -> None:
        """End all requests that wait, and those to come."""
        self._dead = self._dead or error
        for task in self._tasks:
            task.cancel()
        for queue in (self._returning, self._waiting):
            while queue:
                waiter = queue.popleft()
                if not waiter.chosen.done():
                    waiter.chosen.set_exception(error)


@dataclass(eq=False)
class _Waiter:
    """A request that waits. ``home``: the server that has its prefix, if any."""

    home: Server | None
    chosen: asyncio.Future[Server]


def _send(waiter: _Waiter, server: Server) -> None:
    """Give ``waiter`` a place at ``server``, unless it has been cancelled."""
    if not waiter.chosen.done():
        server.running += 1
        waiter.chosen.set_result(server)


def _has_place(waiter: _Waiter) -> bool:
    chosen = waiter.chosen
    return chosen.done() and not chosen.cancelled() and chosen.exception() is None


def _pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return min(MOST_PAUSE_SECONDS, 2.0 ** min(failures, 10)) * random.uniform(0.5, 1)
