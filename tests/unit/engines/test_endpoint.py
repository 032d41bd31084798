"""Servers in place of an engine, against a small real server that misbehaves."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from infra.vllm_names import installed, names_of
from pipeline.config.load import parse_config
from pipeline.config.run_config import RunConfig
from pipeline.config.sections import EngineConfig
from pipeline.engines import endpoint_pool, engine_slots
from pipeline.engines.endpoint import ENDPOINT, EndpointEngine, _body
from pipeline.engines.protocol import EngineLoad, Request
from pipeline.errors import ConfigError, EngineDeadError, ModelError, RequestRejectedError
from pipeline.reasoning.sampling import SamplingPolicy, continued_seed
from tests.completions_server import KEY, PIECE, TOKENIZER, CompletionsServer, servers

# Servers that are killed leave sockets behind.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
LONG = "".join(f"Step {i}.\n" for i in range(40)) + "</think>\n\n\\boxed{42}"
PROMPT = tuple(TOKENIZER.encode("<|im_start|>assistant\n<think>\n"))
IDS = [*TOKENIZER.encode(LONG), TOKENIZER.eos_token_id]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "_pause", lambda _: 0.05)
    monkeypatch.setattr(endpoint_pool, "GROW_SECONDS", 0.02)
    monkeypatch.setattr(endpoint_pool, "SERVERS_DOWN_SECONDS", 20.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[CompletionsServer]:
    with servers(1, LONG) as [one]:
        yield one


@pytest.fixture
def two() -> Iterator[list[CompletionsServer]]:
    with servers(2, LONG) as both:
        yield both


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


def hide(*names: str) -> Callable[[CompletionsServer], None]:
    return lambda server: server.hidden.update(names)


def setting(**values: Any) -> Callable[[CompletionsServer], None]:
    return lambda server: vars(server).update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hide("token_ids"), "returns no token ids; it must be a `vllm serve` that knows"),
        (hide("prompt_token_ids"), "returns no token ids"),
        (hide("max_model_len"), "says no max_model_len in /v1/models; it must be `vllm serve`"),
        (hide("id"), "lists no models at /v1/models"),
        (setting(names=[]), "serves nothing; set engine.endpoint.model"),
        (setting(key=KEY), r"answers 401: .*VLLM_API_KEY is not set"),
    ],
)
def test_server_that_lacks_something_is_refused_by_name(
    server: CompletionsServer, change: Callable[[CompletionsServer], None], message: str
) -> None:
    change(server)
    with pytest.raises(ModelError, match=rf"engine.endpoint.urls: http\S+ {message}"):
        engine_of(server)


def test_server_with_another_tokenizer_is_refused(server: CompletionsServer) -> None:
    class Shifted:
        def encode(self, text: str, **_: Any) -> list[int]:
            return [number + 1 for number in TOKENIZER.encode(text)]

    with pytest.raises(
        ModelError, match=r"has another tokenizer than model.path, so qwq is another"
    ):
        ENDPOINT.build(config_of(server.url), Shifted())


def test_server_that_ignores_schemas_is_refused_where_they_are_needed(
    server: CompletionsServer,
) -> None:
    server.answers_schemas = False
    assert generate(engine_of(server), request()) == [("stop", IDS)]
    with pytest.raises(ModelError, match="does not generate by a JSON Schema"):
        engine_of(server, answer={"format": "json", "json_schema": {"type": "string"}})


def test_model_is_chosen_by_its_name(server: CompletionsServer) -> None:
    server.names = ["a", "b"]  # of one model, which has two names
    assert generate(engine_of(server), request()) == [("stop", IDS)]
    generate(engine_of(server, endpoint={"model": "b"}), request())
    assert [body["model"] for body in server.requests] == ["a", "b"]
    with pytest.raises(ModelError, match=r"serves a, b; set engine.endpoint.model to one of them"):
        engine_of(server, endpoint={"model": "c"})


def test_one_server_of_two_is_enough_to_start(two: list[CompletionsServer]) -> None:
    first, second = two
    first.kill()
    engine = engine_of(first, second, endpoint={"slots": 10})
    assert engine.details[first.url] == "down"
    assert engine.details[second.url] == "vLLM 0.32.0, qwq (/model), 8,192 tokens"
    second.seconds_a_piece = 0.03
    requests = [request(i) for i in range(40)]
    assert generate(engine, *requests, meanwhile=first.start) == [("stop", IDS)] * 40
    assert first.requests


def test_no_server_at_the_start_is_one_clear_message(two: list[CompletionsServer]) -> None:
    for one in two:
        one.kill()
    with pytest.raises(ModelError) as caught:
        engine_of(*two)
    for one in two:
        assert f"{one.url} can't be reached: Cannot connect" in str(caught.value)


def test_key_comes_from_the_environment_and_is_in_no_message(
    server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = KEY
    monkeypatch.setenv("MY_KEY", KEY)
    named = {"api_key_env": "MY_KEY"}
    assert generate(engine_of(server, endpoint=named), request()) == [("stop", IDS)]
    server.key = "another"
    with pytest.raises(
        ModelError, match=r"Bearer \*\*\*.*variable MY_KEY is not its key"
    ) as caught:
        engine_of(server, endpoint=named)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ({"urls": ["host:8000"]}, "must be the address of a server, such as http://host:8000"),
        ({"urls": ["http://"]}, "must be the address of a server"),
        ({"urls": ["http://h:port"]}, "Port could not be cast"),
        ({"urls": ["http://h", "http://h/v1"]}, "names http://h twice"),
        ({"urls": ["https://user:PLANTED6@h"]}, "has credentials in it; set the key in the envir"),
        (
            {"urls": ["https://h/v1?key=PLANTED6"]},
            "has credentials in it; set the key in the envir",
        ),
        (
            {"api_key_env": "sk-PLANTED6"},
            "must be the name of an environment variable, not the key",
        ),
        ({"slots": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings_are_refused_and_credentials_are_not_repeated(
    endpoint: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(endpoint=endpoint)
    assert "PLANTED6" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": {}}, "engine.endpoint.urls is empty; name the servers"),
        ({"device": "gpu"}, "the servers have the GPUs.* set engine.device=cpu"),
        ({"tensor_parallel": 2}, "`vllm serve` decides them; remove them"),
        ({"vllm": {"max_num_seqs": 4}}, "engine.vllm has max_num_seqs, which are arguments of"),
        ({"options": {"x": 1}}, "engine.kind endpoint has no options"),
    ],
)
def test_settings_that_servers_decide_are_refused(settings: dict[str, Any], message: str) -> None:
    base = {"kind": "endpoint", "device": "cpu", "endpoint": {"urls": ["http://h:1"]}}
    with pytest.raises(ConfigError, match=message):
        ENDPOINT.check(EngineConfig.model_validate({**base, **settings}))


def test_adapter_is_the_servers(server: CompletionsServer) -> None:
    model = {"path": "qwq-nano", "lora": "some/adapter"}
    with pytest.raises(
        ModelError, match=r"serve with --lora-modules NAME=PATH, set engine.endpoint"
    ):
        engine_of(server, model=model)


def test_where_servers_are_does_not_identify_a_run() -> None:
    config = config_of("http://a/v1/", "http://b:8000", endpoint={"slots": 10})
    assert config.engine.endpoint.urls == ["http://a", "http://b:8000"]
    assert ENDPOINT.result_settings(config.engine) == {}
    named = config_of("http://a", endpoint={"model": "m"})
    assert ENDPOINT.result_settings(named.engine) == {"engine.endpoint.model": "m"}
    assert engine_slots(config) == 20
    assert list(ENDPOINT.plan_lines(config.engine)) == [
        "servers   http://a, http://b:8000, 10 requests each at most"
    ]
