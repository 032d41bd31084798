"""Servers in place of an engine: requests and streams, on a small server that misbehaves."""

import asyncio
import json
from typing import Any

import pytest

from infra.vllm_names import installed, names_of
from pipeline.engines.endpoint import _body
from pipeline.engines.protocol import EngineLoad
from pipeline.errors import ModelError, RequestRejectedError
from pipeline.reasoning.sampling import continued_seed
from tests.completions_server import PIECE, TOKENIZER, CompletionsServer
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


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_tokens_come_whole_wherever_the_stream_is_cut(server: CompletionsServer, size: int) -> None:
    server.bytes_a_write = size
    assert generate(engine_of(server), request()) == [("stop", IDS)]


def test_request_says_all_that_decides_the_tokens(server: CompletionsServer) -> None:
    generate(engine_of(server), request(carried_token_ids=tuple(IDS[:20]), stop_ids=(4, 5)))
    [body] = server.requests
    assert body["prompt"] == [*PROMPT, *IDS[:20]]
    assert body["seed"] == continued_seed(7, 20)
    assert (body["max_tokens"], body["stop_token_ids"]) == (980, [4, 5])
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.6, 0.95, 40, 0)
    # A server's own generation config decides what is not set.
    assert (body["presence_penalty"], body["repetition_penalty"]) == (0, 1)
    assert (body["frequency_penalty"], body["stream"], body["return_token_ids"]) == (0, True, True)


def test_request_ends_at_its_limit_at_the_context_and_at_a_stop_token(
    server: CompletionsServer,
) -> None:
    server.context_tokens = len(PROMPT) + 60
    [stop] = TOKENIZER.encode("2", add_special_tokens=False)
    ended = generate(
        engine_of(server), request(max_tokens=30), request(1),
        request(2, max_tokens=10, carried_token_ids=tuple(IDS[:10])), request(3, stop_ids=(stop,)),
    )  # fmt: skip
    at = IDS.index(stop) + 1
    assert ended == [("length", IDS[:30]), ("length", IDS[:60]), ("length", []), ("stop", IDS[:at])]


def test_loop_ends_the_request_on_the_server_too(server: CompletionsServer) -> None:
    server.seconds_a_piece = 0.05

    engine = engine_of(server)

    async def run() -> tuple[str, int]:
        tokens = Tokens(most=16)
        reason = await engine.generate(request(), tokens)
        await asyncio.sleep(0.3)
        await engine._close()
        return reason, len(tokens)

    assert asyncio.run(run()) == ("repetition", 16)
    assert (server.aborted, server.running) == (1, 0)


def test_cancelled_request_ends_on_the_server_and_one_that_waits_leaves_its_place(
    server: CompletionsServer,
) -> None:
    server.seconds_a_piece = 0.05
    engine = engine_of(server, endpoint={"slots": 1})

    async def work() -> EngineLoad:
        tasks = [asyncio.ensure_future(engine.generate(request(i), Tokens())) for i in range(3)]
        await asyncio.sleep(0.2)
        assert engine.load == EngineLoad(1, 2)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.sleep(0.1)
        load = engine.load
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.load == EngineLoad()
        await asyncio.sleep(0.2)
        await engine._close()
        return load

    assert asyncio.run(work()) == EngineLoad(1, 0)
    assert server.aborted == 2


def test_server_knows_every_field_that_is_sent() -> None:
    """Of a field that it does not know, `vllm serve` says nothing."""
    sent = _body("m", request(schema='{"type": "string"}'), (), 1).keys() | {"return_token_ids"}
    names = names_of(installed(), "vllm.entrypoints.openai.completion.protocol")
    assert {f"CompletionRequest.{name}" for name in sent} <= names


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, '{"error": {"message": "the prompt\\n is odd", "code": 400}}'),
        (422, '{"message": "the prompt is odd"}'),
        (413, "the prompt is odd"),
    ],
)
def test_request_that_is_refused_fails_its_row_alone(
    server: CompletionsServer, status: int, text: str
) -> None:
    engine = engine_of(server)
    server.refusals.append((status, {}, text))
    with pytest.raises(RequestRejectedError, match=r"^request_rejected: the prompt is odd$"):
        generate(engine, request())
    assert generate(engine_of(server), request()) == [("stop", IDS)]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "answers 401: no.*VLLM_API_KEY is not set"),
        (403, "answers 403: no"),
        (404, "answers 404: no .it must be `vllm serve`"),
        (307, "answers 307: no"),
    ],
)
def test_server_that_refuses_all_ends_the_run(
    server: CompletionsServer, status: int, message: str
) -> None:
    engine = engine_of(server)
    server.refusals.append((status, {"Location": "http://127.0.0.1:1/"}, "no"))
    with pytest.raises(ModelError, match=message):
        generate(engine, request())


@pytest.mark.parametrize("status", [500, 502, 504, 408])
def test_internal_error_is_tried_again(server: CompletionsServer, status: int) -> None:
    engine = engine_of(server)
    server.refusals.append((status, {}, "<html>oops</html>"))
    assert generate(engine, request()) == [("stop", IDS)]


EVENTS: dict[str, Any] = {
    "an error in the stream": {"error": {"message": "Internal server error", "code": 500}},
    "no object": "text",
    "no choices": {"choices": [7]},
    "aborted": {"choices": [{"token_ids": [], "text": "", "finish_reason": "abort"}]},
}


@pytest.mark.parametrize("kind", EVENTS)
def test_stream_that_breaks_off_in_order_is_tried_again(
    server: CompletionsServer, kind: str
) -> None:
    engine, count = engine_of(server), 0

    def event(choice: Any) -> Any:
        nonlocal count
        count += 1
        return EVENTS[kind] if count == 3 else {"choices": [choice]}

    server.event = event
    assert generate(engine, request()) == [("stop", IDS)]
    assert server.requests[1]["prompt"] == [*PROMPT, *IDS[: 2 * PIECE]]


def test_error_that_is_null_is_none(server: CompletionsServer) -> None:
    server.event = lambda choice: {"error": None, "choices": [choice]}
    assert generate(engine_of(server), request()) == [("stop", IDS)]


def test_answer_by_a_schema_starts_anew_and_is_passed_on_whole(
    two: list[CompletionsServer],
) -> None:
    schema = json.dumps({"enum": ["a long answer, of more than one piece"]})
    engine = engine_of(*two, answer={"format": "json", "json_schema": json.loads(schema)})
    for one in two:
        one.dies_after, one.deaths = PIECE, 1
    [(reason, new)] = generate(engine, request(schema=schema))
    assert reason == "stop"
    assert TOKENIZER.decode(new, skip_special_tokens=True) == json.dumps(
        json.loads(schema)["enum"][0]
    )
    given = two[0].requests[0]["structured_outputs"]["json"]
    assert given["enum"] == json.loads(schema)["enum"]
    assert [body["prompt"] for one in two for body in one.requests] == [list(PROMPT)] * 3


def test_server_with_a_limit_of_its_own_is_asked_again(server: CompletionsServer) -> None:
    server.cap = 100
    assert generate(engine_of(server), request()) == [("stop", IDS)]
    assert len(server.requests) == -(-len(IDS) // 100)
    schema = {"enum": ["more than one piece"]}
    engine = engine_of(server, answer={"format": "json", "json_schema": schema})
    server.cap = PIECE
    with pytest.raises(
        RequestRejectedError, match="ended it after 8 tokens of 1000; serve without"
    ):
        generate(engine, request(schema=json.dumps(schema)))
