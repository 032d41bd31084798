"""Several servers: which one gets a request, and what is lost with one that dies."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from pipeline.engines import endpoint_pool
from pipeline.errors import EngineDeadError, ModelError
from pipeline.reasoning.sampling import SamplingPolicy, continued_seed
from tests.completions_server import PIECE, CompletionsServer
from tests.unit.engines.endpoints import (
    IDS,
    PROMPT,
    SOCKETS_STAY_OPEN,
    Tokens,
    engine_of,
    generate,
    request,
)

pytestmark = SOCKETS_STAY_OPEN


def test_request_goes_on_elsewhere_from_its_last_token(two: list[CompletionsServer]) -> None:
    first, second = two
    first.dies_after, first.deaths = 80, 1
    assert generate(engine_of(first, second), request()) == [("stop", IDS)]
    [lost], [continued] = first.requests, second.requests
    assert lost["prompt"] == list(PROMPT)
    assert continued["prompt"] == [*PROMPT, *IDS[:80]]
    assert continued["seed"] == continued_seed(7, 80)


def test_dead_server_of_two_loses_nothing_and_works_again_when_it_is_back(
    two: list[CompletionsServer], caplog: pytest.LogCaptureFixture
) -> None:
    for one in two:
        one.seconds_a_piece = 0.03
    engine = engine_of(*two, endpoint={"slots": 8})
    first = two[0]

    async def work() -> list[tuple[str, list[int]]]:
        new = [Tokens() for _ in range(24)]
        tasks = [
            asyncio.ensure_future(engine.generate(request(i), tokens))
            for i, tokens in enumerate(new)
        ]
        await asyncio.sleep(0.5)
        await asyncio.to_thread(first.kill)
        before = len(first.requests)
        assert before > 0
        await asyncio.sleep(0.5)
        assert len(first.requests) == before
        await asyncio.to_thread(first.start)
        reasons = await asyncio.gather(*tasks)
        assert len(first.requests) > before
        await engine._close()
        return list(zip(reasons, map(list, new), strict=True))

    with caplog.at_level(logging.WARNING):
        assert asyncio.run(asyncio.wait_for(work(), 30)) == [("stop", IDS)] * 24
    told = [record.message for record in caplog.records]
    assert len([text for text in told if f"{first.url} broke off" in text]) == 1, (
        "once, not 8 times"
    )
    assert f"{first.url} is up again" in told


def test_servers_that_are_all_dead_are_a_dead_engine(
    two: list[CompletionsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_pool, "SERVERS_DOWN_SECONDS", 0.6)
    engine = engine_of(*two)
    for one in two:
        one.seconds_a_piece = 0.05

    def kill() -> None:
        for one in two:
            one.kill()

    with pytest.raises(EngineDeadError, match=r"(?s)all servers were down for .*can't be reached"):
        generate(engine, request(), request(1), meanwhile=kill)


def test_server_that_comes_back_in_time_is_no_dead_engine(server: CompletionsServer) -> None:
    server.seconds_a_piece = 0.02

    def restart() -> None:
        server.kill()
        server.start()

    assert generate(engine_of(server), request(), meanwhile=restart) == [("stop", IDS)]


def test_server_that_comes_back_with_less_gets_no_requests(
    two: list[CompletionsServer],
) -> None:
    first, second = two
    first.seconds_a_piece = second.seconds_a_piece = 0.03

    def restart() -> None:
        first.kill()
        first.context_tokens = 100
        first.start()

    engine = engine_of(first, second)
    requests = [request(i) for i in range(6)]
    assert generate(engine, *requests, meanwhile=restart) == [("stop", IDS)] * 6
    assert str(engine._pool.servers[0].down).endswith(
        "has a context of 100 tokens, and the run began with 8,192; serve with --max-model-len 8192"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["finetune"]}, "serves finetune, and not qwq; serve that model there, or set"),
        ({"root": "/other"}, "serves qwq from /other, and the run began with /model; serve that"),
    ],
)
def test_trace_that_one_model_began_is_not_finished_by_another(
    server: CompletionsServer, change: dict[str, Any], message: str
) -> None:
    server.seconds_a_piece = 0.03

    def restart() -> None:
        server.kill()
        vars(server).update(change)
        server.start()

    with pytest.raises(ModelError, match=message):
        generate(engine_of(server), request(), meanwhile=restart)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_server_that_refuses_everything_is_down(
    server: CompletionsServer,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(endpoint_pool, "SERVERS_DOWN_SECONDS", 0.4)
    engine = engine_of(server)
    server.refusals.extend([(status, {}, "no pods")] * 10_000)
    server.models_status = status
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(EngineDeadError, match=rf"all servers were down .*\n.*answers {status}: no"),
    ):
        generate(engine, request(), request(1))
    assert len(caplog.records) == 1


def test_request_that_is_lost_again_and_again_is_the_engines_death(
    two: list[CompletionsServer],
) -> None:
    """So the actor's own search finds the row that kills servers, and no other row fails."""
    for one in two:
        one.dies_after, one.deaths = 0, 10
    with pytest.raises(EngineDeadError, match=r"a request was lost 3 times: http.* broke off"):
        generate(engine_of(*two), request())
    assert len(two[0].requests) + len(two[1].requests) == 3


def test_request_that_makes_progress_is_never_given_up(server: CompletionsServer) -> None:
    server.dies_after, server.deaths = PIECE, 8
    assert generate(engine_of(server), request()) == [("stop", IDS)]
    assert len(server.requests) == 9


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_asked_again_later_and_less(server: CompletionsServer, status: int) -> None:
    engine = engine_of(server)
    server.refusals.extend([(status, {"Retry-After": "1"}, "busy")] * 2)
    assert generate(engine, request(), request(1)) == [("stop", IDS)] * 2
    assert engine._pool.servers[0].limit.value == 8, "halved once"
    assert len(server.requests) == 4


def test_busy_server_sends_requests_to_the_other(two: list[CompletionsServer]) -> None:
    first, second = two
    first.refusals.extend([(503, {"Retry-After": "60"}, "no pods")] * 3)
    engine = engine_of(first, second)
    assert generate(engine, *map(request, range(6))) == [("stop", IDS)] * 6
    assert len(second.requests) == 6


def test_requests_at_once_follow_what_the_server_takes(server: CompletionsServer) -> None:
    server.most_running, server.seconds_a_piece = 5, 0.002
    engine = engine_of(server, endpoint={"slots": 200})
    assert generate(engine, *map(request, range(40))) == [("stop", IDS)] * 40
    assert server.peak == 5
    assert engine._pool.servers[0].limit.value <= 8


def test_slots_are_not_exceeded_and_are_reached(two: list[CompletionsServer]) -> None:
    for one in two:
        one.seconds_a_piece = 0.01
    engine = engine_of(*two, endpoint={"slots": 20})
    assert generate(engine, *map(request, range(60))) == [("stop", IDS)] * 60
    # Servers see the end of a request a little later than we do. Without slots it would be 30.
    assert all(20 <= one.peak < 28 for one in two)


def test_next_request_of_a_trace_goes_to_the_server_that_has_its_prefix(
    two: list[CompletionsServer],
) -> None:
    engine = engine_of(*two)
    for one in two:
        one.seconds_a_piece = 0.005

    async def work() -> None:
        await asyncio.gather(
            *(engine.generate(request(i, max_tokens=20), Tokens()) for i in range(6))
        )
        for i in (5, 3, 1, 0, 2, 4):
            carried = tuple(IDS[:20])
            await engine.generate(request(i, max_tokens=40, carried_token_ids=carried), Tokens())
        await engine._close()

    asyncio.run(work())
    for one in two:
        seeds = [body["seed"] for body in one.requests]
        first = [seed for seed in seeds if seed < 100]
        assert len(first) == 3
        assert sorted(seeds[3:]) == sorted(continued_seed(seed, 20) for seed in first)


def test_probe_goes_before_traces_that_wait_and_has_slots_of_its_own(
    server: CompletionsServer,
) -> None:
    engine = engine_of(server, endpoint={"slots": 1})
    server.seconds_a_piece = 0.01

    async def work() -> None:
        tasks = [asyncio.ensure_future(engine.generate(request(i), Tokens())) for i in range(3)]
        await asyncio.sleep(0.2)
        probe = replace(request(), seed=99, policy=SamplingPolicy(max_tokens=5))
        await engine.generate(probe, Tokens())
        await asyncio.gather(*tasks)
        await engine._close()

    asyncio.run(work())
    assert [body["seed"] for body in server.requests] == [7, 99, 8, 9]
    early = {"thinking": {"early_answer": {}}, "answer": {"format": "boxed"}}
    probing = engine_of(server, endpoint={"slots": 9}, **early)
    assert probing._pool.servers[0].limit.value == 9 + 2
