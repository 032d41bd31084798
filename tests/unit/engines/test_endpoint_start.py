"""Which servers and settings of servers are refused, and with which message."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.config.sections import EngineConfig
from pipeline.engines import engine_slots
from pipeline.engines.endpoint import ENDPOINT
from pipeline.errors import ConfigError, ModelError
from tests.completions_server import KEY, TOKENIZER, CompletionsServer
from tests.unit.engines.endpoints import (
    IDS,
    SOCKETS_STAY_OPEN,
    config_of,
    engine_of,
    generate,
    request,
)

pytestmark = SOCKETS_STAY_OPEN


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
        *((setting(models_status=s), "refuses /v1/models: no such path") for s in (400, 413, 422)),
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
    with pytest.raises(ModelError, match=r"serves a, b, and not c; serve that model there, or set"):
        engine_of(server, endpoint={"model": "c"})


def test_all_servers_must_have_the_model_of_the_first(two: list[CompletionsServer]) -> None:
    first, second = two
    second.names = ["finetune"]
    with pytest.raises(ModelError, match=rf"{second.url} serves finetune, and not qwq; serve that"):
        engine_of(*two)
    second.names = ["finetune", "qwq"]  # two names of one model
    assert generate(engine_of(*two), *map(request, range(6))) == [("stop", IDS)] * 6
    assert {body["model"] for one in two for body in one.requests} == {"qwq"}
    first.kill()
    second.names = ["finetune"]  # the run begins with the only one that is up
    engine = engine_of(*two)
    second.seconds_a_piece = 0.02
    requests = [request(i) for i in range(4)]
    assert generate(engine, *requests, meanwhile=first.start) == [("stop", IDS)] * 4
    assert "serves qwq, and not finetune" in str(engine._pool.servers[0].down)


def test_run_keeps_the_model_that_it_began_with(server: CompletionsServer) -> None:
    config = config_of(server.url)
    found = ENDPOINT.found_at_start(config)
    assert found == {"engine.endpoint.model": "qwq"}
    engine = ENDPOINT.as_begun(config.engine, found)
    assert ENDPOINT.result_settings(engine) == found
    server.names = ["finetune"]
    with pytest.raises(ModelError, match="serves finetune, and not qwq"):
        ENDPOINT.build(config.model_copy(update={"engine": engine}), TOKENIZER)
    named = config_of(server.url, endpoint={"model": "m"})
    assert ENDPOINT.found_at_start(named) == {}
    assert ENDPOINT.as_begun(named.engine, found) == named.engine


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


def test_key_that_no_header_can_have_is_named_but_not_shown(
    server: CompletionsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "PLANTED6\nPLANTED6")
    with pytest.raises(ModelError, match=r"without line breaks; .*VLLM_API_KEY has") as caught:
        engine_of(server)
    assert "PLANTED6" not in str(caught.value)


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
