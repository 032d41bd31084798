"""One or two small real servers, and engines that do not wait long for them."""

from collections.abc import Iterator

import pytest

from pipeline.engines import endpoint_pool
from tests.completions_server import CompletionsServer, servers
from tests.unit.engines.endpoints import LONG


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_pool, "_pause", lambda _: 0.05)
    monkeypatch.setattr(endpoint_pool, "GROW_SECONDS", 0.02)
    monkeypatch.setattr(endpoint_pool, "SERVERS_DOWN_SECONDS", 20.0)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def server(impatient: None) -> Iterator[CompletionsServer]:
    with servers(1, LONG) as [one]:
        yield one


@pytest.fixture
def two(impatient: None) -> Iterator[list[CompletionsServer]]:
    with servers(2, LONG) as both:
        yield both
